"""Tabu dropout: a unit that has been dropped is not dropped again for some steps (arXiv 1808.09907)."""

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
    """The Bernoulli noise by which units are tried, so that in the long run, with tenures, they are dropped at `rate`.

    Args:
        rate: drop rate q in the long run, a float from 0 and below 1 / (1 + tenure). A unit that may be dropped is
            dropped with probability q / (1 - tenure * q).
        tenure: for how many steps a unit that was dropped is not dropped again.

    >>> round(1 - Tries(0.25, tenure=2).threshold / 2**24, 6)
    0.5
    """

    rate: float
    tenure: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        free = 1 - self.tenure * self.rate
        if self.rate > checks.HIGHEST_RATE * free:
            expected = f"a float below 1 / (1 + tenure), with tenure={self.tenure}"
            raise ValueError(checks.invalid("rate", expected, self.rate))

    @property
    def threshold(self) -> int:
        return Bernoulli(self.rate / (1 - self.tenure * self.rate)).threshold

    def with_params(self, params: Params) -> typing.Self:
        if self._has(params):
            return self
        tried = 1 - int(params["threshold"]) / LEVELS
        return self.with_rate(shortest(tried / (1 + self.tenure * tried), self._makes(params)))

    def _makes(self, params: Params) -> typing.Callable[[float], bool]:
        """Whether a rate has these numbers."""
        highest = 1 / (1 + self.tenure)
        return lambda rate: rate < highest and self.with_rate(rate)._has(params)


@keras.saving.register_keras_serializable("pernodedrop")
class TabuDropout(ActivationNoise):
    """Drops units for a whole batch, and spares each for some steps after it was dropped (arXiv 1808.09907).

    In a training step, each unit that was not dropped in the last `tenure` steps is dropped with probability p. In the
    long run a unit is dropped in a share q = p / (1 + tenure * p) of the steps, so what is kept is scaled by
    1 / (1 - q). The first steps drop more than that; the very first drops a share p of the units. Inference is the
    identity.

    Units are the entries of the last axis. A batch has one mask, since the next step has other samples. The layer's
    state, int32 (units,), is for how many more steps each unit is safe, and is saved with the layer. Every training
    call is a step and changes it, even a call with `key=`; all replicas have the same mask. The paper counts the tenure
    in epochs; here it is in steps, as in the paper's basic form with a tenure of 1.

    Args:
        rate: p, the probability that a unit that is not safe is dropped, a float in [0, 1); or q with `effective`. Or a
            schedule of `pernodedrop.schedules`; the scale then follows the q of the present rate.
        tenure: steps for which a unit is safe after it was dropped, an int from 1; 1.
        effective: whether `rate` is q, the drop rate in the long run, which is below 1 / (1 + tenure); False.
        seed: int, any; None takes one from Python's `random`.
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
        self.tenure = checks.check_count(tenure, "tenure")
        self.effective = checks.check_bool(effective, "effective")
        start, schedule = schedules.get(rate)
        tries = Tries(start, self.tenure) if effective else Bernoulli(start)
        super().__init__(Mask(tries, "sample+time+out"), seed=seed, schedule=schedule, **kwargs)

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
        scale = (1 + self.tenure * p) / (1 + (self.tenure - 1) * p)  # 1 / (1 - q)
        dropped = self._dropped(tried)
        return xp.where(dropped, xp.zeros_like(scale), scale)

    def to_steady_state(self) -> None:
        """Draw the state that units have in the long run, when a share q of them is dropped, with the present key.

        Raises:
            ValueError: a layer that is not built.
        """
        check_built(self)
        p = 1 - float(keras.ops.convert_to_numpy(self.keep_probability(self.peek(None))))
        q = p / (1 + self.tenure * p)
        units = np.arange(self._safe.shape[0], dtype="uint32")
        zero, key = np.zeros(1, "uint32"), keras.ops.convert_to_numpy(self._key).view("uint32")
        on_host = backends.get("numpy")
        words = generator.words((key[:1], key[1:]), zero + np.uint32(1), zero, zero, units, zero, on_host)
        steps = np.floor(on_host.uniform(words) / q) if q else np.full(len(units), self.tenure)
        self._safe.assign(np.where(steps < self.tenure, steps + 1, 0).astype("int32"))

    def _dropped(self, tried: Tensor) -> Tensor:
        """Which of the units that are tried are dropped; it is the next step then."""
        safe = xp.asarray(self._safe.value)
        dropped = tried & (safe == 0)
        self._safe.assign(xp.where(dropped, xp.zeros_like(safe) + self.tenure, xp.maximum(safe - 1, 0)))
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
