"""Noise on recurrent layers: what its layers share, which are around one of Keras' or around one another."""

import typing

import keras

from pernodedrop import checks, ops
from pernodedrop._types import Key, Shape, Tensor, Words
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.around import Around
from pernodedrop.layers.base.noisy import Noisy, check_samples, check_size, floating, xp
from pernodedrop.layers.recurrent.cells import cells_of, check_layer
from pernodedrop.mask import Field, Mask


class RecurrentNoise(Noisy, Around):
    """Base of wrappers of a recurrent layer that put noise into its cells.

    A call is that of a shallow copy of the layer whose cells have the noise. Subclasses give `with_noise`, which makes
    the copy, and `without_noise` where inference is not the inner layer.

    Args:
        layer: the inner layer, one of Keras' or one with noise already.
        mask: which mask, a `pernodedrop.Mask`.
        **kwargs: those of `Noisy`. The dtype policy is the inner layer's unless given.
    """

    called_by = ("call", "of_call")
    """The methods through which it is asked for noise: by the second where it is inside another one."""

    def __init__(self, layer: keras.layers.Layer, mask: Mask, **kwargs: typing.Any) -> None:
        check_layer(plain_of(layer))
        if "go_backwards" in kwargs:  # of Bidirectional, which makes a layer that goes the other way of the config
            name = type(self).__name__
            expected = f"it in the inner layer, and {name}(keras.layers.Bidirectional(layer)), not the other way round"
            raise TypeError(checks.invalid("go_backwards", expected, kwargs["go_backwards"]))
        super().__init__(mask=mask, layer=layer, **{"dtype": layer.dtype_policy, **kwargs})
        self.supports_masking = True

    def build(self, inputs_shape: Shape, initial_state_shape: typing.Any = None) -> None:
        if not self.layer.built:
            self.layer.build(inputs_shape)
            self.layer.built = True

    def call(
        self,
        inputs: Tensor,
        initial_state: typing.Any = None,
        mask: Tensor | None = None,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> typing.Any:
        check_samples(inputs)
        if mask is None and initial_state is None:  # Keras does not look for it beside a tensor of a key or of ids
            mask = of_keras.mask_of(inputs)
        inputs = keras.ops.convert_to_tensor(inputs)
        ops.check_layout("inputs", inputs, ("dense",), xp)
        if len(inputs.shape) != 3:
            raise ValueError(checks.invalid("inputs", "a tensor (batch, time, features)", tuple(inputs.shape)))
        check_size(inputs, -1, cells_of(self.plain)[0].kernel.shape[0])
        layer, inputs = self.of_call(inputs, training, key, sample_ids)
        outputs = layer(inputs, initial_state=initial_state, mask=mask, training=training)
        return keras.tree.map_structure(lambda tensor: keras.ops.cast(tensor, self.compute_dtype), outputs)

    def of_call(
        self, inputs: Tensor, training: bool | None, key: Key | None, sample_ids: Tensor | None
    ) -> tuple[keras.layers.Layer, Tensor]:
        """Keras' layer with the noise of a call, its own and that of the layers inside, and the inputs it takes.

        Those are the call's, and beside them what cells have of their own at each step.
        """
        layer = self.layer
        if isinstance(layer, RecurrentNoise):
            layer, inputs = layer.of_call(inputs, training, None, None if "sample" in layer.sharing else sample_ids)
        if not self.has_noise(training):
            return self.without_noise(layer, inputs)
        inputs = floating(inputs)
        return self.with_noise(layer, inputs, self.field(key, xp.device(inputs)), self.samples(inputs, sample_ids))

    def with_noise(
        self, layer: keras.layers.Layer, inputs: Tensor, field: Field, samples: Words
    ) -> tuple[keras.layers.Layer, Tensor]:
        """What `of_call` gives, of a layer with the noise of those inside and its inputs.

        Args:
            layer: Keras' layer, or a copy of it.
            inputs: (batch, time, in), the call's with what is beside them.
            field: the mask at its key.
            samples: word tensor (batch,), the sample coordinates.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `with_noise`")

    def without_noise(self, layer: keras.layers.Layer, inputs: Tensor) -> tuple[keras.layers.Layer, Tensor]:
        """The same for a call without noise."""
        return layer, inputs

    @property
    def plain(self) -> keras.layers.Layer:
        """Keras' layer inside, which may be inside of others with noise."""
        return plain_of(self.layer)

    def reset_state(self) -> None:
        """Set the states of a stateful layer to zero."""
        self.layer.reset_state()

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> typing.Any:
        """The mask that the inner layer passes on."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, inputs_shape: Shape, initial_state_shape: typing.Any = None) -> typing.Any:
        return self.layer.compute_output_shape(inputs_shape, initial_state_shape)


def plain_of(layer: typing.Any) -> typing.Any:
    """A layer, or what is inside its noise."""
    return layer.plain if isinstance(layer, RecurrentNoise) else layer
