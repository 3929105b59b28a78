"""SparseVariationalDropout: a noise level a weight, and the noisiest weights pruned (arXiv 1701.05369)."""

import typing

import keras

from pernodedrop._types import Shape, Tensor, Words
from pernodedrop.layers.base.inner import copy_of, float_kernel, with_kernel
from pernodedrop.layers.base.noisy import at_least_float32, check_built, xp
from pernodedrop.layers.base.posterior import LearnedVariances, log_alpha_of
from pernodedrop.layers.weight.variational_dropout import Variational
from pernodedrop.mask import Field


@keras.saving.register_keras_serializable("pernodedrop")
class SparseVariationalDropout(LearnedVariances, Variational):
    """Learns a noise level for every weight and prunes what is noise (Molchanov, Ashukha and Vetrov, arXiv 1701.05369).

    A weight's posterior is N(theta, sigma**2), its prior log-uniform; ln(sigma**2) is learned beside theta. Training
    draws y ~ N(x theta, x**2 sigma**2). The layer adds the loss beta * KL / examples, with

        ln(alpha) = clip(ln(sigma**2) - ln(theta**2 + 1e-8), -8, 8)
        KL = sum(k1 + 0.5 ln(1 + 1 / alpha) - k1 sigmoid(k2 + k3 ln(alpha))),
        k1 = 0.63576, k2 = 1.87320, k3 = 1.48695,

    which is 0 for a weight of infinite alpha. It is made to go with a data loss that is a mean over examples, Keras'
    default. It counts in `fit` and in `evaluate`, as regularizers of weights do, and is left out where the layer is
    frozen.

    Inference has the mean weights, those with ln(alpha) > threshold set to zero. `fold()` gives the inner layer with
    that kernel; its zeros are stored like other numbers and save no time by themselves.

    Args:
        layer: the inner layer, of one of the kinds that `pernodedrop.PerNodeDrop` takes, but no Embedding and no
            transposed or separable convolution.
        examples: number of training examples N, an int from 1.
        warm_up: number of training calls over which beta = min(1, calls / warm_up) rises to 1; 0 has beta = 1. Calls
            are counted by the layer's key, `updates`, which calls with a `key` of your own leave as it is.
        threshold: ln(alpha) above which a weight is pruned, a finite float; 3, the paper's, an alpha of 20. From 8 on
            none is pruned. It can be set at any time.
        log_variance: where ln(sigma**2) starts, a float from -80 to 80; -10.
        clip_noise: whether noise is drawn with the clipped alpha, y ~ N(x theta, x**2 alpha theta**2), as in the
            authors' code: a weight near 0 then has little noise; False.
        seed, **kwargs: as for `pernodedrop.PerNodeDrop`.

    Noise is drawn independently for every sample and, as in the paper's convolutions, for every position of a sequence
    or an image, where noise on the kernel would be the same for all.

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.SparseVariationalDropout(keras.layers.Dense(4), examples=1000, log_variance=5.0, seed=1)
    >>> layer(np.ones((2, 3), "float32"), training=True).shape == (2, 4)
    True
    >>> layer.sparsity, bool((keras.ops.convert_to_numpy(layer.fold().kernel) == 0).all())
    (1.0, True)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        examples: int,
        warm_up: int = 0,
        threshold: float = 3.0,
        log_variance: float = -10.0,
        seed: int | None = None,
        clip_noise: bool = False,
        **kwargs: typing.Any,
    ) -> None:
        numbers = (warm_up, threshold, log_variance, clip_noise)
        super().__init__(layer, examples, *numbers, seed=seed, **kwargs)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.log_variance = self.learned("log_variance", self.layer.kernel.shape, self.start)

    def posteriors(self) -> list[tuple[Tensor, Tensor]]:
        return [(float_kernel(self.layer), keras.ops.convert_to_tensor(self.log_variance))]

    def call_without_noise(self, inputs: Tensor) -> Tensor:
        return with_kernel(self.layer, inputs, self.pruned_kernel())

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        x, (posterior,) = at_least_float32(inputs), self.posteriors()
        return self.reparameterized(inputs, x, xp.astype(self.variances(*posterior), xp.dtype(x)), field, samples)

    def log_alpha(self) -> Tensor:
        """ln(alpha) of every weight, clipped: a float32 tensor of the kernel's shape."""
        (posterior,) = self.posteriors()
        return log_alpha_of(*posterior)

    def pruned_kernel(self) -> Tensor:
        """The kernel of inference."""
        (posterior,) = self.posteriors()
        return self.pruned(*posterior)

    def fold(self) -> keras.layers.Layer:
        """The inner layer with the pruned kernel: a plain Keras layer, built, with weights of its own.

        Raises:
            ValueError: a layer that is not built.
            NotImplementedError: a quantized inner layer.
        """
        check_built(self)
        return copy_of(self.layer, kernel=self.pruned_kernel(), dtype=self.dtype_policy)
