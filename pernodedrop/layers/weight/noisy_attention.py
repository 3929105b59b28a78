"""NoisyAttention: weight noise on the projections of attention."""

import collections.abc
import functools
import typing

import keras

from pernodedrop import checks, generator
from pernodedrop._types import Config, Shape, Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.around import Around
from pernodedrop.layers.base.composite import Composite, key_of
from pernodedrop.layers.base.inner import copy_of
from pernodedrop.layers.base.noisy import check_built
from pernodedrop.layers.base.weight_noise import WeightNoise

PROJECTIONS = ("query", "key", "value", "output")
OF_LAYER = ("name", "dtype", "trainable")


@keras.saving.register_keras_serializable("pernodedrop")
class NoisyAttention(Composite, Around):
    """Puts weight noise on the projections of a `keras.layers.MultiHeadAttention`.

    Each projection multiplies its input by a kernel, and is wrapped by a weight noise of its own, whose mask is that of
    a layer with positions: PerNodeDrop's is shared by a sample's positions. What comes between the projections is the
    inner layer's. At inference the layer is the inner layer (with the masks of a fixed or bank regime).

    Args:
        layer: the inner layer, a `keras.layers.MultiHeadAttention` or `GroupQueryAttention`, or a subclass.
        wrapper: the weight noise, a class such as `pernodedrop.PerNodeDrop` or `pernodedrop.DropConnect`.
        projections: which are wrapped, some of "query", "key", "value", "output"; all.
        seed: int, any, from which each projection has a seed of its own; None takes them from Python's `random`.
        **kwargs: arguments of the wrapper, such as `rate=0.1`, the same for all projections; and `name`, `dtype` and
            `trainable` of this layer. The dtype policy is the inner layer's unless given.

    Call arguments: those of the inner layer, (query, value, key=None, ...), where `key` is attention's, and
        keys: the keys to use instead of drawing them, one for each projection, from `draw()`.

    Input and output shapes: the inner layer's. Output dtype: this layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> attention = keras.layers.MultiHeadAttention(num_heads=2, key_dim=3)
    >>> layer = pnd.NoisyAttention(attention, pnd.PerNodeDrop, rate=0.1, seed=1)
    >>> x = np.ones((2, 5, 4), "float32")
    >>> layer(x, x, training=True).shape == (2, 5, 4)
    True
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        wrapper: type[WeightNoise],
        projections: collections.abc.Sequence[str] = PROJECTIONS,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        if not isinstance(layer, keras.layers.MultiHeadAttention | keras.layers.GroupQueryAttention):
            expected = "a keras.layers.MultiHeadAttention or GroupQueryAttention"
            raise TypeError(checks.invalid("layer", expected, layer))
        if not (isinstance(wrapper, type) and issubclass(wrapper, WeightNoise)):
            expected = "a class of weight noise, such as pernodedrop.PerNodeDrop"
            raise TypeError(checks.invalid("wrapper", expected, wrapper))
        names = checks.check_names(projections, "projections", PROJECTIONS)
        of_layer = {name: kwargs.pop(name) for name in OF_LAYER if name in kwargs}
        # refuses its arguments here rather than when the projections are there
        like = wrapper(keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 1)), **kwargs)
        super().__init__(like, layer=layer, **{"dtype": layer.dtype_policy, **of_layer})
        self.wrapper: typing.Any = wrapper
        self.projections = names
        self._seed = checks.check_seed(seed)
        self.supports_masking = True
        # Keras would turn containers in an attribute into its own
        self._arguments: typing.Callable[[], dict[str, typing.Any]] = lambda: kwargs

    def build(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> None:
        if not self.layer.built:
            self.layer.build(query_shape, value_shape, key_shape)
            self.layer.built = True
        self.set_parts({name: self._wrapped(name) for name in self.projections})

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
        def projection(name: str, part: typing.Any) -> typing.Callable[..., Tensor]:
            # where the call is made again nobody else says `training`
            return functools.partial(part, training=training, key=key_of(name, keys))

        projections = {name: projection(name, part) for name, part in self.parts.items()}
        outputs = type(self.layer).call(
            of_keras.with_projections(self.layer, projections),
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

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> Shape:
        return self.layer.compute_output_shape(query_shape, value_shape, key_shape)

    def compute_output_spec(self, query: Tensor, value: Tensor, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        kwargs.pop("keys", None)
        specs = self.layer.compute_output_spec(query, value, *args, **kwargs)
        return keras.tree.map_structure(lambda spec: keras.KerasTensor(spec.shape, self.compute_dtype), specs)

    def get_config(self) -> Config:
        return {
            **self._one.get_config(),
            **super().get_config(),
            "wrapper": keras.saving.get_registered_name(self.wrapper),
            "projections": list(self.projections),
            "seed": self.given_seed,
        }

    @classmethod
    def from_config(cls, config: Config, custom_objects: dict[str, typing.Any] | None = None) -> typing.Self:
        name = config.get("wrapper")
        found = keras.saving.get_registered_object(name, custom_objects) if isinstance(name, str) else None
        return super().from_config({**config, "wrapper": found or name}, custom_objects)

    def fold(self) -> keras.layers.Layer:
        """A plain attention layer, built, with weights of its own, that computes what this layer does at inference.

        Raises:
            ValueError: a layer that is not built.
        """
        check_built(self)
        plain = copy_of(self.layer, dtype=self.dtype_policy)
        for name, part in self.parts.items():
            of_keras.projection(plain, name).set_weights(part.fold().get_weights())
        return plain

    @property
    def given_seed(self) -> int | None:
        return self._seed

    def _wrapped(self, name: str) -> typing.Any:
        projection = of_keras.projection(self.layer, name)
        seed = None if self._seed is None else generator.sibling_seed(self._seed, PROJECTIONS.index(name))
        # not by the name of the projection: the path of its noise would be a folder and a variable, as `key/key`
        wrapper = self.wrapper(projection, seed=seed, name=f"{name}_noise", **self._arguments())
        wrapper.build(projection.get_build_config()["input_shape"])
        return wrapper
