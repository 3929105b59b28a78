"""NoisyAttention: weight noise on the projections of attention."""

import collections.abc
import typing

import keras

from pernodedrop import checks, generator
from pernodedrop._types import Config, Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.around_attention import OF_LAYER, AroundAttention, check_attention
from pernodedrop.layers.base.noisy import Noisy, check_built
from pernodedrop.layers.base.weight_noise import WeightNoise

PROJECTIONS = ("query", "key", "value", "output")


@keras.saving.register_keras_serializable("pernodedrop")
class NoisyAttention(AroundAttention):
    """Puts weight noise on the projections of a `keras.layers.MultiHeadAttention` or `GroupQueryAttention`.

    Each projection multiplies its input by a kernel, and is wrapped by a weight noise of its own, whose mask is that of
    a layer with positions: PerNodeDrop's is shared by a sample's positions. What comes between the projections is the
    inner layer's. At inference the layer is the inner layer (with the masks of a fixed or bank regime). The gate of
    `use_gate=True` has no noise.

    Args:
        layer: the inner layer, a `keras.layers.MultiHeadAttention` or `GroupQueryAttention`, or a subclass; or a
            `pernodedrop.AttentionDropout` around one.
        wrapper: the weight noise, a class such as `pernodedrop.PerNodeDrop` or `pernodedrop.DropConnect`.
        projections: which are wrapped, some of "query", "key", "value", "output"; all.
        seed: any int, from which each projection has a seed of its own; None takes them from Python's `random`.
        **kwargs: arguments of the wrapper, such as `rate=0.1`, the same for all projections; and `name`, `dtype` and
            `trainable` of this layer. The dtype policy is the inner layer's unless given.

    Call arguments: those of the inner layer, (query, value, key=None, ...), where `key` is attention's, and
    `keys`, those to use instead of drawing them: a dict from `draw()`, with one for each projection.

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
        check_attention(layer, NoisyAttention)
        if not (isinstance(wrapper, type) and issubclass(wrapper, WeightNoise)):
            expected = "a class of weight noise, such as pernodedrop.PerNodeDrop"
            raise TypeError(checks.invalid("wrapper", expected, wrapper))
        names = checks.check_names(projections, "projections", PROJECTIONS)
        of_layer = {name: kwargs.pop(name) for name in OF_LAYER if name in kwargs}
        # refuses its arguments here rather than when the projections are there
        like = wrapper(keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 1)), **kwargs)
        super().__init__(layer, like, **of_layer)
        self.wrapper: typing.Any = wrapper
        self.projections = names
        self._seed = checks.check_seed(seed)
        # Keras would turn containers in an attribute into its own
        self._arguments: typing.Callable[[], dict[str, typing.Any]] = lambda: kwargs

    def make_parts(self) -> dict[str, Noisy]:
        return {name: self._wrapped(name) for name in self.projections}

    def with_parts(
        self, layer: keras.layers.Layer, parts: dict[str, typing.Callable[..., Tensor]], training: bool | None
    ) -> keras.layers.Layer:
        return of_keras.with_projections(layer, parts)

    def get_config(self) -> Config:
        return {
            **self.one.get_config(),
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
        plain = self.folded_layer()
        for name, part in self.parts.items():
            of_keras.projection(plain, name).set_weights(part.fold().get_weights())
        return plain

    @property
    def given_seed(self) -> int | None:
        return self._seed

    def _wrapped(self, name: str) -> typing.Any:
        projection = of_keras.projection(self.plain, name)
        seed = None if self._seed is None else generator.sibling_seed(self._seed, PROJECTIONS.index(name))
        # not by the name of the projection: the path of its noise would be a folder and a variable, as `key/key`
        wrapper = self.wrapper(projection, seed=seed, name=f"{name}_noise", **self._arguments())
        wrapper.build(projection.get_build_config()["input_shape"])
        return wrapper
