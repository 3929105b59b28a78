"""VariationalDropout: Gaussian dropout whose rates are learned (Kingma, Salimans and Welling, arXiv 1506.02557)."""

import math
import typing

import keras

from pernodedrop import checks, ops
from pernodedrop._types import Shape, Tensor, Words
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
from pernodedrop.layers.base.posterior import LearnedRates, Posterior
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import UniformNumber, normal


class Variational(Posterior, WeightNoise):
    """Base of wrappers around a layer with one product, whose kernel has a Gaussian posterior.

    Args:
        layer: the inner layer, of one of `kinds`.
        examples: number of training examples, N: the loss is the divergence divided by it.
        seed: any int; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, layer: keras.layers.Layer, examples: int, seed: int | None = None, **kwargs: typing.Any) -> None:
        super().__init__(layer, examples, mask=Mask(UniformNumber(), ()), seed=seed, **kwargs)

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


@keras.saving.register_keras_serializable("pernodedrop")
class VariationalDropout(LearnedRates, Variational):
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
        seed, **kwargs: as for `pernodedrop.PerNodeDrop`.

    Noise is drawn independently for every sample and, unlike a mask that a sample's positions share, for every position
    of a sequence or an image: there "B" has the marginal distributions of noisy weights and no correlation between
    positions, as the usual variational convolutions do.

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
        super().__init__(layer, examples, kind, per, alpha, seed=seed, **kwargs)

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
        numbers = groups * inputs * outputs if self.kind == "B" else one_each
        self.learn_alpha(shape, numbers / math.prod(shape))

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        if self.kind == "A":
            ops.check_layout("inputs", inputs, ("dense",), xp)
        x = at_least_float32(inputs)
        stddev = xp.astype(self.stddev(), xp.dtype(x))
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


def normals(like: Tensor, field: Field, samples: Words, lane: int, of: str) -> Tensor:
    """Standard normal numbers, float32, in the shape of `like`; arguments are those of `noisy.uniforms`."""
    return normal(uniforms(like, field, samples, lane, of), xp)
