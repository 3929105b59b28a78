"""Everything public that is called, and good arguments for it.

A new function, constructor or layer gets its `Target` here; tests/junk.py gives it what it does not take.
"""

import copy
import dataclasses
import functools
import importlib.util
import inspect
import itertools
import json
import tempfile
import typing

import keras
import numpy as np

import pernodedrop as pnd
import pernodedrop.testing
from pernodedrop import backends, contrast, mask, study, uncertainty
from pernodedrop.layers import depth_rates
from pernodedrop.study import named, variants
from pernodedrop.uncertainty import calibration, decisions, ensembles, metrics, plots  # noqa: F401 - read there
from tests.family import FAMILY
from tests.frameworks import NAME, tensor


@dataclasses.dataclass(frozen=True)
class Target:
    """Something public that is called.

    Args:
        name: of it.
        call: the call.
        arguments: its arguments by name, each a function that makes a good one.
        use: what is done with the result; returns arrays, which should be numbers.
        tensors: the arguments that are tensors, which are given shapes and dtypes too.
        kind: "constructor", "function" or "layer call".
        aliases: other names that errors have for its arguments.
        owner: whose own refusals may keep their words.
        compiles: whether each call compiles anew what is not kept for the next, on JAX.
    """

    name: str
    call: typing.Callable[..., typing.Any]
    arguments: dict[str, typing.Callable[[], typing.Any]]
    use: typing.Callable[[typing.Any], typing.Any] = lambda result: ()
    tensors: tuple[str, ...] = ()
    kind: str = "function"
    aliases: tuple[str, ...] = ()
    owner: str = "keras"
    compiles: bool = False


NOT_CALLED = {
    "nothing is handed to them": {"named.names", "variants.names"},
    "made by what is called": {
        *(f"metrics.{name}" for name in ("BrierDecomposition", "Detection", "Intervals")),
        *(f"metrics.{name}" for name in ("Reliability", "RiskCoverage", "Variances")),
        *("calibration.Isotonic", "calibration.Temperature", "calibration.Vector"),
        *("decisions.ConformalSets", "decisions.Rejection"),
        *("uncertainty.Disagreement", "uncertainty.Prediction", "uncertainty.Report", "variants.Variant"),
        "study.Comparison",
        *(f"testing.{name}" for name in ("Broken", "Finding", "Outcome", "Refused", "Report")),
        "nnx.NoiseState",
    },
    "a class that others derive from": {"noise.Noise", "schedules.Schedule", "testing.NoiseContract"},
}
"""What is public, and is no target: why, and which."""


def targets():
    """All of them."""
    makers = (layer_targets, constructors, functions, of_contrast, of_uncertainty, of_study, of_modules, layer_calls)
    return [target for make in makers for target in make()]


def ones(*shape, dtype="float32"):
    return tensor(np.ones(shape, dtype))


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
    "AttentionDropout": {"layer": lambda: keras.layers.MultiHeadAttention(2, 3)},
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
    "SparseVariationalDropoutRNN": {"layer": lambda: keras.layers.LSTM(2), "examples": lambda: 50},
    "SpatialDropout1D": {"rate": lambda: 0.5},
    "SpatialDropout2D": {"rate": lambda: 0.5},
    "SpatialDropout3D": {"rate": lambda: 0.5},
    "Standout": {"layer": dense},
    "StochasticDepth": {"rate": lambda: 0.5},
    "TabuDropout": {"rate": lambda: 0.1},
    "VariationalDropout": {"layer": dense, "examples": lambda: 50},
    "VariationalDropoutRNN": {"layer": lambda: keras.layers.LSTM(2), "examples": lambda: 50},
    "Zoneout": {"layer": lambda: keras.layers.LSTM(2), "rate": lambda: 0.5},
}
SHAPE_OF = {"1D": (2, 5, 3), "2D": (2, 4, 5, 3), "3D": (2, 3, 4, 5, 3), "NN": (3, 4, 5), "Zoneout": (3, 4, 5)}
KERAS_OWN = ("units", "activation", "initializer", "kernel_initializer", "loss", "metrics")
"""Arguments that are handed to Keras as they are."""


def used_layer(name):
    """What is done with a layer: it is saved, loaded, trained and called."""

    def use(layer):
        x = ones(*SHAPE_OF.get(name, SHAPE_OF.get(name[-2:], (3, 4))))
        if name == "StochasticDepth":
            x = [x, x]
        arguments = (ones(3, 4, 5),) * 2 if "Attention" in name else (x,)
        if name == "GradientRouting":
            arguments = (x, x if layer.routes is None else ones(3, dtype="int32"))
        ids = {"sample_ids": ones(3, dtype="int32")} if getattr(layer, "regime", None) == "example" else {}
        found = [layer(*arguments, training=True, **ids), layer(*arguments, training=False)]
        config = keras.saving.serialize_keras_object(layer)
        again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
        assert again.get_config().keys() == layer.get_config().keys()
        assert repr(layer)
        return keras.tree.flatten(found)

    return use


def layer_targets():
    for name in LAYERS:
        make = getattr(pnd, name)
        arguments = good(make, **LAYERS[name])
        if name != "GradientRouting":  # which draws nothing
            arguments.setdefault("seed", lambda: 1)
        loops = name.endswith("RNN") or name == "Zoneout"
        yield Target(name, make, arguments, used_layer(name), kind="constructor", compiles=loops)
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
    yield Target("AdaptiveTenure", pnd.AdaptiveTenure, good(pnd.AdaptiveTenure, highest=lambda: 3), kind="constructor")
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


def listed(result):
    return [result]


def functions():
    x, w = lambda: ones(3, 4), lambda: ones(4, 5)
    noise, key = lambda: pnd.Bernoulli(0.4), lambda: (3, 1)
    ops = pnd.ops
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
    yield Target("backends.name_of", lambda x: hashed(backends.name_of(x)), {"x": x}, tensors=("x",))
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
    by_name = {"rule": lambda: "all-linear", "regularizer": lambda: "drop_connect", "seed": lambda: 1}
    yield Target("apply by name", pnd.apply, {"model": plain_model, **by_name, "rate": lambda: 0.2})
    yield Target("fold", pnd.fold, {"model": model})
    yield Target("copy_weights", pnd.copy_weights, {"source": plain_model, "target": model})
    predict = good(pnd.uncertainty.predict, model=model, x=lambda: np.ones((3, 4), "float32"), samples=lambda: 2)
    yield Target("predict", pnd.uncertainty.predict, predict, lambda p: [p.mean], ("x",), compiles=True)
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
    registered = {"name": lambda: f"variant-{next(NUMBER)}", "function": lambda: lambda dense, rate, seed: [dense]}
    yield Target("variants.register", variants.register, good(variants.register, **registered))
    losses = {"none": [0.5, 0.6, 0.4], "dropout": [0.4, 0.45, 0.5]}
    yield Target("study.compare", pnd.study.compare, {"values": lambda: losses, "baseline": lambda: "none"}, hashed)
    yield Target("variants.get", variants.get, {"name": lambda: "dropout"}, aliases=("variants",))


def of_contrast():
    """What there is to compare with, made and called."""
    c, softmax = contrast, functools.partial(dense, activation="softmax")

    def used(*shape, wrapped=lambda x: x):
        def use(layer):
            config = keras.saving.serialize_keras_object(layer)
            again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
            assert again.get_config().keys() == layer.get_config().keys()
            outputs = [layer(wrapped(ones(*shape)), training=training) for training in (True, False)]
            return keras.tree.flatten(outputs)

        return use

    seeded = {"seed": lambda: 1}
    exits = {"stages": lambda: [dense(), dense()], "exits": lambda: [softmax(), softmax()]}
    made = {
        c.FractalJoin: (seeded, used(3, 4, wrapped=lambda x: [x, x])),
        c.FractalBlock: ({"units": lambda: [dense() for _ in range(3)], **seeded}, used(3, 4)),
        c.MixtureOfExperts: ({"experts": lambda: [dense(), dense()]}, used(3, 4)),
        c.Capsules: ({"capsules": lambda: 3}, used(3, 5, 4)),
        c.EarlyExits: (exits, used(3, 4)),
    }
    for kind, (arguments, use) in made.items():
        yield Target(kind.__name__, kind, good(kind.__init__, **arguments), use, kind="constructor", compiles=True)
    tensors = {"y_true": lambda: ones(3, 4), "y_pred": lambda: ones(3, 4)}
    yield Target("margin_loss", c.margin_loss, good(c.margin_loss, **tensors), listed, (*tensors,))
    yield Target("squash", c.squash, good(c.squash, s=lambda: ones(3, 4)), listed, ("s",))
    yield Target("lengths", c.lengths, {"capsules": lambda: ones(3, 4)}, listed, ("capsules",))
    mixture, capsules = c.MixtureOfExperts([dense(), dense()]), c.Capsules(3)
    for layer, shape in ((mixture, (3, 4)), (capsules, (3, 5, 4))):
        call = lambda layer=layer, **kw: layer(**kw)  # noqa: E731 - as short as its neighbours
        x = lambda shape=shape: ones(*shape)  # noqa: E731 - as short as its neighbours
        training = {} if layer is capsules else {"training": lambda: True}
        yield Target(f"{type(layer).__name__} call", call, {"inputs": x, **training}, listed, ("inputs",))
    model = c.EarlyExits([dense()], [softmax()])
    predict = {"x": lambda: np.ones((3, 4), "float32"), "batch_size": lambda: 2}
    outputs = lambda found: [found[0]]  # noqa: E731 - as short as its neighbours
    yield Target("predict_exits", model.predict_exits, predict, outputs, ("x",), aliases=("exits",), compiles=True)
    yield Target("thresholds", lambda thresholds: setattr(model, "thresholds", thresholds), {"thresholds": lambda: 0.5})


NUMBER = itertools.count()


def of_uncertainty():
    """Metrics, calibration, decisions, ensembles and plots, which take arrays of any kind."""
    u = uncertainty
    y, p = lambda: np.array([0, 1, 2, 1]), lambda: 0.2 + 0.4 * np.eye(3)[[0, 1, 2, 0]]
    few, more = lambda: np.array([0.5, 1.0, 2.0]), lambda: np.array([1.0, 2.0, 4.0])
    passes = lambda: np.ones((5, 3))  # noqa: E731 - as short as its neighbours
    classes = {"y": y, "p": p}
    functions = {
        **dict.fromkeys((u.metrics.nll, u.metrics.brier_score, u.metrics.brier_decomposition), classes),
        **dict.fromkeys((u.metrics.calibration_error, u.metrics.reliability), classes),
        **dict.fromkeys((u.calibration.isotonic, u.calibration.temperature, u.calibration.vector), classes),
        u.metrics.calibration_error_by_chance: {"p": p},
        u.metrics.crps: {"y": few, "outputs": passes},
        u.metrics.gaussian_crps: {"y": few, "mean": few, "variance": more},
        u.metrics.gaussian_nll: {"y": few, "mean": few, "variance": more},
        u.metrics.intervals: {"y": few, "low": few, "high": more},
        u.metrics.split_variance: {"means": passes, "variances": passes},
        u.metrics.detection: {"inside": few, "outside": more},
        u.metrics.risk_coverage: {"error": few, "uncertainty": more},
        u.metrics.energy: {"logits": p},
        u.decisions.conformal: {key: lambda make=make: np.repeat(make(), 9, 0) for key, make in classes.items()},
        u.decisions.rejection: {
            "wrong": lambda: np.zeros(200, "bool"),
            "uncertainty": lambda: np.arange(200.0),
            "risk": lambda: 0.2,
        },
        u.plots.two_histograms: {"inside": few, "outside": more},
    }
    for function, made in functions.items():
        yield Target(function.__name__, function, good(function, **made), tensors=tuple(made.keys() - {"risk"}))
    share = good(u.decisions.rejection, **{**functions[u.decisions.rejection], "risk": lambda: None})
    share["coverage"] = lambda: 0.9
    yield Target("rejection of a share", u.decisions.rejection, share, tensors=("wrong", "uncertainty"))
    for function in (u.calibration.isotonic, u.calibration.temperature, u.calibration.vector):
        made = function(y(), p())
        yield Target(f"{function.__name__} call", lambda made=made, **kw: made(**kw), {"p": p}, tensors=("p",))
    sets = u.decisions.conformal(np.repeat(y(), 9), np.repeat(p(), 9, 0))
    yield Target("conformal call", lambda **kw: sets(**kw), {"p": p}, tensors=("p",))
    diagram, curve = u.metrics.reliability(y(), p()), u.metrics.risk_coverage(few(), more())
    yield Target("reliability_diagram", u.plots.reliability_diagram, {"found": lambda: diagram})
    yield Target("risk_coverage_curve", u.plots.risk_coverage_curve, {"one": lambda: curve}, aliases=("curves",))
    predicted = u.predict(model(), np.ones((3, 4), "float32"), 2, seed=1)
    drawn = {"found": lambda: predicted.disagreements(2), "images": lambda: np.zeros((3, 2, 2))}
    yield Target("disagreements", u.plots.disagreements, drawn)
    figures = {"found": lambda: predicted.report(np.zeros(3)), "outside": few, "images": lambda: np.zeros((3, 2, 2))}
    yield Target("of_report", u.plots.of_report, figures, tensors=("outside",))
    yield Target("Prediction.report", predicted.report, good(predicted.report, y=lambda: np.zeros(3)))
    yield Target("Prediction.disagreements", predicted.disagreements, good(predicted.disagreements))
    for kind in (u.metrics.BrierScore, u.metrics.CalibrationError):
        name = kind.__name__
        yield Target(
            name, kind, {k: v for k, v in good(kind).items() if k not in ("name", "dtype")}, kind="constructor"
        )
        made = {"y_true": y, "y_pred": p, "sample_weight": lambda: None}
        # of what is no probability the result is NaN, as it says
        yield Target(f"{name} call", lambda kind=kind, **kw: kind()(**kw), made, tensors=tuple(made))
    folder = {"folder": lambda: EMPTY.name}
    deep = good(u.ensembles.DeepEnsemble, make=lambda: plain_model, **folder)
    yield Target("DeepEnsemble", u.ensembles.DeepEnsemble, deep, kind="constructor")
    snapshots = folder | {"epochs": lambda: 2, "learning_rate": lambda: 0.1}
    yield Target("SnapshotEnsemble", u.ensembles.SnapshotEnsemble, snapshots, kind="constructor")


EMPTY = tempfile.TemporaryDirectory()


def of_study():
    """Studies and their variants by name; the kit's own function."""
    yield Target("named.read", named.read, {"name": lambda: "digits"})
    loaded = {"name": lambda: "digits", "data": lambda: None, "seeds": lambda: 2}
    yield Target("named.load", lambda name, **kw: named.load(name, **kw), loaded)
    of_layer = good(variants.of_layer, layer=lambda: "DropConnect")
    yield Target("variants.of_layer", variants.of_layer, of_layer)
    for function in (variants.drop_connect_rates, variants.masksembles):
        yield Target(f"variants.{function.__name__}", function, {"rate": lambda: 0.5})
    chosen = {"backends": lambda: [NAME], "claims": lambda: ["declaration"], "examples": lambda: 1}
    check = good(pnd.testing.check_noise, noise=lambda: pnd.Bernoulli(0.5), **chosen)
    yield Target("check_noise", checked, {name: check[name] for name in check.keys() - {"ops"}})


def checked(claims, **kwargs):
    """`check_noise`, of one claim in the place of all, which take half a minute."""
    return pnd.testing.check_noise(claims=["declaration"] if claims is None else claims, **kwargs)


# native modules

SIZES = {
    "Linear": (4, 5),
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), (4, 5, 2)),
    "Attention": (4, 2),
    **dict.fromkeys(("RNN", "LSTM", "GRU"), (4, 5)),
    "Masksembles": (4,),
}
"""What a module of torch is made of first, by the end of its name."""

SHAPES_OF = {"1d": (2, 4, 5), "2d": (2, 4, 3, 5), "3d": (2, 4, 3, 2, 5)}


def of_modules():
    """Modules of the framework under test, made and called; its functions of whole models."""
    if NAME == "torch":
        yield from of_torch()
    if NAME == "jax" and importlib.util.find_spec("flax"):
        yield from of_nnx()
    if NAME == "jax" and importlib.util.find_spec("equinox"):
        yield from of_equinox()


def used_module(x, call):
    def use(module):
        repr(module)
        return [call(copy.deepcopy(module), x)]

    return use


def modules_of(package, sizes, shapes, common, call):
    """Targets of the modules of a package.

    Args:
        package: its module; its name is that of the framework.
        sizes, shapes: by the end of a class's name, what it is made of first, and the shape of an input.
        common: what all classes are given, functions that make one each, as for `Target`.
        call: (module, x, **arguments), a call with noise.
    """
    place = package.__name__.rpartition(".")[2]
    for name in package.__all__:
        kind = getattr(package, name)
        if not isinstance(kind, type) or name == "NoiseState":
            continue
        first, shape = (
            next((found for end, found in of.items() if name.endswith(end)), default)
            for of, default in ((sizes, ()), (shapes, (3, 4)))
        )
        x = lambda shape=shape: ones(*shape)  # noqa: E731 - as short as its neighbours
        taken = inspect.signature(kind.__init__).parameters
        made = {key: value for key, value in {**common, "rate": lambda: 0.5}.items() if key in taken}
        arguments = good(kind.__init__, **made)
        make = functools.partial(kind, *first)
        yield Target(f"{place}.{name}", make, arguments, used_module(x(), call), kind="constructor", owner=place)
        module = functools.cache(lambda make=make, made=made: make(**{key: f() for key, f in made.items()}))
        called = {key: value for key, value in good(kind.__call__).items() if key not in OF_FRAMEWORK}
        if place == "torch":
            called = {"sample_ids": lambda: None, "key": lambda: None}
        called |= {key: value for key, value in common.items() if key in called}
        (of_x,) = {"torch": ("input",), "nnx": ("inputs",), "equinox": ("x",)}[place]
        calls = lambda module=module, of_x=of_x, **kw: call(module(), kw.pop(of_x), **kw)  # noqa: E731 - a bound call
        tensors = (of_x, "key", "sample_ids", "sample_id")
        aliases = ("query", "key", "value") if name.endswith("Attention") else ()
        given = {of_x: x, **called}
        yield Target(f"{place}.{name} call", calls, given, listed, tensors, "layer call", aliases, owner=place)


OF_FRAMEWORK = ("out_sharding", "deterministic", "inference", "rngs")
"""Arguments of calls that a framework reads by itself."""


def of_torch():
    import torch

    import pernodedrop.torch as pndt

    def call(module, x, sample_ids=None, **kwargs):
        module.train()
        if isinstance(module, torch.nn.MultiheadAttention):
            return module(x, x, x)[0]
        if isinstance(module, torch.nn.RNNBase):
            return module(x, sample_ids=sample_ids, **kwargs)[0]
        return module(x, sample_ids=sample_ids, **kwargs)

    yield from modules_of(pndt, SIZES, SHAPES_OF, {"seed": lambda: 1}, call)
    plain = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))  # noqa: E731 - as its neighbours
    noisy = lambda: pndt.apply(plain(), "all-linear", "per_node_drop", rate=0.5, seed=1)  # noqa: E731 - as its neighbours
    yield from models_of(pndt, plain, noisy, ("input", "sample_ids"))
    replica = {"model": noisy, "rank": lambda: 0, "ranks": lambda: 2}
    yield Target("torch.drawn_keys", lambda **kw: pndt.drawn_keys(**kw).__enter__(), {"model": noisy}, owner="torch")
    yield Target("torch.set_replica", pndt.set_replica, replica, owner="torch")


def of_nnx():
    from flax import nnx

    import pernodedrop.nnx as pndx

    def call(module, x, **kwargs):
        module.train()
        return module(x, **kwargs)

    made = {"rngs": lambda: nnx.Rngs(0), "seed": lambda: 1}
    shapes = {"Conv": (2, 5, 4), "SpatialDropout": (2, 5, 4), "DropBlock": (2, 5, 4)}
    yield from modules_of(pndx, {"Linear": (4, 5), "Conv": (4, 5, (2,)), "Masksembles": (4,)}, shapes, made, call)
    linear = lambda out: nnx.Linear(4, out, rngs=nnx.Rngs(0))  # noqa: E731 - as its neighbours
    plain = lambda: nnx.Sequential(linear(4), linear(2))  # noqa: E731 - as its neighbours
    noisy = lambda: pndx.apply(plain(), "all-linear", "per_node_drop", rate=0.5, seed=1)  # noqa: E731 - as its neighbours
    yield from models_of(pndx, plain, noisy, ("inputs",))
    dynamic = lambda: pndx.DynamicDropConnectLinear(4, 5, rngs=nnx.Rngs(0))  # noqa: E731 - as its neighbours
    gradients = lambda: nnx.grad(lambda model: model(ones(3, 4)).sum())(dynamic())  # noqa: E731 - as its neighbours
    noted = {"model": dynamic, "gradients": gradients}
    yield Target("nnx.note_gradients", pndx.note_gradients, noted, owner="nnx")


def of_equinox():
    import equinox as eqx
    import jax

    import pernodedrop.equinox as pnde

    key = lambda: jax.random.key(0)  # noqa: E731 - as short as its neighbours

    def call(module, x, **kwargs):
        member = {"sample_id": 0} if isinstance(module, pnde.Masksembles) else {}  # which at inference it has to know
        return module(x, **{"key": key(), **member, **kwargs})

    shapes = {"Linear": (4,), "Conv": (4, 5)}
    sizes = {"Linear": (4, 5), "Conv": (1, 4, 5, 2), "Masksembles": (4,)}
    yield from modules_of(pnde, sizes, shapes, {"key": key}, call)
    plain = lambda: eqx.nn.MLP(4, 2, 3, 1, key=key())  # noqa: E731 - as short as its neighbours
    noisy = lambda: pnde.apply(plain(), "all-linear", "per_node_drop", rate=0.5)  # noqa: E731 - as its neighbours
    yield from models_of(pnde, plain, noisy)
    yield Target("equinox.with_key", pnde.with_key, {"model": noisy, "key": key}, tensors=("key",), owner="equinox")
    dynamic = lambda: pnde.DynamicDropConnectLinear(4, 5, key=key())  # noqa: E731 - as its neighbours
    noted = {"model": dynamic, "gradients": dynamic}
    yield Target("equinox.note_gradients", pnde.note_gradients, noted, owner="equinox")


def models_of(package, plain, noisy, aliases=()):
    """What a package does with whole models, of a plain one and one that `apply` made."""
    place = package.__name__.rpartition(".")[2]
    arguments = {"model": plain, "rule": lambda: "all-linear", "regularizer": lambda: "per_node_drop"}
    arguments |= {"exclude": lambda: None, "seed": lambda: None, "rate": lambda: 0.5}
    yield Target(f"{place}.apply", package.apply, arguments, owner=place)
    yield Target(f"{place}.fold", package.fold, {"model": noisy}, owner=place)
    function = package.uncertainty.predict
    arguments = good(function, model=noisy, x=lambda: ones(3, 4), samples=lambda: 2)
    mean = lambda prediction: [prediction.mean]  # noqa: E731 - as short as its neighbours
    yield Target(f"{place}.predict", function, arguments, mean, ("x",), aliases=aliases, owner=place)


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
        if name not in ("noisy_attention", "attention_dropout", "tabu_dropout"):
            arguments["sample_ids"] = lambda: None
        yield Target(
            f"{name} in training",
            called(name, True),
            arguments,
            right_shape,
            ("inputs", "key", "sample_ids"),
            "layer call",
        )
