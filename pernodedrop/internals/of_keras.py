"""Keras: what the library needs of layers and models and has no public name."""

import collections.abc
import contextlib
import typing

import keras
from keras.src.backend.common import masking, variables

from pernodedrop._types import Tensor

Layer: typing.TypeAlias = keras.layers.Layer
Context: typing.TypeAlias = collections.abc.Iterator[None]

KERAS_OWN = {
    "_functional",
    "_layers",
    "_modules",
    "_operations",
    "_operations_by_depth",
    "_self_unconditional_dependency_names",
}
"""Where Keras, torch and TensorFlow have layers that are also in a graph or in an attribute of their own."""

GRAPH = ("_outputs_struct", "_outputs", "_nodes", "_nodes_by_depth", "_operations", "_operations_by_depth")
"""What a functional model knows of its graph beside the inputs."""


# What a layer has


def layers_of(layer: Layer, itself: bool = True) -> list[Layer]:
    """A layer and all layers inside it, at any depth; public are only the direct ones of a model."""
    return layer._flatten_layers(include_self=itself)


def attributes(layer: Layer) -> dict[str, typing.Any]:
    """The attributes of a layer, without Keras' own lists of what is in them; torch has those that are layers apart."""
    own = {**vars(layer), **vars(layer).get("_modules", {})}
    return {name: own[name] for name in sorted(own.keys() - KERAS_OWN)}


def own_variables(layer: Layer) -> list[keras.Variable]:
    """The variables of a layer itself; `layer.variables` are those of the layers inside it too."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def value_held(variable: keras.Variable) -> Tensor | None:
    """The value that a variable holds: none while `fit` on JAX has it, for which Keras has no word."""
    return variable._value


def seed_generators(layer: Layer) -> list[keras.random.SeedGenerator]:
    """The seed generators of a layer itself, whatever its attributes are called."""
    return layer._seed_generators


def compile_like(model: keras.Model, compiled: keras.Model) -> None:
    """Compile a model with the very optimizer, loss and metrics of another; in public there are copies by config."""
    model.compile(**compiled._compile_config.config)


def retrack(holder: Layer, old: Layer, new: Layer | None) -> None:
    """Have a layer count another one as inside it, or none, where it counts `old`.

    It stays in its position, which is that of its variables in `weights`, and though a built layer takes no more.
    """
    tracker = holder._tracker
    if not tracker.is_in_store("layers", old):
        return
    if new is None or tracker.is_in_store("layers", new):
        tracker.untrack(old)
    else:
        tracker.replace_tracked_value("layers", old, new)


def retrack_variable(holder: Layer, old: keras.Variable, new: keras.Variable) -> None:
    """Have a layer count another variable as its own where it counts `old`, in its position, by which it is saved."""
    for own in (holder._trainable_variables, holder._non_trainable_variables):
        for index, variable in enumerate(own):
            if variable is old:
                own[index] = new
    for ids in holder._tracker.stored_ids.values():
        if id(old) in ids:
            ids.symmetric_difference_update({id(old), id(new)})


def list_variables(layer: Layer) -> None:
    """Tell Keras of the variables inside a layer: on torch it lists them as parameters once, when a layer is built."""
    layer._post_build()


class Placed(Layer):
    """A layer that has variables, or built layers inside it, before its place in a model is known.

    Their paths are those that they had if they were made in its `build`, inside the name scope of the layer that holds
    it, as Keras' own layers make theirs. By them torch's `state_dict` and Keras' `get_state_tree` tell variables apart.
    """

    def add_weight(self, *args: typing.Any, **kwargs: typing.Any) -> keras.Variable:
        variable = super().add_weight(*args, **kwargs)
        variable._path = _path_in(variable.path.rpartition("/")[0], variable, self)
        return variable

    def _open_name_scope(self) -> typing.Any:
        unknown = self._parent_path is None
        scope = super()._open_name_scope()
        if unknown and self._parent_path is not None:
            place(self, self._parent_path)
        return scope


def place(layer: Layer, folder: str) -> None:
    """Give the variables of a layer, and of those inside it, paths in a folder, unless they are in it already."""

    def go(one: Layer, path: str) -> None:
        for variable in own_variables(one):
            if not folder or not variable.path.startswith(f"{folder}/"):
                variable._path = _path_in(path, variable, one)
        for inner in one._layers:
            go(inner, f"{path}/{inner.name}")
        if hasattr(one, "_torch_params"):
            list_variables(one)

    go(layer, f"{folder}/{layer.name}" if folder else layer.name)


def _path_in(folder: str, variable: keras.Variable, layer: Layer) -> str:
    """The path of a layer's variable, which is not the folder of a layer inside it: attention calls one "key"."""
    taken = any(inner.name == variable.name for inner in layer._layers)
    return f"{folder}/{'own_' if taken else ''}{variable.name}"


# The graph of a Sequential or functional model


def forget_graph(model: keras.Model) -> None:
    """Take the nodes of a model's graph from its layers, so that `layer.output` is that of the graph to come."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    nodes = {node for level in graph._nodes_by_depth.values() for node in level}
    for operation in graph.operations:
        operation._outbound_nodes[:] = [node for node in operation._outbound_nodes if node not in nodes]
        if nodes.issuperset(operation._inbound_nodes) and not isinstance(operation, keras.layers.InputLayer):
            operation._inbound_nodes.clear()  # of a layer in two graphs they stay: nodes are known by their position


def take_graph(model: keras.Model, other: keras.Model) -> None:
    """Give a functional model the graph of another one from its inputs. All else of it stays, its class to begin with.

    Not by `setattr`, which would track the layers of what it sets.
    """
    vars(model).update({name: vars(other)[name] for name in GRAPH})


# How a layer is called


def shallow_copy(layer: Layer, /, **changed: typing.Any) -> Layer:
    """The layer with other attributes. It shares the rest with the layer, which is left as it is.

    Not by `setattr`, in which Keras and torch track what is set. A `call` that was put on the layer (`calling`) is left
    out: it leads to the layer.
    """
    copy = object.__new__(type(layer))
    own = {name: value for name, value in vars(layer).items() if name != "call"}
    vars(copy).update({**own, **changed})
    return copy


def name_of_kernel(layer: Layer) -> str:
    """The name of the attribute that has the kernel, or the table, of a layer."""
    return "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"


def with_kernel(layer: Layer, kernel: Tensor, **changed: typing.Any) -> Layer:
    """A shallow copy with another kernel, which most layers have under a private name behind a property."""
    name = name_of_kernel(layer)
    return shallow_copy(layer, **{name: kernel, f"_{name}": kernel}, **changed)


def as_kind(layer: Layer, kind: type[Layer], kernel: Tensor, **changed: typing.Any) -> Layer:
    """A layer of a kind with a kernel and, but for those changed, the attributes of another: a part of what it does."""
    view = object.__new__(kind)
    vars(view).update({**vars(layer), "kernel": kernel, "_kernel": kernel, "lora_enabled": False, **changed})
    return view


def int8_kernel(layer: Layer) -> Tensor:
    """The kernel of a Dense or EinsumDense quantized to int8, in floating point and without LoRA.

    `layer.kernel` adds what LoRA learned to the integers, which have another scale.
    """
    scale = keras.ops.cast(layer.kernel_scale, layer.compute_dtype)
    if isinstance(layer, keras.layers.EinsumDense):
        scale = layer._adjust_scale_for_dequant(scale)  # puts its axes where the kernel has them
    return keras.ops.cast(layer._kernel, layer.compute_dtype) / scale


def projection(attention: Layer, name: str) -> Layer:
    """The layer that makes the "query", "key", "value" or "output" of an attention layer, which has no public name."""
    return getattr(attention, f"_{name}_dense")


def with_projections(attention: Layer, projections: dict[str, typing.Any]) -> Layer:
    """A shallow copy of an attention layer with other projections."""
    return shallow_copy(attention, **{f"_{name}_dense": layer for name, layer in projections.items()})


def with_dropout(attention: Layer, dropout: typing.Callable[..., Tensor]) -> Layer:
    """A shallow copy of an attention layer with another dropout on its weights, and so without flash attention."""
    rate = 1.0  # not 0, at which the weights are not computed; MultiHeadAttention hides its own behind a property
    return shallow_copy(attention, dropout=rate, _dropout=rate, _dropout_layer=dropout, _flash_attention=False)


def weighs_as_keras(attention: Layer) -> bool:
    """Whether an attention layer makes its weights as Keras' does, so that they go to its dropout."""
    kind: typing.Any = next(kind for kind in type(attention).__mro__ if kind.__module__.startswith("keras.src."))
    return type(attention)._compute_attention is kind._compute_attention


def has_flash_attention(attention: Layer) -> bool:
    """Whether an attention layer was told to use flash attention, by itself or by Keras' configuration."""
    return bool(attention._flash_attention)


@contextlib.contextmanager
def calling(layer: Layer, function: typing.Callable[..., typing.Any], method: str = "call") -> Context:
    """Has calls of a layer lead to a function instead of `layer.call`, which Keras looks up on the layer itself."""
    own = vars(layer)  # not by `setattr`, in which Keras and torch track what is set
    before = own.get(method)
    own[method] = function
    try:
        yield
    finally:
        del own[method]
        if before is not None:
            own[method] = before


def autocast(dtype: str | None) -> typing.ContextManager[typing.Any]:
    """Has floating variables read in a dtype, or as they are; Keras does so for layers whose own ones have another."""
    return variables.AutocastScope(dtype)


@contextlib.contextmanager
def without_remat(layer: Layer) -> Context:
    """Has a layer called as it is; of a layer that exists, Keras has no public way to say so."""
    if (mode := layer._remat_mode) is None:
        yield
        return
    layer._remat_mode = None
    try:
        yield
    finally:
        layer._remat_mode = mode


@contextlib.contextmanager
def seeded(generator: keras.random.SeedGenerator) -> Context:
    """Has Keras use a generator that was given no seed; on torch its dropout passes by such ones for torch's own."""
    seed, generator._initial_seed = generator._initial_seed, 0
    try:
        yield
    finally:
        generator._initial_seed = seed


def compiled_loss(model: keras.Model) -> typing.Callable[..., Tensor] | None:
    """The loss of (y, y_pred, sample_weight) that a model was compiled with, by itself: `compute_loss` adds others."""
    return model._compile_loss


# Masks, which a loss of one's own has no public way to


def mask_of(tensor: Tensor) -> Tensor | None:
    """The mask that Keras has noted for a tensor."""
    return masking.get_keras_mask(tensor)


def set_mask(tensor: Tensor, mask: Tensor | None) -> None:
    """Note a mask for a tensor, where Keras' losses look for it."""
    masking.set_keras_mask(tensor, mask)


# Metrics: which way is better, that callbacks ask for, has no public place


def lower_is_better(metric: keras.metrics.Metric) -> None:
    """Tell callbacks with `mode="auto"`, such as EarlyStopping, that a metric is to become small."""
    metric._direction = "down"
