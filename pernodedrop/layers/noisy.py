"""What every noisy Keras layer has: a mask, its noise's numbers and its key in variables, one draw a call."""

import random
import typing

import keras
import numpy as np

from pernodedrop import backends, checks, generator, ops
from pernodedrop._types import Config, Key, Tensor, Words
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Noise

xp = backends.get(keras.backend.backend())
"""The ops namespace of the one framework that Keras layers run on in this process."""


class Noisy(keras.layers.Layer):
    """Base of noisy layers, a mixin before `keras.layers.Layer` or `keras.layers.Wrapper`.

    Its state is saved with the model and restored on any backend:
        key: int32 (2,), the bits of (seed, call). Each draw advances the call number.
        one scalar for each number of the noise, so that a new rate takes effect after compilation.

    Args:
        mask: which mask, a `pernodedrop.Mask`.
        seed: int, any; None takes one from Python's `random`, which `keras.utils.set_random_seed` seeds.
    """

    def __init__(self, mask: Mask, seed: int | None = None, **kwargs: typing.Any) -> None:
        if seed is not None and not checks.is_int(seed):
            raise TypeError(checks.invalid("seed", "an int or None", seed))
        super().__init__(**kwargs)
        self.mask = mask
        self.seed = seed
        first = generator.seed_word(random.getrandbits(32) if seed is None else seed)
        self._key = self._state("key", np.array([first, 0], "uint32").view("int32"))
        self._numbers = {name: self._state(name, value) for name, value in mask.noise.params().items()}

    @property
    def noise(self) -> Noise:
        """The noise with its present numbers."""
        numbers = {name: keras.ops.convert_to_numpy(variable)[()] for name, variable in self._numbers.items()}
        return self.mask.noise.with_params(numbers)

    @property
    def rate(self) -> float | None:
        """The present drop rate. Setting it takes effect from the next call, compiled or not."""
        return getattr(self.noise, "rate", None)

    @rate.setter
    def rate(self, rate: float) -> None:
        for name, value in self.noise.with_rate(checks.check_rate(rate)).params().items():
            self._numbers[name].assign(value)

    def draw(self) -> Tensor:
        """The next key: an integer tensor of length 2, (seed, call), for `layer(x, training=True, key=key)`.

        Draw outside `keras.remat` and pass the key to the layer inside, so that the backward pass, which makes the
        forward pass again, makes the same mask.

        Raises:
            RuntimeError: inside a rematerialized function, on TensorFlow and torch (JAX itself refuses).
        """
        if self.mask.regime != "dynamic":
            return xp.asarray(self._key.value)
        xp.refuse_redraw()
        return xp.draw(self._key)

    def rematerialized_call(
        self, layer_call: typing.Callable[..., Tensor], *args: typing.Any, **kwargs: typing.Any
    ) -> typing.Callable[..., Tensor]:
        # The key is drawn here, outside what the backward pass makes again. All keywords are closed over, because
        # TensorFlow's recomputation accepts none and JAX's would trace `training`.
        if kwargs.get("key") is None and self.is_noisy(kwargs.get("training")):
            kwargs["key"] = self.draw()
        again = super().rematerialized_call(lambda *args: layer_call(*args, **kwargs), *args)
        return lambda *args, **_: again(*args)

    def get_config(self) -> Config:
        return {**super().get_config(), "seed": self.seed}

    def is_noisy(self, training: bool | None) -> bool:
        """Whether a call has noise."""
        return bool(training) or self.mask.at_inference

    def field(self, key: Key | None, device: typing.Any) -> Field:
        """The mask at a key, by default the next one."""
        key = self.draw() if key is None else key
        key = ops.key_words(key, device, xp)
        numbers = {name: xp.asarray(variable.value) for name, variable in self._numbers.items()}
        return Field(self.mask.noise, numbers, self.mask.key(key, xp))

    def samples(self, x: Tensor, sample_ids: Tensor | None) -> Words:
        """The sample coordinates of the rows of x."""
        if sample_ids is not None:
            if "sample" in self.mask.sharing:
                refuse_sample_ids(sample_ids)
            return self.mask.samples(ops.check_sample_ids(sample_ids, x, xp), xp)
        if self.mask.regime == "example":
            raise ValueError(checks.invalid("sample_ids", "the examples' ids with regime='example'", None))
        batch = xp.shape(x)[0]
        words = xp.arange(batch, like=x)
        if self.mask.regime != "fixed":
            words = words + xp.as_word(xp.replica_offset(batch))
        return self.mask.samples(words, xp)

    def _state(self, name: str, value: np.generic | np.typing.NDArray[np.int32]) -> keras.Variable:
        value = np.asarray(value)
        return self.add_weight(
            name=name,
            shape=value.shape,
            dtype=str(value.dtype),
            initializer=lambda shape, dtype=None: keras.ops.convert_to_tensor(value, dtype),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )


def refuse_sample_ids(sample_ids: Tensor) -> typing.NoReturn:
    """Raise: there is no sample coordinate that ids could be."""
    raise ValueError(checks.invalid("sample_ids", "None: this mask is the same for all samples", sample_ids))


def floating(inputs: Tensor) -> Tensor:
    """The input of a layer as a tensor, or an error unless it is floating."""
    inputs = keras.ops.convert_to_tensor(inputs)
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(inputs.dtype)):
        raise TypeError(checks.invalid("inputs", "a floating dtype", inputs.dtype))
    return inputs
