"""The passes of a model: inference with noise.

Nothing is added to the model and nothing of it is changed: a pass is a function of the model's variables, which it is
given other keys for and whose new values are dropped.
"""

import collections.abc
import contextlib
import functools
import math
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Array, Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers.base import stochastic
from pernodedrop.layers.base.noisy import Noisy
from pernodedrop.uncertainty import changes
from pernodedrop.uncertainty.changes import Arguments
from pernodedrop.uncertainty.prediction import Outputs, chosen_of, named, word_of

WORD = "int32"

IN_TRAINING = (
    "The model is in training, in which JAX has its variables to itself. Expected a call "
    "of `predict` before `fit`, after it, or in a callback at the end of an epoch."
)


IN_STRATEGY = (
    "`predict` was called within the scope of {}, whose replicas would all make every pass. Expected a call outside of "
    "it, which takes a model that was made inside."
)


class Passes:
    """The noisy passes of a model, compiled once."""

    def __init__(self, model: keras.Model, seed: int, chosen: typing.Any = None, may_be_quiet: bool = False) -> None:
        self.seed = seed
        if keras.backend.backend() == "jax":
            for variable in model.variables:
                _held(variable)
        layers = of_keras.layers_of(model)
        self.ensembles = [layer for layer in layers if isinstance(layer, Noisy) and layer.members]
        self.noisy = [layer for layer in layers if stochastic.is_stochastic(layer) and layer not in self.ensembles]
        self.torch = {layer: modules for layer in layers if (modules := stochastic.torch_noise(layer))}
        if not (self.noisy or self.ensembles or self.torch or may_be_quiet):
            raise ValueError(checks.invalid("model", "a model with noise layers: its passes would all be equal", model))
        # a call number stays what it is, since a schedule's rate depends on it
        self.keys = [(layer, _host(layer._key)[1]) for layer in self.noisy if isinstance(layer, Noisy)]
        self.generators = _generators(self.noisy)
        self.places = len(self.noisy)
        self.fixed: list[keras.layers.Layer] = []  # that have members, and are not to be sampled
        if chosen is not None:
            self._choose(chosen, layers)
        noise, members = {*self.noisy, *self.torch}, {*self.ensembles, *self.fixed}
        others = [layer for layer in layers if layer not in members]
        self.quiet = [layer for layer in others if noise.isdisjoint(of_keras.layers_of(layer))]
        self.forward = _Forward(model, self.changed)
        strategy = getattr(self.forward, "distribute_strategy", None)  # of TensorFlow
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            raise RuntimeError(IN_STRATEGY.format(strategy))
        self.variables = [one for one, value in self.state(0, 0) if value is not None]

    def _choose(self, chosen: typing.Any, layers: list[keras.layers.Layer]) -> None:
        """Has no other layers make noise than those chosen, or inside of them; places and masks stay what they are."""
        noise = [layer for layer in layers if layer in {*self.noisy, *self.ensembles, *self.torch}]
        wanted = chosen_of(chosen, noise, [(layer.name, layer) for layer in layers], of_keras.layers_of)
        self.fixed = [layer for layer in self.ensembles if layer not in wanted]
        self.ensembles = [layer for layer in self.ensembles if layer in wanted]
        self.noisy = [layer for layer in self.noisy if layer in wanted]
        self.torch = {layer: modules for layer, modules in self.torch.items() if layer in wanted}

    @property
    def members(self) -> int:
        """The number of passes in which each member of all layers is as often as others."""
        return math.lcm(*(typing.cast(int, layer.members) for layer in self.ensembles))

    @property
    def has_noise(self) -> bool:
        """Whether more passes than members say more."""
        return bool(self.noisy or self.torch)

    def run(self, x: typing.Any, rows: int, start: int, sample: int) -> Outputs:
        """The outputs of pass `sample` for the batch of so many rows whose first is row `start` of the whole."""
        values = [value for _, value in self.state(start, sample) if value is not None]
        numbers = {"start": np.asarray(start, WORD), "sample": np.asarray(sample, WORD)}
        outputs = named(self.forward.run({"x": x, "values": values, **numbers}))
        return {name: _output(y, rows) for name, y in outputs.items()}

    def state(self, start: int, sample: int) -> list[tuple[keras.Variable, Tensor | None]]:
        """The values of variables that a pass is given; None: it finds that of the model itself."""
        with keras.StatelessScope() as state:
            for index, (layer, call) in enumerate(self.keys):
                layer._key.assign(np.array([word_of(self.seed, index, sample), call], WORD))
                layer.to_steady_state()
            for index, one in enumerate(self.generators):
                one.state.assign([word_of(self.seed, index, sample, start), 0])
        in_jax = keras.backend.backend() == "jax"

        def given(variable: keras.Variable) -> Tensor | None:
            value = state.get_current_value(variable)
            return _held(variable) if in_jax and value is None else value

        return [(variable, given(variable)) for variable in self.forward.model.variables]

    @contextlib.contextmanager
    def changed(self, data: Arguments) -> collections.abc.Iterator[None]:
        """Has the layers make noise, and be the members that the pass asks for."""

        def make_noise(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            if not changes.is_noisy_in_training(arguments):
                return
            arguments["training"] = True
            takes_ids = isinstance(layer, Noisy) and not stochastic.shares_noise(layer)
            if takes_ids and arguments.get("sample_ids") is None:
                be_member_of_place(layer, arguments, rows)

        def be_member_of_place(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            # the layer's rows are the batch's, or each sample of the batch has been made several of them
            first = data["start"] * (rows // keras.ops.shape(keras.tree.flatten(data["x"])[0])[0])
            arguments["sample_ids"] = first + keras.ops.arange(rows, dtype=WORD)

        def be_member(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            arguments["sample_ids"] = keras.ops.zeros((rows,), WORD) + data["sample"]

        def stay_in_inference(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            if "training" in arguments:
                arguments["training"] = arguments["training"] is not changes.UNTOLD and arguments["training"]

        def make_noise_of_torch(layer: keras.layers.Layer, arguments: Arguments, rows: typing.Any) -> None:
            of_torch[layer] = changes.is_noisy_in_training(arguments)
            arguments["training"] = False

        of_torch: dict[keras.layers.Layer, bool] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(changes.CHANGING)
            stack.enter_context(keras.StatelessScope(zip(self.variables, data["values"], strict=True)))
            for layer in of_keras.layers_of(self.forward.model):
                stack.enter_context(of_keras.without_remat(layer))
                if isinstance(layer, keras.layers.TorchModuleWrapper):
                    stack.enter_context(changes.modes_kept(layer))
            changed = [
                *((layer, make_noise) for layer in self.noisy),
                *((layer, be_member) for layer in self.ensembles),
                *((layer, be_member_of_place) for layer in self.fixed),
                *((layer, stay_in_inference) for layer in self.quiet),
                *((layer, make_noise_of_torch) for layer in self.torch),
            ]
            for layer, change in changed:
                for context in changes.changed(layer, change):
                    stack.enter_context(context)
            if self.torch:
                word = word_of(self.seed, self.places, int(data["sample"]), int(data["start"]))
                stack.enter_context(changes.training(self.torch, of_torch, word))
            for generator in self.generators:
                stack.enter_context(of_keras.seeded(generator))
            for layer in of_keras.layers_of(self.forward.model):
                stack.callback(changes.forget_masks, layer)
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
        return self.__call__(data[0], training=changes.UNTOLD)

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


def _output(output: typing.Any, rows: int) -> Array:
    """What a pass has returned, or one of several things, as the array that is expected of it."""
    if not hasattr(output, "shape"):
        raise ValueError(
            checks.invalid("model", "a model whose outputs are arrays, or one dict or list of them", output)
        )
    y = np.asarray(output).astype("float64")
    if y.shape[:1] != (rows,):
        raise ValueError(checks.invalid("model", f"one output for each of the {rows} samples of a batch", y.shape))
    return y


def build(model: keras.Model, x: typing.Any) -> None:
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


def _host(variable: keras.Variable) -> typing.Any:
    return np.array(keras.ops.convert_to_numpy(variable.value))


def _generators(layers: list[keras.layers.Layer]) -> list[keras.random.SeedGenerator]:
    """The seed generators of Keras' layers, and of the cells inside recurrent ones."""
    inner = [one for layer in layers if not isinstance(layer, Noisy) for one in of_keras.layers_of(layer)]
    found = {id(one): one.seed_generator for one in inner if getattr(one, "seed_generator", None) is not None}
    return list(found.values())
