"""Gaussian posteriors of kernels, learned by the evidence lower bound: what is learned of them, and their divergences.

A layer derives from one of `LearnedRates` and `LearnedVariances`, and from a base that says what it goes around.
"""

import math
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Config, Shape, Tensor
from pernodedrop.layers.base.noisy import Noisy, check_built, xp
from pernodedrop.mask import Mask

KINDS_OF_NOISE = ("A", "B")
PER = ("layer", "unit")
POLYNOMIAL = (1.161451241083230, -1.502041176441722, 0.586299206427007)  # Kingma's c1, c2, c3
FIT = (0.63576, 1.87320, 1.48695)  # Molchanov's k1, k2, k3
LIMIT = 8.0  # ln alpha of a weight is clipped to +- this
TINY = 1e-8  # beside theta**2


class Posterior(Noisy):
    """Base of wrappers whose kernels have a Gaussian posterior, learned by the evidence lower bound.

    The divergence of the posterior from its prior is a loss of the layer, once a model and step however often the layer
    is called and however many steps it makes, as a weight's regularizer is.

    Args:
        layer: the inner layer.
        examples: number of training examples, N: the loss is the divergence divided by it.
        mask: which mask, a `pernodedrop.Mask`.
        **kwargs: those of the base that says what it goes around.
    """

    def __init__(self, layer: keras.layers.Layer, examples: int, mask: Mask, **kwargs: typing.Any) -> None:
        self.examples = checks.check_count(examples, "examples")
        super().__init__(layer=layer, mask=mask, **kwargs)

    def divergence(self) -> Tensor:
        """KL(posterior || prior) of all kernels, up to a constant: a float32 scalar tensor."""
        raise NotImplementedError

    def divergence_weight(self) -> Tensor | float:
        """What the divergence is multiplied by to make the layer's loss."""
        return 1 / self.examples

    def _loss(self, _: Tensor) -> Tensor:
        """The layer's loss, in the dtype of Keras' losses, to which it is added."""
        return keras.ops.cast(self.divergence() * self.divergence_weight(), keras.config.floatx())

    def learned(self, name: str, shape: Shape, start: float, **kwargs: typing.Any) -> keras.Variable:
        """The trainable float32 weight of the posterior, which brings the layer's loss with it."""
        return self.add_weight(
            name=name,
            shape=shape,
            dtype="float32",
            initializer=keras.initializers.Constant(start),
            autocast=False,
            regularizer=self._loss,
            **kwargs,
        )

    def get_config(self) -> Config:
        return {**super().get_config(), "examples": self.examples}


class LearnedRates(Posterior):
    """Base of those with the posterior N(theta, alpha * theta**2), of which alpha <= 1 is learned (arXiv 1506.02557).

    Args:
        layer, examples, kind, per, alpha: as for `pernodedrop.VariationalDropout`.
        **kwargs: those of `Posterior`.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        examples: int,
        kind: str,
        per: str,
        alpha: float,
        **kwargs: typing.Any,
    ) -> None:
        if not 0 < checks.check_finite(alpha, "alpha", "a float in (0, 1]") <= 1:
            raise ValueError(checks.invalid("alpha", "a float in (0, 1]", alpha))
        self.kind = checks.check_choice(kind, "kind", KINDS_OF_NOISE)
        self.per = checks.check_choice(per, "per", PER)
        self.start = float(alpha)
        super().__init__(layer, examples, **kwargs)

    def learn_alpha(self, shape: Shape, numbers: typing.Any) -> None:
        """Make the weight ln(alpha).

        Args:
            shape: that of alpha, () or (units,).
            numbers: how many independent numbers have each alpha, a number or an array (units,).
        """
        self._numbers_of_noise = np.asarray(numbers, "float32")
        self._log_alpha = self.learned("log_alpha", shape, math.log(self.start), constraint=_not_above_zero)

    @property
    def alpha(self) -> np.typing.NDArray[np.float32]:
        """The present alpha on the host: float32, of shape () or (units,)."""
        check_built(self)
        return np.exp(keras.ops.convert_to_numpy(self._bounded()))

    def stddev(self) -> Tensor:
        """The standard deviation of a weight in units of the weight, sqrt(alpha): float32, of the shape of alpha."""
        return keras.ops.exp(0.5 * self._bounded())

    def divergence(self) -> Tensor:
        check_built(self)
        log_alpha = self._bounded()
        alpha = keras.ops.exp(log_alpha)
        c1, c2, c3 = POLYNOMIAL
        each = -(0.5 * log_alpha + alpha * (c1 + alpha * (c2 + alpha * c3)))
        return keras.ops.sum(xp.asarray(self._numbers_of_noise, device=xp.device(each)) * each)

    def _bounded(self) -> Tensor:
        """ln(alpha), of which only Keras' optimizers keep the weight at most 0; the polynomial is wrong above."""
        log_alpha = keras.ops.convert_to_tensor(self._log_alpha)
        return log_alpha - keras.ops.stop_gradient(keras.ops.maximum(log_alpha, 0.0))  # so that it can come back

    def get_config(self) -> Config:
        return {**super().get_config(), "kind": self.kind, "per": self.per, "alpha": self.start}


class LearnedVariances(Posterior):
    """Base of those with the posterior N(theta, sigma**2), of which sigma is learned, one a weight (arXiv 1701.05369).

    Args:
        layer, examples, warm_up, threshold, log_variance, clip_noise: as for `pernodedrop.SparseVariationalDropout`.
        **kwargs: those of `Posterior`.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        examples: int,
        warm_up: int,
        threshold: float,
        log_variance: float,
        clip_noise: bool,
        **kwargs: typing.Any,
    ) -> None:
        self.clip_noise = checks.check_bool(clip_noise, "clip_noise")
        self.warm_up = checks.check_count(warm_up, "warm_up", least=0)
        checks.check_finite(threshold, "threshold")
        self.start = checks.check_finite(log_variance, "log_variance", "a float from -80 to 80")
        if abs(self.start) > 80:  # further away its exponential leaves float32
            raise ValueError(checks.invalid("log_variance", "a float from -80 to 80", log_variance))
        super().__init__(layer, examples, **kwargs)
        self._threshold = self._variable("threshold", np.float32(threshold))

    def posteriors(self) -> list[tuple[Tensor, Tensor]]:
        """Each kernel in floating point with its ln(sigma**2), float32, of the same shape."""
        raise NotImplementedError

    @property
    def threshold(self) -> float:
        """The present threshold. Setting it takes effect from the next call, compiled or not."""
        return float(str(keras.ops.convert_to_numpy(self._threshold)))  # the shortest number it is the float32 of

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self._threshold.assign(checks.check_finite(threshold, "threshold"))

    @property
    def sparsity(self) -> float:
        """The share of weights that are pruned."""
        check_built(self)
        pruned = [keras.ops.convert_to_numpy(self._is_pruned(*one)).ravel() for one in self.posteriors()]
        return float(np.mean(np.concatenate(pruned)))

    def divergence(self) -> Tensor:
        check_built(self)
        k1, k2, k3 = FIT
        total = 0.0
        for kernel, log_variance in self.posteriors():
            log_alpha = log_alpha_of(kernel, log_variance)
            each = k1 + 0.5 * keras.ops.softplus(-log_alpha) - k1 * keras.ops.sigmoid(k2 + k3 * log_alpha)
            total = total + keras.ops.sum(each)
        return total

    def divergence_weight(self) -> Tensor | float:
        """beta / examples."""
        if not self.warm_up:
            return super().divergence_weight()
        calls = keras.ops.convert_to_tensor(self._key)[1]
        calls = xp.where(calls < 0, self.warm_up, calls)  # a word from 2**31 is negative as an int
        return keras.ops.minimum(keras.ops.cast(calls, "float32") / self.warm_up, 1.0) / self.examples

    def variances(self, kernel: Tensor, log_variance: Tensor) -> Tensor:
        """sigma**2 of the noise of a kernel: float32, of its shape."""
        if not self.clip_noise:
            return keras.ops.exp(log_variance)
        return keras.ops.exp(log_alpha_of(kernel, log_variance)) * keras.ops.square(xp.astype(kernel, "float32"))

    def pruned(self, kernel: Tensor, log_variance: Tensor) -> Tensor:
        """A kernel as inference has it."""
        return xp.where(self._is_pruned(kernel, log_variance), xp.zeros_like(kernel), kernel)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "warm_up": self.warm_up,
            "threshold": self.threshold,
            "log_variance": self.start,
            "clip_noise": self.clip_noise,
        }

    def _is_pruned(self, kernel: Tensor, log_variance: Tensor) -> Tensor:
        """Which weights of a kernel are pruned, a boolean tensor."""
        return log_alpha_of(kernel, log_variance) > xp.asarray(self._threshold.value)


def log_alpha_of(kernel: Tensor, log_variance: Tensor) -> Tensor:
    """ln(alpha) of every weight, clipped: a float32 tensor of the kernel's shape."""
    theta = xp.astype(kernel, "float32")
    return keras.ops.clip(log_variance - keras.ops.log(theta * theta + TINY), -LIMIT, LIMIT)


def _not_above_zero(log_alpha: Tensor) -> Tensor:
    return keras.ops.minimum(log_alpha, 0.0)
