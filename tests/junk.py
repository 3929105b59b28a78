"""What is given to the library that it does not take, and what comes of it.

`python -m tests.junk` gives every argument of every public function, constructor and layer call all of the junk, one at
a time, and prints how often that had a right result, an error that names the argument, what was expected and what was
received, Keras' own refusal, or anything else, which is a fault: those it lists. `--all` lists Keras' too.
"""

import argparse
import collections
import dataclasses
import datetime
import decimal
import fractions
import functools
import importlib.util
import inspect
import json
import pathlib
import re
import traceback
import typing
import warnings

import keras
import numpy as np

import pernodedrop as pnd
from pernodedrop import backends, mask, study
from pernodedrop.layers import depth_rates
from pernodedrop.study import variants
from tests.family import FAMILY
from tests.frameworks import NAME, tensor

OTHER = next((name for name in ("torch", "jax") if name != NAME and importlib.util.find_spec(name)), None)
"""A framework beside the one under test."""


class Nameless:
    """An object that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


def ones(*shape, dtype="float32"):
    return tensor(np.ones(shape, dtype))


@functools.cache
def of_other(dtype="float32", shape=(3, 4)):
    from pernodedrop.testing import frameworks

    return frameworks.tensor(OTHER, np.ones(shape, dtype)) if OTHER else object()


NUMBERS = [
    1e39, -1e39, 1e-50, 1e-310, 1e30, 10**400, -(10**400), 10**5000, float("nan"), float("inf"), -float("inf"), -1, 0,
    0.5, -0.5, 1.0, 2**31, 2**32, 2**63, 2**64, np.float64(1e39), np.float16(0.1), np.int64(3), np.uint8(1), 1j,
    np.float64("nan"), fractions.Fraction(1, 3), fractions.Fraction(10**400), decimal.Decimal("0.5"), True,
]  # fmt: skip

THINGS = [
    None, "", "yes", "0.5", "x" * 10**5, "\0", b"x", (), [], {}, [None], {1: 2}, {"a": 1}, set(), object(), Nameless(),
    [Nameless()], int, len, lambda *_: 0.5, np.zeros(3), np.array(0.5), np.array("x"), np.ones((2, 3), "float32"),
    np.ones(3, "int32"), np.array([None]), np.random.default_rng(0), np.bool_(True), np.datetime64("2020"),
    datetime.timedelta(1), np.array([1, 2, 3], "timedelta64[s]"), range(3), slice(None), [1, 2, 3], [0.5, 0.5], "auto",
    ["in", 1], [["in"]], (10**5000, 0), (2**4000, 1), (1.5, 0), (1, -1), (np.timedelta64(1), 0), (None, None),
]  # fmt: skip

TENSORS = [
    lambda: ones(), lambda: ones(3), lambda: ones(3, dtype="int32"), lambda: ones(2, dtype="bool"), lambda: ones(2, 3),
    lambda: ones(2, dtype="int32"), of_other, lambda: of_other("int32", (3,)), lambda: of_other("int32", (2,)),
    lambda: keras.KerasTensor((3, 4)), lambda: keras.Variable(np.ones((3, 4), "float32")), lambda: keras.Input((4,)),
    lambda: keras.layers.Dense(2), lambda: pnd.Bernoulli(0.5), lambda: pnd.schedules.Linear(0.0, 0.5, 10),
    lambda: pnd.Gaussian(stddev=0.1), lambda: keras.Sequential([keras.layers.Dense(2)]),
]  # fmt: skip

JUNK = [*(lambda value=value: value for value in [*NUMBERS, *THINGS]), *TENSORS]
"""Functions that make one each."""

DTYPES = ("float32", "float16", "float64", "int32", "bool", "uint8", "complex64")
SHAPES = [
    (), (0,), (3,), (4,), (3, 4), (0, 4), (3, 0), (3, 7), (3, 1), (2, 3, 4), (2, 0, 4), (2, 3, 0), (2, 3, 7),
    (2, 3, 4, 4), (0, 4, 5, 2), (2, 0, 5, 2), (2, 4, 5, 0), (2, 1, 1, 2), (2, 4, 5, 3), (1, 2, 3, 4, 5),
]  # fmt: skip
INPUTS = [
    *(lambda shape=shape: ones(*shape) for shape in SHAPES),
    *(lambda dtype=dtype: ones(3, 4, dtype=dtype) for dtype in DTYPES),
    *(lambda dtype=dtype: np.ones((3, 4), dtype) for dtype in DTYPES),
    lambda: tensor(np.full((3, 4), np.nan, "float32")),
    lambda: tensor(np.full((3, 4), np.inf, "float32")),
    *JUNK,
]
"""What is given for tensors."""


FUNCTIONS = ("function", "rule")
"""Arguments that are functions, whose own errors are the caller's."""

keras.config.disable_traceback_filtering()  # to see who refuses


@dataclasses.dataclass(frozen=True)
class Target:
    """Something public that is called.

    Args:
        name: of it.
        call: the call.
        arguments: its arguments by name, each a function that makes a good one.
        use: what is done with the result; returns arrays, which should be numbers.
        tensors: the arguments that are given shapes and dtypes too.
        kind: "constructor", "function" or "layer call".
        aliases: other names that errors have for its arguments.
    """

    name: str
    call: typing.Callable[..., typing.Any]
    arguments: dict[str, typing.Callable[[], typing.Any]]
    use: typing.Callable[[typing.Any], typing.Any] = lambda result: ()
    tensors: tuple[str, ...] = ()
    kind: str = "function"
    aliases: tuple[str, ...] = ()

    def junk(self, argument):
        """The functions that make what is given for an argument."""
        return INPUTS if argument in self.tensors else JUNK

    def outcome(self, junk):
        """What comes of junk, a dict from arguments to values: how it is called, and the error."""
        given = {name: make() for name, make in self.arguments.items() if name not in junk}
        stage = "call"
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                result = self.call(**given, **junk)
                stage = "use"
                arrays = self.use(result)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # a fault may be of any kind
            if any(callable(value) for name, value in junk.items() if name in FUNCTIONS):
                return "right", error  # that of a function that was given
            return self._judged(error, junk, stage), error
        if numbers_in(given, junk) and not all(np.isfinite(array).all() for array in map(host, concrete(arrays))):
            return "not numbers", None
        return "right", None

    def _judged(self, error, junk, stage):
        text = str(error)
        names = any(name_in(argument, text) for argument in [*self.arguments, *self.aliases])
        if (
            names
            and "xpected" in text
            and "eceived" in text
            and isinstance(error, TypeError | ValueError | ImportError)
        ):
            return "named"
        if stage == "call" and of_keras(error):
            return "keras"
        return f"fault in {stage}"


def name_in(argument, text):
    """Whether an error's text names an argument; tensors may be compared with each other without their names."""
    return re.search(rf"\b{argument}\b", text) is not None


def of_keras(error):
    """Whether it is Keras that refuses, by itself."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [n for n, file in enumerate(files) if "/pernodedrop/" in file or "/backends/" in file]
    after = [file for file in files[own[-1] + 1 :] if file != __file__] if own else files[1:]
    return any("/keras/" in file for file in after)


def numbers_in(*arguments):
    """Whether no tensor among the arguments has NaN or infinity."""
    leaves = [leaf for given in arguments for leaf in given.values() if backends.name_of(leaf) in (NAME, "numpy")]
    try:
        return all(np.isfinite(host(leaf)).all() for leaf in leaves)
    except (TypeError, ValueError, AttributeError):
        return True


def concrete(arrays):
    return [array for array in arrays if not isinstance(array, keras.KerasTensor)]


def host(array):
    return np.asarray(keras.ops.convert_to_numpy(array), "complex128")


def good(signature_of, **made):
    """The arguments of a function by name: those given, and the defaults of the others."""
    found = dict(made)
    for name, parameter in inspect.signature(signature_of).parameters.items():
        if name in ("self", "kwargs", *KERAS_OWN) or name in found:
            continue
        if parameter.default is not parameter.empty:
            found[name] = lambda default=parameter.default: default
    return found


# constructors of layers


def dense(**kwargs):
    return keras.layers.Dense(5, **kwargs)


def relu():
    return dense(activation="relu")


LAYERS = {
    "AlphaDropout": {"rate": lambda: 0.5},
    "DropBlock1D": {"rate": lambda: 0.2},
    "DropBlock2D": {"rate": lambda: 0.2},
    "DropBlock3D": {"rate": lambda: 0.2},
    "DropConnect": {"layer": dense},
    "Dropout": {"rate": lambda: 0.5},
    "DropPath": {"rate": lambda: 0.5},
    "DynamicDropConnect": {"layer": dense},
    "FastDropout": {"layer": relu},
    "Flipout": {"layer": dense},
    "GaussianDropout": {"rate": lambda: 0.5},
    "GradientRouting": {"routes": lambda: [[1, 0, 1, 1], [0, 1, 0, 1]]},
    "Masksembles": {},
    "NoiseInjection": {"layer": dense},
    "NoisyAttention": {"layer": lambda: keras.layers.MultiHeadAttention(2, 3), "wrapper": lambda: pnd.PerNodeDrop},
    "NoisyRNN": {"layer": lambda: keras.layers.LSTM(2)},
    "PerNodeDense": {"units": lambda: 5, "activation": lambda: None},
    "PerNodeDrop": {"layer": dense},
    "ScheduledDropPath": {"rate": lambda: 0.5, "steps": lambda: 10},
    "Shakeout": {"layer": dense},
    "SparseVariationalDropout": {"layer": dense, "examples": lambda: 50},
    "SpatialDropout1D": {"rate": lambda: 0.5},
    "SpatialDropout2D": {"rate": lambda: 0.5},
    "SpatialDropout3D": {"rate": lambda: 0.5},
    "Standout": {"layer": dense},
    "StochasticDepth": {"rate": lambda: 0.5},
    "TabuDropout": {"rate": lambda: 0.1},
    "VariationalDropout": {"layer": dense, "examples": lambda: 50},
    "Zoneout": {"layer": lambda: keras.layers.LSTM(2), "rate": lambda: 0.5},
}
SHAPE_OF = {"1D": (2, 5, 3), "2D": (2, 4, 5, 3), "3D": (2, 3, 4, 5, 3), "NN": (3, 4, 5)}
KERAS_OWN = ("units", "activation", "initializer", "loss", "metrics")
"""Arguments that are handed to Keras as they are."""


def used_layer(name):
    """What is done with a layer: it is saved, loaded, trained and called."""

    def use(layer):
        x = ones(*SHAPE_OF.get(name[-2:], (3, 4)))
        if name == "StochasticDepth":
            x = [x, x]
        arguments = (ones(3, 4, 5),) * 2 if name == "NoisyAttention" else (x,)
        arguments = (x, ones(3, dtype="int32")) if name == "GradientRouting" else arguments
        ids = {"sample_ids": ones(3, dtype="int32")} if getattr(layer, "regime", None) == "example" else {}
        found = [layer(*arguments, training=True, **ids), layer(*arguments, training=False)]
        config = keras.saving.serialize_keras_object(layer)
        again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
        assert again.get_config().keys() == layer.get_config().keys()
        assert repr(layer)
        return keras.tree.flatten(found)

    return use


def layer_targets():
    for name in pnd.layers.__all__:
        if name not in LAYERS:
            continue
        make = getattr(pnd, name)
        arguments = good(make, **LAYERS[name])
        if name != "GradientRouting":  # which draws nothing
            arguments.setdefault("seed", lambda: 1)
        yield Target(name, make, arguments, used_layer(name), kind="constructor")
    published = good(pnd.DropConnect.as_published, layer=relu)
    yield Target(
        "DropConnect.as_published", pnd.DropConnect.as_published, published, used_layer(""), kind="constructor"
    )


# other constructors


def used_noise(noise):
    config = keras.saving.serialize_keras_object(noise)
    assert keras.saving.deserialize_keras_object(config) == noise
    hash(noise), noise.with_params(noise.params()), noise.mean
    return [pnd.ops.sample_mask(noise, (1, 0), (2, 3, 4)), noise.variance]


def used_schedule(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    if not isinstance(schedule, pnd.schedules.Custom):
        assert keras.saving.deserialize_keras_object(config) == schedule
    hash(schedule)
    return [schedule(0), schedule(3), schedule(10**9), np.array(schedule.table()[1])]


@keras.saving.register_keras_serializable("tests")
def half(step):
    return 0.5


class Own(pnd.Noise):
    """A noise with a field of each kind."""

    size: float = 0.5
    count: int = 2
    other: float | None = None

    @property
    def variance(self):
        return self.size**2

    def from_uniform(self, u, params, xp):
        return 1 + params["size"] * xp.sign(u - 0.5)


def constructors():
    noises = {
        pnd.Bernoulli: {"rate": lambda: 0.5},
        pnd.PartialGaussian: {"rate": lambda: 0.5, "stddev": lambda: 0.5},
        Own: {},
    }
    for kind, arguments in noises.items():
        yield Target(kind.__name__, kind, good(kind, **arguments), used_noise, kind="constructor")
    for kind, scale in ((pnd.Gaussian, "stddev"), (pnd.Uniform, "half_width")):
        yield Target(kind.__name__, kind, {"rate": lambda: 0.5}, used_noise, kind="constructor")
        yield Target(f"{kind.__name__} by {scale}", kind, {scale: lambda: 0.5}, used_noise, kind="constructor")
    s = pnd.schedules
    rate, steps = {"rate": lambda: 0.5}, {"steps": lambda: 100}
    schedules = [
        (s.Constant, rate),
        (s.Linear, {"start": lambda: 0.0, "end": lambda: 0.5, **steps, "begin": lambda: 0}),
        (s.Annealed, rate | steps),
        (s.Exponential, rate | steps),
        (s.Exponential, rate | {"gamma": lambda: 0.1}),
        (s.Curriculum, rate | steps),
        (s.Curriculum, rate | {"gamma": lambda: 0.1}),
        (s.Step, {"rates": lambda: [0.1, 0.5], "boundaries": lambda: [10]}),
        (s.Custom, {"function": lambda: half} | steps),
    ]
    for kind, arguments in schedules:
        yield Target(kind.__name__, kind, arguments, used_schedule, kind="constructor")
    yield Target("Mask", pnd.Mask, good(pnd.Mask, noise=lambda: pnd.Bernoulli(0.5)), hashed, kind="constructor")
    bank = {"noise": lambda: pnd.Bernoulli(0.5), "regime": lambda: "bank", "bank_size": lambda: 3}
    yield Target("Mask of a bank", pnd.Mask, bank, hashed, kind="constructor")
    loss = {"loss": lambda: "sparse_categorical_crossentropy", "paired": lambda: True}
    yield Target("RDrop", pnd.losses.RDrop, good(pnd.losses.RDrop, **loss), used_loss, kind="constructor")
    yield Target("RDropModel", pnd.RDropModel, {"model": model}, kind="constructor")
    own = {"name": lambda: "mine", "data": lambda: data, "model": lambda: network}
    yield Target("Study", study.Study, good(study.Study, **own), kind="constructor")
    yield Target("EpochEndLoss", study.EpochEndLoss, good(study.EpochEndLoss, data=lambda: data), kind="constructor")


def hashed(value):
    hash(value), repr(value)
    return ()


def used_loss(loss):
    config = keras.saving.serialize_keras_object(loss)
    keras.saving.deserialize_keras_object(config)
    return [loss(np.zeros(2), np.array([[0.5, 0.5], [0.9, 0.1]], "float32"))]


@functools.cache
def model():
    layers = [keras.Input((4,)), pnd.Dropout(0.5, seed=1), keras.layers.Dense(3, activation="softmax")]
    return keras.Sequential(layers)


@functools.cache
def plain_model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])


data = (np.ones((50, 4), "float32"), np.zeros(50, "int32"))


def network(slot):
    return keras.Sequential([keras.Input((4,)), *slot(8, activation="relu"), keras.layers.Dense(2)])


# functions


def functions():
    x, w = lambda: ones(3, 4), lambda: ones(4, 5)
    noise, key = lambda: pnd.Bernoulli(0.4), lambda: (3, 1)
    ops = pnd.ops
    listed = lambda result: [result]  # noqa: E731 - as short as its neighbours
    for method in ops.METHODS:
        of = {"noise": (lambda: pnd.Gaussian(0.4))} if method == "local_reparameterization" else {"noise": noise}
        arguments = good(ops.masked_dense, x=x, w=w, key=key, method=lambda method=method: method, **of)
        yield Target(f"masked_dense {method}", ops.masked_dense, arguments, listed, ("x", "w", "key", "sample_ids"))
    masked = good(ops.masked, w=w, noise=noise, key=key)
    yield Target("masked", ops.masked, masked, listed, ("w", "key"))
    sample = good(ops.sample_mask, noise=noise, key=key, shape=lambda: (2, 3, 4))
    yield Target("sample_mask", ops.sample_mask, sample, listed, ("key",))
    bits = good(ops.random_bits, key=key, shape=lambda: (2, 3, 4))
    yield Target("random_bits", ops.random_bits, bits, listed, ("key",))
    yield Target("draw", ops.draw, {"state": lambda: ones(2, dtype="int32")}, tensors=("state",))
    yield Target("backends.get", backends.get, {"name": lambda: NAME}, aliases=("backend",))
    yield Target("backends.of", lambda **kw: backends.of(**kw), {"x": x, "w": w}, tensors=("x", "w"))
    yield Target("parse_sharing", mask.parse_sharing, {"sharing": lambda: "in"}, hashed)
    rates = {"rate": lambda: 0.5, "depth": lambda: 3, "keep_first": lambda: False}
    yield Target("depth_rates", depth_rates, rates)
    p = lambda: tensor(np.full((3, 4), 0.25, "float32"))  # noqa: E731 - as short as its neighbours
    kl = good(pnd.losses.symmetric_kl, p=p, q=p)
    yield Target("symmetric_kl", pnd.losses.symmetric_kl, kl, listed, ("p", "q"))
    rdrop = pnd.losses.RDrop("sparse_categorical_crossentropy", paired=True)
    called = {"y_true": lambda: np.zeros(4), "y_pred": lambda: tensor(np.full((4, 3), 1 / 3, "float32"))}
    yield Target("RDrop call", lambda **kw: rdrop(**kw), called, listed, ("y_pred",))
    rule = lambda layer: pnd.PerNodeDrop(layer) if isinstance(layer, keras.layers.Dense) else None  # noqa: E731 - as short as its neighbours
    yield Target("apply", pnd.apply, {"model": plain_model, "rule": lambda: rule})
    yield Target("fold", pnd.fold, {"model": model})
    yield Target("copy_weights", pnd.copy_weights, {"source": plain_model, "target": model})
    predict = good(pnd.uncertainty.predict, model=model, x=lambda: np.ones((3, 4), "float32"), samples=lambda: 2)
    yield Target("predict", pnd.uncertainty.predict, predict, lambda p: [p.mean], ("x",))
    with_rate = lambda rate: pnd.Bernoulli(0.5).with_rate(rate)  # noqa: E731 - as short as its neighbours
    yield Target("Noise.with_rate", with_rate, {"rate": lambda: 0.5}, used_noise)
    linear = pnd.schedules.Linear(0.0, 0.5, 10)
    yield Target("Schedule call", lambda step: linear(step), {"step": lambda: 3})
    get_noise = pnd.schedules.get_noise
    yield Target("schedules.get_noise", get_noise, {"noise": lambda: "gaussian", "rate": lambda: 0.5})
    layer = pnd.Dropout(0.5, seed=1)
    yield Target("layer.rate", lambda rate: setattr(layer, "rate", rate), {"rate": lambda: 0.5})
    masks = pnd.Masksembles(3, seed=1)
    yield Target("Masksembles.repeated", masks.repeated, {"data": lambda: np.ones((3, 4))})
    registered = {"name": lambda: f"junk-{next(NUMBER)}", "function": lambda: lambda dense, rate, seed: [dense]}
    yield Target("variants.register", variants.register, good(variants.register, **registered))
    yield Target("variants.get", variants.get, {"name": lambda: "dropout"}, aliases=("variants",))


NUMBER = iter(range(10**9))

# calls of layers


@functools.cache
def built(name):
    """A layer of the family that was called once."""
    layer = FAMILY[name].make()
    x = FAMILY[name].inputs(2)
    layer(x)
    return layer


def called(name, training):
    def call(inputs, **kwargs):
        layer = built(name)
        y = layer(inputs, **{"training": training, **kwargs})
        return inputs, y

    return call


def right_shape(result):
    """The output of a layer, which has the batch of the input."""
    inputs, y = result
    first = keras.tree.flatten(inputs)[0]
    assert tuple(y.shape)[:1] == tuple(first.shape)[:1] != (), (tuple(first.shape), tuple(y.shape))
    if any(0 in leaf.shape for leaf in keras.tree.flatten(inputs)):
        return ()  # means of nothing
    return [y]


def layer_calls(names=None):
    for name, case in FAMILY.items():
        if names is not None and name not in names:
            continue
        x = lambda case=case: keras.tree.map_structure(tensor, case.inputs(2))  # noqa: E731 - as short as its neighbours
        yield Target(f"{name} at inference", called(name, False), {"inputs": x}, right_shape, ("inputs",), "layer call")
        arguments = {"inputs": x, "training": lambda: True, "key": lambda: None}
        if name not in ("noisy_attention", "tabu_dropout"):
            arguments["sample_ids"] = lambda: None
        yield Target(
            f"{name} in training",
            called(name, True),
            arguments,
            right_shape,
            ("inputs", "key", "sample_ids"),
            "layer call",
        )


def targets():
    """All of them."""
    return [*layer_targets(), *constructors(), *functions(), *layer_calls()]


def shown(value):
    try:
        return " ".join(repr(value).split())[:60]
    except Exception:  # the int of many digits and the object without a name
        return type(value).__name__


def sweep(chosen, verbose):
    """How often everything chosen had which outcome, by kind; what is to be seen of it is printed."""
    counts, examples = collections.Counter(), collections.defaultdict(list)
    for target in chosen:
        for argument in target.arguments.keys() - set(KERAS_OWN):
            for make in target.junk(argument):
                value = make()
                kind, error = target.outcome({argument: value})
                counts[target.kind, kind] += 1
                if kind not in ("right", "named", "keras") or kind in verbose:
                    place = ""
                    if error is not None:
                        frames = traceback.extract_tb(error.__traceback__)
                        own = [f for f in frames if "pernodedrop" in f.filename or "/backends/" in f.filename]
                        place = " @ " + " < ".join(f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in own[::-1][:2])
                    text = f"{type(error).__name__}: {error}" if error is not None else ""
                    text = " ".join(text.split())[:200]
                    examples[kind, target.name, argument, type(error), place].append(f"{shown(value)} | {text}{place}")
    for (kind, name, argument, *_), cases in examples.items():
        print(f"{kind} | {name} | {argument}, {len(cases)} times, such as {cases[0]}")
    return counts


def main():
    parser = argparse.ArgumentParser(description="Junk for everything public.")
    parser.add_argument("--only", default="", help="what names of targets contain, or kind:function")
    parser.add_argument("--list", nargs="*", default=[], help="kinds of outcomes to list beside faults: keras, named")
    options = parser.parse_args()
    chosen = [t for t in targets() if options.only in t.name or options.only == f"kind:{t.kind}"]
    counts = sweep(chosen, options.list)
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{NAME} {kind}: {count} {outcome}")


if __name__ == "__main__":
    main()
