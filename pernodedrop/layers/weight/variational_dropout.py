"""VariationalDropout: Gaussian dropout whose rates are learned (Kingma, Salimans and Welling, arXiv 1506.02557)."""

import math
import typing

import keras
import numpy as np

from pernodedrop import checks, ops
from pernodedrop._types import Config, Shape, Tensor, Words
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.contraction import Contraction
from pernodedrop.layers.base.inner import (
    CONTRACTIONS,
    bias_and_activation,
    channel_axis,
    float_kernel,
    product_of,
    product_with,
    safe_sqrt,
    with_kernel,
)
from pernodedrop.layers.base.noisy import at_least_float32, uniforms, xp
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import UniformNumber, normal

KINDS_OF_NOISE = ("A", "B")
PER = ("layer", "unit")
POLYNOMIAL = (1.161451241083230, -1.502041176441722, 0.586299206427007)  # the paper's c1, c2, c3


class Variational(WeightNoise):
    """Base of wrappers whose kernel has a Gaussian posterior, learned by the evidence lower bound.

    The divergence of the posterior from its prior is a loss of the layer, once a model and step however often the layer
    is called, as a weight's regularizer is.

    Args:
        layer: the inner layer, of one of `kinds`.
        examples: number of training examples, N: the loss is the divergence divided by it.
        seed: any int; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, layer: keras.layers.Layer, examples: int, seed: int | None = None, **kwargs: typing.Any) -> None:
        self.examples = checks.check_count(examples, "examples")
        super().__init__(layer, Mask(UniformNumber(), ()), seed=seed, **kwargs)

    def divergence(self) -> Tensor:
        """KL(posterior || prior) of the whole kernel, up to a constant: a float32 scalar tensor."""
        raise NotImplementedError

    def divergence_weight(self) -> Tensor | float:
        """What the divergence is multiplied by to make the layer's loss."""
        return 1 / self.examples

    def _loss(self, _: Tensor) -> Tensor:
        """The layer's loss, in the dtype of Keras' losses, to which it is added."""
        return keras.ops.cast(self.divergence() * self.divergence_weight(), keras.config.floatx())

    def reparameterized(self, x: Tensor, spread: Tensor, variances: Tensor, field: Field, samples: Words) -> Tensor:
        """The layer with its product y ~ N(x W, spread**2 variances), normal numbers apart for all entries of y.

        Args:
            x: the layer's input.
            spread: tensor of the shape of x.
            variances: tensor of the kernel's shape.
            field: the mask at its key, of which the normals are lane 1.
            samples: word tensor (batch,), the sample coordinates.
        """
        dtype = xp.dtype(x)
        mean = product_with(self.layer, at_least_float32(x), at_least_float32(float_kernel(self.layer)))
        deviation = safe_sqrt(product_with(self.layer, keras.ops.multiply(spread, spread), variances))
        axis, place = channel_axis(self.layer, len(mean.shape)), -1
        if isinstance(self.layer, CONTRACTIONS):
            contraction = Contraction(self.layer, len(x.shape))
            axis, place = contraction.y.index(contraction.batch), 0
        z = normals(keras.ops.moveaxis(mean, axis, place), field, samples, lane=1, of="out")
        y = mean + deviation * xp.astype(keras.ops.moveaxis(z, place, axis), xp.dtype(mean))
        return bias_and_activation(self.layer, xp.astype(y, dtype))

    def learned(self, name: str, shape: Shape, start: float, **kwargs: typing.Any) -> keras.Variable:
        """A new trainable float32 weight of the posterior, which brings the layer's loss with it."""
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


@keras.saving.register_keras_serializable("pernodedrop")
class VariationalDropout(Variational):
    """Gaussian dropout whose rates are learned (Kingma, Salimans and Welling, arXiv 1506.02557).

    A weight's posterior is N(theta, alpha * theta**2), its prior log-uniform, and alpha <= 1 is learned. The layer
    adds the loss KL / examples, with, up to a constant,

        KL = -sum(0.5 ln(alpha) + c1 alpha + c2 alpha**2 + c3 alpha**3),
        c1 = 1.16145124, c2 = -1.50204118, c3 = 0.58629921,

    a fit of the paper's for alpha <= 1; it falls as alpha grows. It is made to go with a data loss that is a mean over
    examples, Keras' default. It counts in `fit` and in `evaluate`, as regularizers of weights do, and is left out where
    the layer is frozen.

    Inference has the mean weights: it is the inner layer.

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes, but no Embedding and no
            transposed or separable convolution.
        examples: number of training examples N, an int from 1.
        kind: "B": independent weights, y ~ N(x W, alpha x**2 W**2) drawn by local reparameterization. "A": weights that
            share their input's noise, x * (1 + sqrt(alpha) z), then the inner layer: `GaussianDropout` before it. The
            divergence is summed over the independent numbers: all weights in "B", the inputs (channels) in "A".
        per: "layer": one alpha. "unit": one for each entry of the input's last axis, which is the channels' of a
            convolution whatever its data format.
        alpha: where alpha starts, a float in (0, 1]; 0.25, ours.
        seed, **kwargs: as for `pernodedrop.PerNodeDrop`. Noise is drawn independently for every sample and, unlike a
            mask that a sample's positions share, for every position of a sequence or an image: there "B" has the
            marginal distributions of noisy weights and no correlation between positions, as the usual variational
            convolutions do.

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message; per="unit" for an
            EinsumDense that does not contract the last axis of its input.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.VariationalDropout(keras.layers.Dense(4), examples=1000, per="unit", seed=1)
    >>> layer(np.ones((2, 3), "float32"), training=True).shape == (2, 4)
    True
    >>> layer.alpha
    array([0.25, 0.25, 0.25], dtype=float32)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        examples: int,
        kind: str = "B",
        per: str = "layer",
        alpha: float = 0.25,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        if not 0 < checks.check_finite(alpha, "alpha", "a float in (0, 1]") <= 1:
            raise ValueError(checks.invalid("alpha", "a float in (0, 1]", alpha))
        super().__init__(layer, examples, seed=seed, **kwargs)
        self.kind = checks.check_choice(kind, "kind", KINDS_OF_NOISE)
        self.per = checks.check_choice(per, "per", PER)
        self.start = float(alpha)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        product = product_of(self.layer, len(input_shape))
        groups, inputs, outputs = product.matrices(keras.ops.convert_to_tensor(self.layer.kernel)).shape
        axis = channel_axis(self.layer, len(input_shape))
        shape: Shape = ()
        if self.per == "unit":
            if isinstance(product, Contraction) and product.x[-1] not in product.kernel_letters:
                expected = f"'layer' for {product.equation!r}, whose kernel does not have the input's last axis"
                raise ValueError(checks.invalid("per", expected, self.per))
            shape = (input_shape[axis],)
        one_each = groups * inputs if isinstance(product, Contraction) else input_shape[axis]
        self._numbers_of_noise = groups * inputs * outputs if self.kind == "B" else one_each
        self._log_alpha = self.learned("log_alpha", shape, math.log(self.start), constraint=_not_above_zero)

    @property
    def alpha(self) -> np.typing.NDArray[np.float32]:
        """The present alpha on the host: float32, of shape () or (units,)."""
        return np.exp(keras.ops.convert_to_numpy(self._log_alpha))

    def divergence(self) -> Tensor:
        log_alpha = keras.ops.convert_to_tensor(self._log_alpha)
        alpha = keras.ops.exp(log_alpha)
        c1, c2, c3 = POLYNOMIAL
        each = -(0.5 * log_alpha + alpha * (c1 + alpha * (c2 + alpha * c3)))
        return self._numbers_of_noise * keras.ops.mean(each)

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        if self.kind == "A":
            ops.check_layout("inputs", inputs, ("dense",), xp)
        x = at_least_float32(inputs)
        stddev = xp.astype(keras.ops.exp(0.5 * keras.ops.convert_to_tensor(self._log_alpha)), xp.dtype(x))
        if self.per == "unit":
            axis = channel_axis(self.layer, len(x.shape))
            stddev = keras.ops.reshape(stddev, [-1 if n == axis else 1 for n in range(len(x.shape))])
        if self.kind == "B":
            kernel = at_least_float32(float_kernel(self.layer))
            return self.reparameterized(inputs, apply_mask(x, stddev), kernel * kernel, field, samples)
        axis = channel_axis(self.layer, len(x.shape))
        z = normals(keras.ops.moveaxis(x, axis, -1), field, samples, lane=0, of="in")
        z = xp.astype(keras.ops.moveaxis(z, -1, axis), xp.dtype(x))
        return with_kernel(self.layer, xp.astype(x * (1 + stddev * z), xp.dtype(inputs)), float_kernel(self.layer))

    def get_config(self) -> Config:
        return {**super().get_config(), "kind": self.kind, "per": self.per, "alpha": self.start}


def normals(like: Tensor, field: Field, samples: Words, lane: int, of: str) -> Tensor:
    """Standard normal numbers, float32, in the shape of `like`; arguments are those of `noisy.uniforms`."""
    return normal(uniforms(like, field, samples, lane, of), xp)


def _not_above_zero(log_alpha: Tensor) -> Tensor:
    return keras.ops.minimum(log_alpha, 0.0)
