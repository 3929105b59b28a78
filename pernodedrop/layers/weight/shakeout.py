"""Shakeout: inputs of a layer have their contribution enhanced or reversed (Kang et al., AAAI 2016)."""

import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Tensor, Words
from pernodedrop.layers.base.activation_noise import entries_of_inputs
from pernodedrop.layers.base.inner import (
    CONVOLUTIONS,
    KINDS,
    bias_and_activation,
    channel_axis,
    float_kernel,
    product_with,
)
from pernodedrop.layers.base.noisy import at_least_float32, xp
from pernodedrop.layers.base.weight_noise import MaskedProduct
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class Shakeout(MaskedProduct):
    """Enhances or reverses what each input unit gives to a layer (Kang, Li and Tao, AAAI 2016; arXiv 1904.06593).

    In training, a kernel entry of input i in sample n is r W + c (r - 1) sign(W), with r[n, i] = 0 with probability
    `rate`, else 1 / (1 - rate), the same for all outputs and positions. So an entry is -c sign(W) or
    (W + c rate sign(W)) / (1 - rate), with mean W and variance rate / (1 - rate) (|W| + c)**2; sign(0) is 0. The bias
    has no noise, and inference is the inner layer itself. c = 0 is Dropout on the input: r is the mask of
    `pernodedrop.Dropout` (of one with `noise_shape=(None, 1, None)` on an input of rank 3) at the same key.

    Around a convolution an input unit is an entry of the feature maps, as in the authors' code: each channel at each
    position has an r of its own, the same for all entries of the kernel that meet it. r is the mask of
    `pernodedrop.Dropout` on the input, with its channels last.

    The gradient passes through sign(W) as through tanh(slope W): its derivative is slope (1 - tanh(slope W)**2).

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes, but no Embedding and no
            transposed or separable convolution. An input unit of an EinsumDense is an entry of the letters that x has
            in common with the kernel.
        rate: the probability that an input is reversed, in [0, 1), or a schedule of `pernodedrop.schedules`; 0.5.
        c: the size of what is added, a finite float from 0; 1e-4, the authors' for AlexNet at rate 0.5. The larger it
            is to the weights, the sparser these become.
        slope: of the sign's surrogate at 0, a finite float above 0; 1, the authors'.
        seed, method, **kwargs: as for `pernodedrop.PerNodeDrop`; a convolution, which is computed twice, has no other
            method than "auto".

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> dense = keras.layers.Dense(1, kernel_initializer="ones")
    >>> layer = pnd.Shakeout(dense, rate=0.5, c=0.25, seed=1)
    >>> y = keras.ops.convert_to_numpy(layer(np.ones((8, 1), "float32"), training=True))
    >>> sorted(set(y[:, 0].tolist()))
    [-0.25, 2.25]
    """

    kinds = KINDS
    layouts = ("dense",)  # its second product is a plain one

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float | Schedule = 0.5,
        c: float = 1e-4,
        slope: float = 1.0,
        seed: int | None = None,
        method: str = "auto",
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(rate)
        convolution = isinstance(layer, CONVOLUTIONS)
        if convolution and method != "auto":
            raise ValueError(checks.invalid("method", "'auto' around a convolution, which is computed twice", method))
        mask = Mask(Bernoulli(start), "out" if convolution else "time+out")
        super().__init__(layer, mask, seed=seed, method=method, schedule=schedule, **kwargs)
        self.c = checks.check_positive(c, "c", zero=True)
        self.slope = checks.check_positive(slope, "slope")

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        if not isinstance(self.layer, CONVOLUTIONS):
            return super().call_with_noise(inputs, field, samples)
        x, w = at_least_float32(inputs), at_least_float32(float_kernel(self.layer))
        sign = self.c * self._sign(w)
        r = xp.astype(self._of_maps(x, field, samples), xp.dtype(x))
        y = product_with(self.layer, x * r, w + sign) - product_with(self.layer, x, sign)  # as in `multiply`
        return bias_and_activation(self.layer, xp.astype(y, xp.dtype(inputs)))

    def multiply(self, x: Tensor, w: Tensor, field: Field, samples: Words) -> Tensor:
        # (x * r) W + (x * (r - 1)) S = (x * r) (W + S) - x S, for S = c sign(W)
        dtype = xp.dtype(x)
        x, w = at_least_float32(x), at_least_float32(w)
        sign = self.c * self._sign(w)
        shaken = self.masked_product(x, w + sign, field, samples)
        every = sign if len(x.shape) == 3 else sign[:, None]  # beside the samples of x (group, batch, time, in)
        return xp.astype(shaken - xp.matmul(x, every), dtype)

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config, "c": self.c, "slope": self.slope}

    def _of_maps(self, x: Tensor, field: Field, samples: Words) -> Tensor:
        """r of every entry of the input of a convolution, float32, in its shape."""
        channels = channel_axis(self.layer, len(x.shape))
        shape = list(xp.shape(x))
        shape.append(shape.pop(channels))
        return keras.ops.moveaxis(entries_of_inputs(tuple(shape), x, field, samples), -1, channels)

    def _sign(self, w: Tensor) -> Tensor:
        """sign(w), with the gradient of tanh(slope * w)."""
        smooth = xp.tanh(self.slope * w)
        return xp.stop_gradient(xp.sign(w)) + (smooth - xp.stop_gradient(smooth))
