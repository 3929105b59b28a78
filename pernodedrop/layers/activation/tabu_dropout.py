"""Tabu dropout: a unit that has been dropped is not dropped again for some steps (arXiv 1808.09907)."""

import dataclasses
import typing

import keras
import numpy as np

from pernodedrop import backends, checks, generator, schedules
from pernodedrop._types import Config, Key, Params, Shape, Tensor
from pernodedrop.layers.base.activation_noise import ActivationNoise
from pernodedrop.layers.base.noisy import check_built, check_size, xp
from pernodedrop.mask import Mask
from pernodedrop.noise import LEVELS, Bernoulli, shortest
from pernodedrop.schedules import Schedule
from pernodedrop.state import refuse_sample_ids


class Tries(Bernoulli):
    """The Bernoulli noise by which units are tried, and the tenure of those that are dropped: both are its numbers.

    Args:
        rate: probability p that a unit that may be dropped is, a float in [0, 1 - 2**-24].
        tenure: for how many steps a unit that was dropped is not dropped again, an int from 1.
        effective: whether `rate` is the drop rate q in the long run, from 0 and below 1 / (1 + tenure); p is then
            q / (1 - tenure * q).

    >>> round(1 - Tries(0.25, tenure=2, effective=True).threshold / 2**24, 6)
    0.5
    """

    rate: float
    tenure: int = 1
    effective: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_count(self.tenure, "tenure")
        if not self._allows(self.rate, self.tenure):
            expected = f"a float below 1 / (1 + tenure), with tenure={self.tenure}"
            raise ValueError(checks.invalid("rate", expected, self.rate))

    @property
    def threshold(self) -> int:
        return Bernoulli(self.rate / (1 - self.tenure * self.rate) if self.effective else self.rate).threshold

    def params(self) -> dict[str, np.generic]:
        return {**super().params(), "tenure": np.int32(self.tenure)}

    def with_params(self, params: Params) -> typing.Self:
        tried, tenure = 1 - int(params["threshold"]) / LEVELS, int(params["tenure"])

        def makes_them(rate: float) -> bool:
            return self._allows(rate, tenure) and dataclasses.replace(self, rate=rate, tenure=tenure)._has(params)

        rate = tried / (1 + tenure * tried) if self.effective else tried
        return dataclasses.replace(
            self, rate=self.rate if makes_them(self.rate) else shortest(rate, makes_them), tenure=tenure
        )

    def with_tenure(self, tenure: int) -> typing.Self:
        """The same rate with another tenure, or an error if it allows no such one."""
        if not self._allows(self.rate, checks.check_count(tenure, "tenure")):
            expected = f"an int below 1 / rate - 1, with rate={self.rate} in the long run"
            raise ValueError(checks.invalid("tenure", expected, tenure))
        return dataclasses.replace(self, tenure=tenure)

    def _allows(self, rate: float, tenure: int) -> bool:
        return not self.effective or rate <= checks.HIGHEST_RATE * (1 - tenure * rate)


@keras.saving.register_keras_serializable("pernodedrop")
class TabuDropout(ActivationNoise):
    """Drops units for a whole batch, and spares each for some steps after it was dropped (arXiv 1808.09907).

    In a training step, each unit that was not dropped in the last `tenure` steps is dropped with probability p. In the
    long run a unit is dropped in a share q = p / (1 + tenure * p) of the steps, so what is kept is scaled by
    1 / (1 - q). The first steps drop more than that; the very first drops a share p of the units. Inference is the
    identity.

    Units are the entries of the last axis. A batch has one mask, since the next step has other samples. The layer's
    state, int32 (units,), is for how many more steps each unit is safe, and is saved with the layer, as the tenure is.
    Every training call is a step and changes it, even a call with `key=`; all replicas have the same mask. The paper
    counts the tenure in epochs; here it is in steps, as in the paper's basic form with a tenure of 1.

    Args:
        rate: p, the probability that a unit that is not safe is dropped, a float in [0, 1); or q with `effective`. Or a
            schedule of `pernodedrop.schedules`; the scale then follows the q of the present rate.
        tenure: steps for which a unit is safe after it was dropped, an int from 1; 1. `AdaptiveTenure` changes it
            during training.
        effective: whether `rate` is q, the drop rate in the long run, which is below 1 / (1 + tenure); False.
        seed: any int; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor of rank from 2, units last.
        training: whether to train; Keras sets it in `fit`.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: refused, a batch has one mask.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a training call inside a function that is rematerialized, on TensorFlow and torch (JAX itself
            refuses): to compute it again would be another step. A Keras `RematScope` leaves the layer itself as it is,
            since there is no memory to save.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.TabuDropout(0.5, seed=1)
    >>> x = np.ones((1, 8), "float32")
    >>> first, second = (keras.ops.convert_to_numpy(layer(x, training=True)) for step in range(2))
    >>> bool(((first == 0) & (second == 0)).any())
    False
    """

    def __init__(
        self,
        rate: float | Schedule,
        tenure: int = 1,
        effective: bool = False,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        self.effective = checks.check_bool(effective, "effective")
        tenure = checks.check_count(tenure, "tenure")
        start, schedule = schedules.get(rate)
        tries = Tries(start, tenure, self.effective)
        super().__init__(Mask(tries, "sample+time+out"), seed=seed, schedule=schedule, **kwargs)

    @property
    def tenure(self) -> int:
        """The present tenure. Setting it takes effect from the next step, compiled or not, with the same `rate`.

        A unit that is safe stays so for as long as when it was dropped. On JAX, set it between epochs, as a rate.

        Raises:
            TypeError, ValueError: another than an int from 1; or one that the rate does not allow with `effective`.
            AttributeError: the rate has a schedule, whose table of numbers is made for one tenure.
        """
        return typing.cast(Tries, self.noise).tenure

    @tenure.setter
    def tenure(self, tenure: int) -> None:
        self.put_numbers(self.numbers_with_tenure(tenure))

    def numbers_with_tenure(self, tenure: int) -> Params:
        """The numbers of the mask at another tenure, or an error if it can have no such one."""
        if self.schedule is not None:
            raise AttributeError(f"The tenure of {self.name!r} goes with {self.schedule!r} and cannot be set.")
        return typing.cast(Tries, self.noise).with_tenure(tenure).params()

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(checks.invalid("inputs", "rank from 2 and a last axis of known size", tuple(input_shape)))
        self._safe = self._variable("safe", np.zeros(input_shape[-1], "int32"))

    def entries(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        if sample_ids is not None:
            refuse_sample_ids(sample_ids)
        check_size(inputs, -1, self._safe.shape[0])
        xp.refuse_redraw()  # with a key, too: the units would be safe for other steps
        zero = xp.arange(1, like=inputs)
        field = self.field(key, xp.device(inputs))
        tried = field.entries(zero, zero, xp.arange(self._safe.shape[0], like=inputs), zero, xp) == 0
        p = 1 - self.keep_probability(field)
        tenure = field.params["tenure"]
        steps = xp.float32(tenure)
        scale = (1 + steps * p) / (1 + (steps - 1) * p)  # 1 / (1 - q)
        dropped = self._dropped(tried, tenure)
        return xp.where(dropped, xp.zeros_like(scale), scale)

    def to_steady_state(self) -> None:
        """Draw the state that units have in the long run, when a share q of them is dropped, with the present key.

        Raises:
            ValueError: a layer that is not built.
        """
        check_built(self)
        p, tenure = 1 - float(keras.ops.convert_to_numpy(self.keep_probability(self.peek(None)))), self.tenure
        q = p / (1 + tenure * p)
        units = np.arange(self._safe.shape[0], dtype="uint32")
        zero, key = np.zeros(1, "uint32"), keras.ops.convert_to_numpy(self._key).view("uint32")
        on_host = backends.get("numpy")
        words = generator.words((key[:1], key[1:]), zero + np.uint32(1), zero, zero, units, zero, on_host)
        steps = np.floor(on_host.uniform(words) / q) if q else np.full(len(units), tenure)
        self._safe.assign(np.where(steps < tenure, steps + 1, 0).astype("int32"))

    def _dropped(self, tried: Tensor, tenure: Tensor) -> Tensor:
        """Which of the units that are tried are dropped; it is the next step then."""
        safe = xp.asarray(self._safe.value)
        dropped = tried & (safe == 0)
        self._safe.assign(xp.where(dropped, xp.zeros_like(safe) + tenure, xp.maximum(safe - 1, 0)))
        return dropped

    def rematerialized_call(
        self, layer_call: typing.Callable[..., Tensor], *args: typing.Any, **kwargs: typing.Any
    ) -> typing.Callable[..., Tensor]:
        return layer_call

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "rate": self.rate_config,
            "tenure": self.tenure,
            "effective": self.effective,
        }
