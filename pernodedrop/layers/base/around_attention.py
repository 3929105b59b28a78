"""What wrappers of attention share: its call, with parts that have noise in the places of its own."""

import functools
import typing

import keras

from pernodedrop import checks, ops
from pernodedrop._types import Shape, Tensor
from pernodedrop.layers.base.around import Around
from pernodedrop.layers.base.composite import Composite, key_of
from pernodedrop.layers.base.inner import copy_of
from pernodedrop.layers.base.noisy import Noisy, check_samples, xp

KINDS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
OF_LAYER = ("name", "dtype", "trainable")


class AroundAttention(Composite, Around):
    """Base of wrappers of attention. A call is that of a shallow copy of the layer, with noisy parts in it.

    Subclasses give:
        make_parts(): the parts by name, of a layer that is built.
        with_parts(layer, parts, training): a shallow copy of Keras' layer with these in it, functions of a tensor.

    Args:
        layer: the inner layer, one of Keras' or one with noise of another class.
        like: a noisy layer like its parts.
        **kwargs: those of `keras.layers.Layer`. The dtype policy is the inner layer's unless given.
    """

    def __init__(self, layer: keras.layers.Layer, like: Noisy, **kwargs: typing.Any) -> None:
        super().__init__(like, layer=layer, **{"dtype": layer.dtype_policy, **kwargs})
        self.supports_masking = True

    def build(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> None:
        if not self.layer.built:
            self.layer.build(query_shape, value_shape, key_shape)
            self.layer.built = True
        self.set_parts(self.make_parts())

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        keys: dict[str, Tensor] | None = None,
    ) -> typing.Any:
        for name, tensor in {"query": query, "value": value, "key": key}.items():
            if tensor is not None:
                check_samples(tensor)
                ops.check_layout(name, keras.ops.convert_to_tensor(tensor), ("dense",), xp)
        layer = self.of_call(training, keys)
        outputs = type(layer).call(
            layer,
            query,
            value,
            key=key,
            query_mask=query_mask,
            value_mask=value_mask,
            key_mask=key_mask,
            attention_mask=attention_mask,
            return_attention_scores=return_attention_scores,
            training=training,
            use_causal_mask=use_causal_mask,
        )
        return keras.tree.map_structure(lambda tensor: keras.ops.cast(tensor, self.compute_dtype), outputs)

    def of_call(self, training: bool | None, keys: dict[str, Tensor] | None) -> keras.layers.Layer:
        """A copy of Keras' layer with the noise of a call, that of the layers inside and its own."""
        layer = self.layer.of_call(training, keys) if isinstance(self.layer, AroundAttention) else self.layer

        def function(name: str, part: typing.Any) -> typing.Callable[..., Tensor]:
            # where the call is made again nobody else says `training`
            return functools.partial(part, training=training, key=key_of(name, keys))

        return self.with_parts(layer, {name: function(name, part) for name, part in self.parts.items()}, training)

    def make_parts(self) -> dict[str, Noisy]:
        """The parts, by name."""
        raise NotImplementedError(f"{type(self).__name__} must define `make_parts`")

    def with_parts(
        self, layer: keras.layers.Layer, parts: dict[str, typing.Callable[..., Tensor]], training: bool | None
    ) -> keras.layers.Layer:
        """A copy of Keras' layer in which these take the place of its own."""
        raise NotImplementedError(f"{type(self).__name__} must define `with_parts`")

    def draw(self) -> dict[str, Tensor]:
        inner = self.layer.draw() if isinstance(self.layer, AroundAttention) else {}
        return {**inner, **super().draw()}

    @property
    def plain(self) -> keras.layers.Layer:
        """Keras' layer inside, which may be inside of another one with noise."""
        return plain_of(self.layer)

    def folded_layer(self) -> keras.layers.Layer:
        """A plain copy of the inner layer, built, that computes what it does at inference."""
        if isinstance(self.layer, AroundAttention):
            return self.layer.fold()
        return copy_of(self.layer, dtype=self.dtype_policy)

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> Shape:
        return self.layer.compute_output_shape(query_shape, value_shape, key_shape)

    def compute_output_spec(self, query: Tensor, value: Tensor, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        kwargs.pop("keys", None)
        specs = self.layer.compute_output_spec(query, value, *args, **kwargs)
        return keras.tree.map_structure(lambda spec: keras.KerasTensor(spec.shape, self.compute_dtype), specs)


def check_attention(layer: typing.Any, around: type[AroundAttention]) -> keras.layers.Layer:
    """Return a layer if it is attention, which may be in wrappers of other classes than `around`, or raise."""
    inner = layer
    while isinstance(inner, AroundAttention) and not isinstance(inner, around):
        inner = inner.layer
    if not isinstance(inner, KINDS):
        expected = "a keras.layers.MultiHeadAttention or GroupQueryAttention, or noise of another kind around one"
        raise TypeError(checks.invalid("layer", expected, layer))
    return layer


def plain_of(layer: typing.Any) -> typing.Any:
    """Attention, or what is inside its noise."""
    return layer.plain if isinstance(layer, AroundAttention) else layer
