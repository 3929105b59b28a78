"""What every noisy Keras layer has: a mask, its noise's numbers and its key in variables, one draw a call."""

import collections.abc
import math
import typing

import keras
import numpy as np

from pernodedrop import backends, checks, ops, registry
from pernodedrop._types import Config, Params, Tensor, Words
from pernodedrop.layers.base import saving
from pernodedrop.layers.base.module import warn_of_switch
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule
from pernodedrop.state import Regularizer, State

xp = backends.get(keras.backend.backend())
"""The ops namespace of the one framework that Keras layers run on in this process."""

registry.connect(lambda cls, package: keras.saving.register_keras_serializable(package)(cls))


class Noisy(NoiseLayer, Regularizer):
    """Base of noisy layers; it stands before `keras.layers.Wrapper` where a layer is both.

    Its state is saved with the model and restored on any backend:
        key: int32 (2,), the bits of (seed, call). Each draw advances the call number.
        one scalar for each number of the noise, so that a new rate takes effect after compilation.

    Args:
        mask: which mask, a `pernodedrop.Mask`.
        seed: int, any; None takes one from Python's `random`, which `keras.utils.set_random_seed` seeds.
        schedule: the rate as a function of the key's call number, instead of those scalars; None has none.
        persistence: the mask's persistence likewise.
    """

    xp = xp

    def __init__(
        self,
        mask: Mask,
        seed: int | None = None,
        schedule: Schedule | None = None,
        persistence: Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        state = State(mask, seed, schedule, persistence)
        super().__init__(**kwargs)
        self.state = state
        self._key = self._variable("key", state.first_key)
        self._number_names = tuple(state.first_numbers)
        for name, value in state.first_numbers.items():  # in attributes: tf.train.Checkpoint passes by dicts
            setattr(self, f"_noise_{name}", self._variable(name, value))

    @property
    def given_seed(self) -> int | None:
        return self.state.seed

    @property
    def drawn_seed(self) -> int:
        return int(self.words_of_key()[0])

    def words_of_key(self) -> np.typing.NDArray[np.uint32]:
        return keras.ops.convert_to_numpy(self._key).view("uint32")

    def numbers_on_host(self, argument: str = "rate") -> Params:
        return {name: keras.ops.convert_to_numpy(variable)[()] for name, variable in self._numbers.items()}

    def numbers(self) -> Params:
        return {name: xp.asarray(variable.value) for name, variable in self._numbers.items()}

    def put_numbers(self, numbers: Params) -> None:
        for name, value in numbers.items():
            self._numbers[name].assign(value)

    @property
    def rate_config(self) -> float | Config | None:
        """The rate, or the schedule, as `get_config` gives it and `pernodedrop.schedules.get` takes it."""
        return self.rate if self.schedule is None else keras.saving.serialize_keras_object(self.schedule)

    @property
    def persistence_config(self) -> float | Config | None:
        """The persistence, or the schedule, as `get_config` gives it."""
        schedule = self.state.persistence_schedule
        return self.persistence if schedule is None else keras.saving.serialize_keras_object(schedule)

    @property
    def noise_config(self) -> Config:
        """`noise` and `rate`, as `get_config` gives them and `pernodedrop.schedules.get_noise` takes them."""
        rate = None if self.schedule is None else self.rate_config
        return {"rate": rate, "noise": keras.saving.serialize_keras_object(self.noise)}

    def draw(self) -> Tensor:
        """The next key: an integer tensor of length 2, (seed, call), for `layer(x, training=True, key=key)`.

        Draw outside `keras.remat` and pass the key to the layer inside, so that the backward pass, which repeats the
        forward pass, makes the same mask.

        Raises:
            RuntimeError: inside a rematerialized function, on TensorFlow and torch (JAX itself refuses).
        """
        if self.regime != "dynamic":
            return xp.asarray(self._key.value)
        xp.refuse_redraw()
        return xp.draw(self._key)

    def rematerialized_call(
        self, layer_call: typing.Callable[..., Tensor], *args: typing.Any, **kwargs: typing.Any
    ) -> typing.Callable[..., Tensor]:
        # The key is drawn here, outside what the backward pass makes again. All keywords are closed over, because
        # TensorFlow's recomputation accepts none and JAX's would trace `training`.
        if kwargs.get("key") is None and self.has_noise(kwargs.get("training")):
            kwargs["key"] = self.draw()
        again = super().rematerialized_call(lambda *args: layer_call(*args, **kwargs), *args)
        return lambda *args, **_: again(*args)

    def get_config(self) -> Config:
        return {**super().get_config(), "seed": self.given_seed}

    def save_own_variables(self, store: typing.Any) -> None:
        saving.write(self, self._kind, store)

    def load_own_variables(self, store: typing.Any) -> None:
        values = saving.read(self, self._kind, store)
        if numbers := {name: values[name][()] for name in self._number_names}:
            self.state.mask.with_params(numbers)  # refuses what is out of range
        for name, variable in saving.named_variables(self).items():
            variable.assign(values[name])

    def has_noise(self, training: bool | None) -> bool:
        """Whether a call has noise."""
        checks.check_training(training)
        return self.state.mask.at_inference or self.trains(training)

    def trains(self, training: bool | None) -> bool:
        """Whether a call is one of training; None is what Keras gives where neither the call nor one around it says."""
        training = checks.check_training(training)
        if training is None and self.was_switched:
            warn_of_switch(self.name)
        return bool(training)

    def peek(self, device: typing.Any) -> Field:
        """The mask that the next call has, for its numbers: no key is drawn."""
        return self.field(xp.asarray(self._key.value), device)

    def keep_probability(self, field: Field) -> Tensor:
        """1 - rate at a key, a float32 scalar, of a layer whose noise is a `Bernoulli`."""
        return typing.cast(Bernoulli, field.noise).keep_probability(field.params, xp)

    def to_steady_state(self) -> None:
        """Put what the layer remembers of its calls where many of them lead. Most layers remember nothing.

        `pernodedrop.uncertainty.predict` does so before each of its passes, which are not steps of a training.
        """

    @property
    def _numbers(self) -> dict[str, keras.Variable]:
        return {name: getattr(self, f"_noise_{name}") for name in self._number_names}

    @property
    def _kind(self) -> str:
        """Of which noise the numbers are, as files of weights have it."""
        return keras.saving.get_registered_name(type(self.state.mask.noise))

    def _variable(self, name: str, value: np.generic | np.typing.NDArray[typing.Any]) -> keras.Variable:
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


def check_built(layer: keras.layers.Layer) -> None:
    """Raise unless a layer is built."""
    if not layer.built:
        raise ValueError(f"Layer {layer.name!r} is not built. Call it, or its model, once.")


def uniforms(like: Tensor, field: Field, samples: Words, lane: int, of: str) -> Tensor:
    """Uniform numbers in (0, 1), float32, in the shape of `like`.

    Args:
        like: (batch, *time, last).
        field: the mask at its key.
        samples: word tensor (batch,).
        lane: of the words.
        of: which coordinate the last axis is, "in" or "out".
    """
    shape = xp.shape(like)
    _, *middle, last = shape
    zero, size = xp.arange(1, like=like), xp.arange(last, like=like)
    time = xp.arange(math.prod(middle), like=like)[:, None]
    in_, out = (size, zero) if of == "in" else (zero, size)
    words = field.words(lane, time, samples[:, None, None], in_, out, xp)
    return xp.reshape(xp.uniform(words), shape)


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor in the dtype that sums of it are computed in: float32, or float64 as it is."""
    return xp.astype(tensor, ops.accumulation_dtype(tensor, xp=xp))


def check_samples(inputs: Tensor) -> None:
    """Raise unless the input of a layer is a tensor whose first axis is that of the samples."""
    if not hasattr(inputs, "shape"):
        raise TypeError(checks.invalid("inputs", "a tensor, samples first", inputs))
    if tuple(inputs.shape) == ():
        raise ValueError(checks.invalid("inputs", "rank from 1, samples first", inputs))


def check_size(inputs: Tensor, axis: int, size: int) -> None:
    """Raise unless the input of a layer has a size along an axis: it was built for no other."""
    shape = tuple(inputs.shape)
    if not -len(shape) <= axis < len(shape) or shape[axis] not in (None, size):
        raise ValueError(checks.invalid("inputs", f"size {size} along axis {axis}, as when it was built", shape))


def floating(inputs: Tensor, layouts: collections.abc.Sequence[str] = ("dense", "sparse")) -> Tensor:
    """The input of a layer as a tensor, or an error unless it is floating and stored in one of these ways."""
    check_samples(inputs)
    # on TensorFlow, convert_to_tensor of a variable is the variable
    inputs = keras.ops.convert_to_tensor(inputs.value if isinstance(inputs, keras.Variable) else inputs)
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(inputs.dtype)):
        raise TypeError(checks.invalid("inputs", "a floating dtype", inputs.dtype))
    ops.check_layout("inputs", inputs, layouts, xp)
    return inputs
