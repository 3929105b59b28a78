"""Flipout: one noise matrix a batch, with signs of each sample's own (Wen et al., arXiv 1803.04386)."""

import typing

import keras

from pernodedrop import schedules
from pernodedrop._types import Config, Tensor, Words
from pernodedrop.layers.base.convolution import Convolution
from pernodedrop.layers.base.inner import as_channels, bias_and_activation, float_kernel, product_of, product_with
from pernodedrop.layers.base.noisy import at_least_float32, xp
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class Flipout(WeightNoise):
    """Weight noise of each sample by two products: a noise matrix of the batch with signs flipped (arXiv 1803.04386).

    In training, with M the batch's one mask and s[n, i], r[n, j] fair signs of each sample n,

        y[n, j] = activation(sum_i x[n, i] W[i, j] (1 + (M[i, j] - 1) s[n, i] r[n, j]) + b[j])

    which is x W + ((x * s) (W * (M - 1))) * r + b. Inference is the inner layer itself. How near it is to
    `PerNodeDrop` of the same noise, which has an M for each sample:

        right: mean and variance of every entry and every output; that outputs of a sample, and of two samples, are
            uncorrelated; that any three entries of a sample are independent. With a noise that is symmetric about 1
            ("gaussian", "uniform", "bernoulli" at rate 0.5), the distribution of one sample by itself.
        wrong: the distribution of an entry of a noise that is not symmetric, which is made so: a Bernoulli entry is 0,
            2, k or 2 - k, for k = 1 / (1 - rate), and its skewness is 0; then four entries at the corners of a
            rectangle are dependent too. With any noise samples are uncorrelated but dependent: they have |M - 1| in
            common, so a batch that has a large deviation has it in all samples.

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes, but no Embedding and no
            transposed or separable convolution. The signs of a convolution are of channels, and it takes two
            convolutions and no patches.
        rate: drop rate in [0, 1) that goes with a noise given by name; None is 0.5. Or a schedule of
            `pernodedrop.schedules`, which also goes with a `pernodedrop.Noise` that has a rate.
        noise: "gaussian", "uniform", "bernoulli", or a `pernodedrop.Noise`, which brings its own numbers.
        seed, **kwargs: as for `pernodedrop.PerNodeDrop`.

    The signs of a sample are the same at all positions. They come from the two lanes after the noise's own, s at the in
    coordinate of an input and r at the out coordinate of an output, with the rest 0.

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`; `sample_ids` choose the signs.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> dense = keras.layers.Dense(1, kernel_initializer="ones")
    >>> layer = pnd.Flipout(dense, noise=pnd.Bernoulli(0.75), seed=1)  # its one entry is 4 or 0
    >>> y = [keras.ops.convert_to_numpy(layer(np.ones((8, 1), "float32"), training=True)) for _ in range(8)]
    >>> sorted(set(np.ravel(y).tolist()))
    [-2.0, 0.0, 2.0, 4.0]
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float | Schedule | None = None,
        noise: str | Noise = "gaussian",
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        noise, schedule = schedules.get_noise(noise, rate)
        mask = Mask(noise, "time")  # samples differ: in their signs
        super().__init__(layer, mask, seed=seed, schedule=schedule, **kwargs)

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        product = product_of(self.layer, len(inputs.shape))
        if not isinstance(product, Convolution):
            return super().call_with_noise(inputs, field, samples)
        x, kernel = at_least_float32(inputs), at_least_float32(float_kernel(self.layer))
        noise = product.kernel(self._noise(product.matrices(kernel), field), kernel.shape)
        y = product_with(self.layer, x, kernel)
        axis = 1 if product.channels_first else -1
        channels, outputs = (xp.arange(tensor.shape[axis], like=x) for tensor in (x, y))
        s, r = self._signs(x, field, samples[:, None], channels, outputs)
        y = y + product_with(self.layer, x * as_channels(self.layer, x, s), noise) * as_channels(self.layer, y, r)
        return bias_and_activation(self.layer, xp.astype(y, xp.dtype(inputs)))

    def multiply(self, x: Tensor, w: Tensor, field: Field, samples: Words) -> Tensor:
        dtype = xp.dtype(x)
        x, w = at_least_float32(x), at_least_float32(w)
        groups, inputs, outputs = w.shape
        in_, out = (xp.reshape(xp.arange(groups * n, like=x), (groups, 1, n)) for n in (inputs, outputs))
        s, r = self._signs(x, field, samples[:, None], in_, out)
        noise = self._noise(w, field)
        if len(x.shape) == 4:  # beside the positions of a sample
            s, r, w, noise = s[:, :, None], r[:, :, None], w[:, None], noise[:, None]
        return xp.astype(xp.matmul(x, w) + xp.matmul(x * s, noise) * r, dtype)

    def get_config(self) -> Config:
        return {**super().get_config(), **self.noise_config}

    def _noise(self, matrices: Tensor, field: Field) -> Tensor:
        """W * (M - 1) for matrices (group, in, out)."""
        return matrices * (xp.astype(self.one_mask(matrices, field), xp.dtype(matrices)) - 1)

    def _signs(self, x: Tensor, field: Field, samples: Words, in_: Words, out: Words) -> list[Tensor]:
        """s and r at broadcast coordinates, in the dtype of x."""
        zero, lanes = xp.arange(1, like=x), field.noise.lanes
        of_inputs = field.words(lanes, zero, samples, in_, zero, xp)
        of_outputs = field.words(lanes + 1, zero, samples, zero, out, xp)
        return [1 - 2 * xp.astype(xp.shift_right(words, 31), xp.dtype(x)) for words in (of_inputs, of_outputs)]
