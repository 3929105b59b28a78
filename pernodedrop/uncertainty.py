"""MC Dropout: predictions with their uncertainty, from passes that keep the noise (arXiv 1506.02142).

The passes are those of the model as it is at inference, except that its noise layers make noise. Nothing is added to
the model and nothing of it is changed: a pass is a function of the model's variables, which it is given other keys for
and whose new values are dropped. While it is traced, the `call` of each noise layer is replaced on the layer itself by
one that trains.
"""

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import random
import threading
import typing
import warnings

import keras
import numpy as np

from pernodedrop import checks, generator
from pernodedrop._types import Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers.base import stochastic
from pernodedrop.layers.base.noisy import Noisy

__all__ = ["Prediction", "predict"]

SAMPLES = 50
SUM_TOLERANCE = 1e-2  # how far from 1 the sum of probabilities in half precision can be
WORD = "int32"

Array: typing.TypeAlias = np.typing.NDArray[np.float64]
Arguments: typing.TypeAlias = dict[str, typing.Any]

CHANGING = threading.RLock()
"""Held while layers are changed, one prediction at a time: models may have layers in common."""

IN_TRAINING = (
    "The model is in training, in which JAX has its variables to itself. Expected a call "
    "of `predict` before `fit`, after it, or in a callback at the end of an epoch."
)


class _Untold(int):
    """`training` of a call that is in inference because nobody says otherwise: false, and yet another than False.

    Layers hand it on, be it by name or by Keras' context, where in training they would hand on True.
    """


UNTOLD = _Untold(0)

EQUAL = (
    "All {} passes were equal. Expected noise that differs between them; a schedule may be at rate 0, and "
    "DynamicDropConnect drops nothing until it was trained."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What `predict` found: NumPy arrays, in float64. Entropies are in nats.

    With p_s the output of pass s, S passes and H the entropy over the classes, which are the last axis:

    Attributes:
        mean: (1/S) sum_s p_s, of the shape of the model's output.
        variance: (1/S) sum_s (p_s - mean)**2, of the same shape.
        predictive_entropy: H(mean), of that shape without its last axis: the whole uncertainty. This and the next three
            are None where the outputs are not probabilities.
        aleatoric: (1/S) sum_s H(p_s), the part that more training data would leave.
        mutual_information: predictive_entropy - aleatoric, from 0: the epistemic part, what the passes disagree about.
        variation_ratio: the share of passes whose most probable class is not the one that most passes chose.
        outputs: all p_s, (S, ...), with `keep=True`; else None.
        samples: S.
        seed: the seed, which gives the same prediction again.
    """

    mean: Array
    variance: Array
    predictive_entropy: Array | None
    aleatoric: Array | None
    mutual_information: Array | None
    variation_ratio: Array | None
    outputs: Array | None
    samples: int
    seed: int


def predict(
    model: keras.Model,
    x: typing.Any,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    from_logits: bool = False,
    probabilities: bool | None = None,
    keep: bool = False,
    verbose: int = 0,
) -> Prediction:
    """Predict with the noise left on, many times, and say how much the passes differ (arXiv 1506.02142).

    Noise layers are found in the model at any depth: those of this library, Keras' dropout and Gaussian noise, also
    inside attention, and the dropout of Keras' recurrent layers; on torch, in a `keras.layers.TorchModuleWrapper`, also
    the modules of `torch.nn` that drop. They behave as in training: what the model itself calls with `training=False`
    makes no noise. All others are in inference: BatchNormalization uses its moving statistics and leaves them as they
    are. Fixed masks are part of the model and stay. Afterwards the model is as it was, the state of its random numbers
    included, also after an exception. Other threads may use the model at the same time, and predict as well; beside
    `fit`, passes have the weights of their moment, or an error says that JAX has them.

    Members: a layer with a number of fixed `members` (regime "bank", Masksembles) is not sampled. Pass s uses its
    member s modulo their number for all samples, so that the same call averages an ensemble.

    With a layer of this library, the mask of sample n of x in pass s depends on (seed, the layer's place in the model,
    its call number, s, n), not on `batch_size`, and a mask shared by the samples of a batch is shared by all of x. Only
    `DropBlock` with `normalize="batch"` depends on `batch_size`, over which it counts. A schedule is where training
    left it. Masks of Keras' and torch's own layers depend on the batch size and on the backend. In the regime "example"
    samples have masks of fresh seeds.

    A layer at rate 0 is no noise, but for one that follows a schedule. Where all passes were equal all the same, as
    after a schedule that ends at rate 0, a warning says so.

    Args:
        model: a Keras model with one output: functional, Sequential or subclassed. It is compiled once in each call of
            `predict`, for all passes.
        x: what `model.predict` takes: an array (n, ...), or a list or dict of them as the model takes it, of NumPy, the
            backend, pandas or SciPy, where sparse ones are made dense batch by batch; or batches of them, as a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a torch `DataLoader` or a generator, that end. Of a batch
            (x, y) or (x, y, sample_weight), only x is used.
        samples: number of passes. None is the number of members where the model has members and no other noise, so
            that the mean is that of the ensemble; otherwise 50, or the next multiple of the number of members. (Of
            layers that differ in it: of the least common multiple.)
        batch_size: samples in a forward pass; None is 32. The last batch is filled up, so that all have one shape. With
            x as batches it is theirs, and None here.
        seed: int, any; None takes one from Python's `random`. A seed gives the same prediction each time.
        from_logits: whether outputs are logits. A softmax, or a sigmoid where the last axis has size 1, is applied
            first, in float64.
        probabilities: whether outputs are probabilities, and have entropies. None decides by their values, see below:
            give False for a regression of one number that may be in [0, 1] for all of x.
        keep: whether to keep the output of every pass; else memory does not depend on `samples`.
        verbose: 1 shows a progress bar; 0.

    Returns:
        A `Prediction`. Outputs can be probabilities if they are non-negative and sum to 1 along the last axis; or if
        that has size 1, or there is none beside the batch's, and all are in [0, 1]: then they are the probability of
        the second of two classes.

    Raises:
        TypeError, ValueError: a model without noise, or with several outputs, or an argument that is not as described,
            such as `probabilities=True` of outputs that cannot be probabilities.
        RuntimeError: a model that `fit` trains at the same time, on JAX.

    Warns:
        UserWarning: all of several passes were equal.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> from pernodedrop import uncertainty
    >>> head = keras.layers.Dense(3, activation="softmax")
    >>> model = keras.Sequential([keras.Input((8,)), pnd.Dropout(0.5), head])
    >>> found = uncertainty.predict(model, np.ones((5, 8), "float32"), samples=20, seed=1)
    >>> found.mean.shape, found.mutual_information.shape
    ((5, 3), (5,))
    """
    if not isinstance(model, keras.Model):
        raise TypeError(checks.invalid("model", "a keras.Model", model))
    checks.check_seed(seed)
    from_logits, keep = checks.check_bool(from_logits, "from_logits"), checks.check_bool(keep, "keep")
    probabilities = checks.check_optional_bool(probabilities, "probabilities")
    if from_logits and probabilities is False:
        raise ValueError(checks.invalid("probabilities", "None or True with from_logits=True", probabilities))
    seed = random.getrandbits(32) if seed is None else int(seed)
    batches, number = _batches(x, batch_size)
    first, width = next(batches, (None, 0))
    if not width:
        raise ValueError(checks.invalid("x", "at least one batch", x))
    if not all(layer.built for layer in of_keras.layers_of(model)):
        _build(model, first)
    passes = _Passes(model, seed)
    samples = passes.default_samples() if samples is None else checks.check_count(samples, "samples")
    progress = keras.utils.Progbar(number and samples * number, verbose=verbose, unit_name="pass")
    found, start = [], 0
    for rows, size in itertools.chain([(first, width)], batches):
        width = max(width, size)  # all batches have one shape where none is larger than those before
        batch = _Statistics(keep, probabilities)
        filled = _rows(rows, 0, width)
        for sample in range(samples):
            batch.add(_outputs(passes.run(filled, start, sample), width, from_logits)[:size])
            progress.add(1)
        found.append(batch.result())
        start += size
    whole = {name: _joined([part[name] for part in found], axis=int(name == "outputs")) for name in found[0]}
    if samples > 1 and not whole["variance"].any():
        warnings.warn(EQUAL.format(samples), stacklevel=2)
    return Prediction(**whole, samples=samples, seed=seed)


class _Passes:
    """The noisy passes of a model, compiled once."""

    def __init__(self, model: keras.Model, seed: int) -> None:
        self.seed = seed
        if keras.backend.backend() == "jax":
            for variable in model.variables:
                _held(variable)
        layers = of_keras.layers_of(model)
        self.ensembles = [layer for layer in layers if isinstance(layer, Noisy) and layer.members]
        self.noisy = [layer for layer in layers if stochastic.is_stochastic(layer) and layer not in self.ensembles]
        self.torch = {layer: modules for layer in layers if (modules := stochastic.torch_noise(layer))}
        noise = {*self.noisy, *self.torch}
        self.quiet = [layer for layer in layers if noise.isdisjoint(of_keras.layers_of(layer))]
        if not (self.noisy or self.ensembles or self.torch):
            raise ValueError(checks.invalid("model", "a model with noise layers: its passes would all be equal", model))
        # a call number stays what it is, since a schedule's rate depends on it
        self.keys = [(layer, _host(layer._key)[1]) for layer in self.noisy if isinstance(layer, Noisy)]
        self.generators = _generators(self.noisy)
        self.forward = _Forward(model, self.changed)
        self.variables = [one for one, value in self.state(0, 0) if value is not None]

    def default_samples(self) -> int:
        """The number of passes that treats all members alike."""
        members = math.lcm(*(typing.cast(int, layer.members) for layer in self.ensembles))
        return math.ceil(SAMPLES / members) * members if self.noisy or self.torch else members

    def run(self, x: typing.Any, start: int, sample: int) -> typing.Any:
        """The outputs of pass `sample` for the batch whose first row is row `start` of the whole."""
        values = [value for _, value in self.state(start, sample) if value is not None]
        numbers = {"start": np.asarray(start, WORD), "sample": np.asarray(sample, WORD)}
        return self.forward.run({"x": x, "values": values, **numbers})

    def state(self, start: int, sample: int) -> list[tuple[keras.Variable, Tensor | None]]:
        """The values of variables that a pass is given; None: it finds that of the model itself."""
        with keras.StatelessScope() as state:
            for index, (layer, call) in enumerate(self.keys):
                layer._key.assign(np.array([_word(self.seed, index, sample), call], WORD))
                layer.to_steady_state()
            for index, one in enumerate(self.generators):
                one.state.assign([_word(self.seed, index, sample, start), 0])
        in_jax = keras.backend.backend() == "jax"

        def given(variable: keras.Variable) -> Tensor | None:
            value = state.get_current_value(variable)
            return _held(variable) if in_jax and value is None else value

        return [(variable, given(variable)) for variable in self.forward.model.variables]

    @contextlib.contextmanager
    def changed(self, data: Arguments) -> collections.abc.Iterator[None]:
        """Has the layers make noise, and be the members that the pass asks for."""

        def make_noise(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            if not _is_noisy_in_training(arguments):
                return
            arguments["training"] = True
            takes_ids = isinstance(layer, Noisy) and not stochastic.shares_noise(layer)
            if takes_ids and arguments.get("sample_ids") is None:
                # the layer's rows are the batch's, or each sample of the batch has been made several of them
                first = data["start"] * (rows // keras.ops.shape(keras.tree.flatten(data["x"])[0])[0])
                arguments["sample_ids"] = first + keras.ops.arange(rows, dtype=WORD)

        def be_member(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            arguments["sample_ids"] = keras.ops.zeros((rows,), WORD) + data["sample"]

        def stay_in_inference(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            if "training" in arguments:
                arguments["training"] = arguments["training"] is not UNTOLD and arguments["training"]

        def make_noise_of_torch(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            of_torch[layer] = _is_noisy_in_training(arguments)
            arguments["training"] = False

        of_torch: dict[keras.layers.Layer, bool] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(CHANGING)
            stack.enter_context(keras.StatelessScope(zip(self.variables, data["values"], strict=True)))
            for layer in of_keras.layers_of(self.forward.model):
                stack.enter_context(of_keras.without_remat(layer))
                if isinstance(layer, keras.layers.TorchModuleWrapper):
                    stack.enter_context(_modes_kept(layer))
            for layer in self.noisy:
                stack.enter_context(_changed(layer, make_noise))
            for layer in self.ensembles:
                stack.enter_context(_changed(layer, be_member))
            for layer in {*self.quiet} - {*self.ensembles}:
                stack.enter_context(_changed(layer, stay_in_inference))
            for layer in self.torch:
                stack.enter_context(_changed(layer, make_noise_of_torch))
            if self.torch:
                word = _word(self.seed, len(self.noisy), int(data["sample"]), int(data["start"]))
                stack.enter_context(_training(self.torch, of_torch, word))
            for generator in self.generators:
                stack.enter_context(of_keras.seeded(generator))
            for layer in of_keras.layers_of(self.forward.model):
                stack.callback(_forget_masks, layer)
            yield


class _Forward(keras.Model):
    """A model at inference, compiled, with its layers changed while it is traced."""

    def __init__(self, model: keras.Model, changed: typing.Callable[..., typing.Any]) -> None:
        with keras.RematScope(mode=None):  # there is no backward pass
            super().__init__(name="forward", dtype="float32", autocast=False)  # the model casts its inputs itself
        self.model, self.changed = model, changed
        self.built = True  # of nothing but the model, which is

    def call(self, data: Arguments, training: bool = False) -> Tensor:
        with self.changed(data):
            return self.model(data["x"])

    def predict_step(self, data: tuple[Arguments, ...]) -> Tensor:
        return self.__call__(data[0], training=UNTOLD)

    def run(self, data: Arguments) -> typing.Any:
        """The outputs, as NumPy arrays."""
        if keras.backend.backend() != "jax":
            return self.predict_on_batch(data)
        # Keras' own function donates the weights to the step: an interrupted one would leave the model without them
        return keras.tree.map_structure(np.asarray, self._jitted(data))

    @functools.cached_property
    def _jitted(self) -> typing.Any:
        import jax

        return jax.jit(lambda data: self.predict_step((data,)))


class _Statistics:
    """What the passes of one batch have in sum."""

    def __init__(self, keep: bool, probabilities: bool | None = None) -> None:
        self.probabilities = probabilities
        self.samples = 0
        self.mean: typing.Any = 0.0
        self.squares: typing.Any = 0.0  # sum of squared differences from the mean, by Welford's recurrence
        # None where the outputs are not probabilities
        self.entropies: typing.Any = None if probabilities is False else 0.0
        self.votes: typing.Any = 0.0
        self.outputs: list[Array] | None = [] if keep else None

    def add(self, y: Array) -> None:
        """One more pass."""
        self.samples += 1
        step = y - self.mean
        self.mean = self.mean + step / self.samples
        self.squares = self.squares + step * (y - self.mean)
        if self.outputs is not None:
            self.outputs.append(y)
        if self.entropies is None:
            return
        p = _classes(y)
        if not ((p >= 0).all() and (abs(p.sum(-1) - 1) <= SUM_TOLERANCE).all()):
            if self.probabilities:
                expected = "None or False for outputs that are not in [0, 1] with sum 1 over the classes"
                raise ValueError(checks.invalid("probabilities", expected, True))
            self.entropies = None
            return
        self.entropies = self.entropies + _entropy(p)
        self.votes = self.votes + (np.arange(p.shape[-1]) == p.argmax(-1)[..., None])

    def result(self) -> dict[str, typing.Any]:
        """The arrays of a `Prediction`."""
        outputs = None if self.outputs is None else np.stack(self.outputs)
        found = {"mean": self.mean, "variance": self.squares / self.samples, "outputs": outputs}
        names = ("predictive_entropy", "aleatoric", "mutual_information", "variation_ratio")
        if self.entropies is None:
            return {**found, **dict.fromkeys(names)}
        whole, part = _entropy(_classes(self.mean)), self.entropies / self.samples
        ratio = 1 - self.votes.max(-1) / self.samples
        return {**found, **dict(zip(names, (whole, part, np.maximum(whole - part, 0), ratio), strict=True))}


def _classes(y: Array) -> Array:
    """Outputs with the classes in the last axis: of one output, the second of two."""
    if y.ndim > 1 and y.shape[-1] > 1:
        return y
    second = y if y.ndim == 1 else y[..., 0]
    return np.stack([1 - second, second], -1)


def _entropy(p: Array) -> Array:
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), -1)


def _outputs(output: typing.Any, rows: int, from_logits: bool) -> Array:
    """What a pass has returned, as the array whose statistics are taken."""
    leaves = keras.tree.flatten(output)
    if len(leaves) != 1:
        raise ValueError(checks.invalid("model", "a model with one output", [leaf.shape for leaf in leaves]))
    y = np.asarray(leaves[0]).astype("float64")
    if y.shape[:1] != (rows,):
        raise ValueError(checks.invalid("model", f"one output for each of the {rows} samples of a batch", y.shape))
    if not from_logits:
        return y
    if y.ndim == 1 or y.shape[-1] == 1:
        return np.exp(-np.logaddexp(0, -y))
    powers = np.exp(y - y.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _joined(parts: list[Array | None], axis: int) -> typing.Any:
    """The arrays of all batches as one; None if one of them has none."""
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays, axis) if len(arrays) == len(parts) else None


def _batches(
    x: typing.Any, batch_size: int | None
) -> tuple[collections.abc.Iterator[tuple[typing.Any, int]], int | None]:
    """The batches of `x` with NumPy arrays, each with how many samples it has, and the number of batches, if known.

    All that `model.predict` takes is one of two: arrays, or what gives batches of them.
    """
    if isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            raise ValueError(checks.invalid("x", "a PyDataset whose `num_batches` is not None", x))
        given, number = map(x.__getitem__, range(x.num_batches)), x.num_batches
    elif isinstance(x, list | tuple | dict | str) or hasattr(x, "shape") or not hasattr(x, "__iter__"):
        batch_size = 32 if batch_size is None else checks.check_count(batch_size, "batch_size")
        arrays, size = _arrays(x)
        starts = range(0, size, batch_size)
        sizes = [min(batch_size, size - start) for start in starts]
        return ((_rows(arrays, start, count), count) for start, count in zip(starts, sizes, strict=True)), len(starts)
    else:
        given, number = iter(x), len(x) if isinstance(x, collections.abc.Sized) else None
    if batch_size is not None:
        raise ValueError(checks.invalid("batch_size", "None where `x` gives batches, which have their own", batch_size))

    def inputs_of(batch: typing.Any) -> tuple[typing.Any, int]:
        arrays, size = _arrays(keras.utils.unpack_x_y_sample_weight(batch)[0])
        return _rows(arrays, 0, size), size

    return map(inputs_of, given), number


def _arrays(x: typing.Any) -> tuple[typing.Any, int]:
    """`x` with arrays of NumPy, or of SciPy where it has such, and how many samples they have."""
    leaves = keras.tree.flatten(x)
    expected = "an array with samples first, or a list or dict of them, of equal lengths from 1"
    if not all(hasattr(leaf, "shape") for leaf in leaves):
        raise TypeError(checks.invalid("x", expected, x))
    sizes = {tuple(leaf.shape)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(checks.invalid("x", expected, [tuple(leaf.shape) for leaf in leaves]))

    def of_numpy(leaf: typing.Any) -> typing.Any:
        return leaf.tocsr() if hasattr(leaf, "tocsr") else keras.ops.convert_to_numpy(leaf)

    return keras.tree.map_structure(of_numpy, x), sizes.pop()[0]


def _rows(x: typing.Any, start: int, count: int) -> typing.Any:
    """Rows of `x` from `start`, as NumPy arrays; its last row stands for those that are missing."""

    def of(leaf: typing.Any) -> typing.Any:
        rows = leaf[np.minimum(np.arange(start, start + count), leaf.shape[0] - 1)]
        return rows.toarray() if hasattr(rows, "toarray") else rows

    return keras.tree.map_structure(of, x)


def _build(model: keras.Model, x: typing.Any) -> None:
    """Calls a model that is not built, and leaves the states of its recurrent layers as they were, or to begin with."""
    built = [layer for layer in of_keras.layers_of(model) if layer.built]
    kept = [(variable, _host(variable)) for variable in model.variables if not variable.trainable]
    try:
        model(x, training=False)
    finally:
        for variable, value in kept:
            variable.assign(value)
        for layer in of_keras.layers_of(model):
            if layer not in built and getattr(layer, "stateful", False):
                layer.reset_state()


def _held(variable: keras.Variable) -> Tensor:
    """The value of a variable, or an error where a training on JAX has taken it."""
    value = of_keras.value_held(variable)
    if value is None or value.is_deleted():
        raise RuntimeError(IN_TRAINING)
    return value


def _forget_masks(layer: keras.layers.Layer) -> None:
    """Has a recurrent cell forget the masks that it kept for all steps of a pass which did not end."""
    if hasattr(layer, "reset_dropout_mask"):
        layer.reset_dropout_mask()
        layer.reset_recurrent_dropout_mask()


def _host(variable: keras.Variable) -> typing.Any:
    return np.array(keras.ops.convert_to_numpy(variable.value))


def _generators(layers: list[keras.layers.Layer]) -> list[keras.random.SeedGenerator]:
    """The seed generators of Keras' layers, and of the cells inside recurrent ones."""
    inner = [one for layer in layers if not isinstance(layer, Noisy) for one in of_keras.layers_of(layer)]
    found = {id(one): one.seed_generator for one in inner if getattr(one, "seed_generator", None) is not None}
    return list(found.values())


def _word(*numbers: int) -> int:
    """31 bits mixed from integers: sums of seeds and places would give siblings and neighbours the same masks."""
    return generator.digest(repr(numbers)) >> 1


def _is_noisy_in_training(arguments: Arguments) -> bool:
    """Whether a call that has these arguments in a pass makes noise in training."""
    training = arguments.get("training")
    return training is UNTOLD or bool(training)


@contextlib.contextmanager
def _modes_kept(layer: keras.layers.Layer) -> collections.abc.Iterator[None]:
    """Has a layer of torch, whose calls note on its modules whether they train, leave them as they were."""
    modes = [(module, module.training) for module in layer.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _training(
    modules: dict[keras.layers.Layer, list[typing.Any]], noisy: dict[keras.layers.Layer, bool], word: int
) -> collections.abc.Iterator[None]:
    """Has modules of torch, by the layer that they are in, train where it is `noisy`, with random numbers of a word."""
    import torch

    def put(layer: keras.layers.Layer, module: typing.Any) -> typing.Any:
        return module.register_forward_pre_hook(lambda *_: setattr(module, "training", noisy[layer]))

    hooks = [put(layer, module) for layer, inside in modules.items() for module in inside]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(word)
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _changed(
    layer: keras.layers.Layer, change: typing.Callable[[keras.layers.Layer, Arguments, typing.Any], None]
) -> contextlib.AbstractContextManager[None]:
    """Has `change(layer, arguments, rows)` change the arguments of this thread's calls of a layer.

    Those, that is, which the layer's `call` knows.
    """
    call, thread = layer.call, threading.get_ident()
    signature = inspect.signature(call)

    def changed(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        if threading.get_ident() != thread:
            return call(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        first = keras.tree.flatten(next(iter(bound.arguments.values())))[0]
        change(layer, bound.arguments, keras.ops.shape(first)[0])
        return call(*bound.args, **bound.kwargs)  # an argument of another name is in neither

    return of_keras.calling(layer, changed)
