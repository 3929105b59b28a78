"""VariationalDropoutRNN: Gaussian noise on recurrent kernels, whose rates are learned (arXiv 1506.02557)."""

import collections.abc
import typing

import keras
import numpy as np

from pernodedrop._types import Shape, Sharing, Tensor
from pernodedrop.layers.base.noisy import xp
from pernodedrop.layers.base.posterior import LearnedRates
from pernodedrop.layers.recurrent.recurrent_posterior import RecurrentPosterior
from pernodedrop.recurrence import KERNELS, Product


@keras.saving.register_keras_serializable("pernodedrop")
class VariationalDropoutRNN(LearnedRates, RecurrentPosterior):
    """Puts Gaussian noise with learned rates on the kernels of a recurrent layer: `VariationalDropout` around a loop.

    So it is the variational dropout of Kingma, Salimans and Welling (arXiv 1506.02557); that of Gal and Ghahramani,
    whose rate is given, is `pernodedrop.NoisyRNN` with `sharing="time+out"`. A weight's posterior is
    N(theta, alpha * theta**2), its prior log-uniform, and alpha <= 1 is learned. In each training call

        z[n, t] = x[n, t] W' + h[n, t - 1] U' + b,    W' = W * (1 + sqrt(alpha) e),    e ~ N(0, 1),

    and U' likewise, the same at all steps, for a weight of a posterior is one number: local reparameterization, which
    draws outputs instead, would make the noise of each step anew (arXiv 1708.00077). The loss KL / examples is that of
    `pernodedrop.VariationalDropout` for all kernels together, once however many steps there are. Inference has the mean
    weights: it is the inner layer.

    Args:
        layer: the inner layer, a `keras.layers.SimpleRNN`, `GRU` or `LSTM`, an `RNN` of their cells, stacked or not,
            or a `Bidirectional` of these.
        examples: number of training examples N, whose losses the data loss is the mean of, an int from 1.
        kernels: which have noise, some of "kernel", which the input is multiplied by, and "recurrent_kernel"; both.
        kind: "B": independent weights. "A": weights that share their input's noise: x and h are multiplied by
            1 + sqrt(alpha) e. The divergence is summed over the independent numbers: weights in "B", inputs in "A".
        per: "layer": one alpha. "unit": one for each row of the kernels, those of x before those of h, one cell after
            another, those of the forward layer of a `Bidirectional` first.
        alpha: where alpha starts, a float in (0, 1]; 0.25, ours.
        sharing: "sample+time", for which None stands: one draw of the weights for a batch, before the loop, which is
            the layer's own, cuDNN's where it is. "time": one for each sample, in Keras' loop, without cuDNN, whose
            cells compute as Keras' do, and have no dropout; of kind "B" it takes the memory of a kernel for each
            sample, however many steps there are.
        seed: any int; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`. The dtype policy is the inner layer's unless given.

    Call arguments:
        inputs: floating tensor (batch, time, in).
        initial_state, mask, training: those of the inner layer.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: integer tensor (batch,), with `sharing="time"`: the sample coordinate of each row.

    Input and output shapes: the inner layer's. Output dtype: this layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.VariationalDropoutRNN(keras.layers.LSTM(4), examples=1000, per="unit", seed=1)
    >>> layer(np.ones((2, 5, 3), "float32"), training=True).shape == (2, 4)
    True
    >>> layer.alpha.shape
    (7,)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        examples: int,
        kernels: collections.abc.Sequence[str] = KERNELS,
        kind: str = "B",
        per: str = "layer",
        alpha: float = 0.25,
        sharing: Sharing = None,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        of_loop = {"kernels": kernels, "sharing": sharing, "of_inputs": kind == "A"}
        super().__init__(layer, examples, kind, per, alpha, seed=seed, **of_loop, **kwargs)

    def build(self, inputs_shape: Shape, initial_state_shape: typing.Any = None) -> None:
        super().build(inputs_shape, initial_state_shape)
        of_rows = [np.full(rows, 1 if self.kind == "A" else columns) for rows, columns in self.shapes()]
        numbers = np.concatenate(of_rows)
        if self.per == "layer":
            self.learn_alpha((), numbers.sum())
        else:
            self.learn_alpha(numbers.shape, numbers)

    def deviation(self, number: int, kernel: Tensor) -> Tensor:
        return kernel * self._relative(number, xp.dtype(kernel))

    def product(self, number: int, kernel: Tensor, z: Tensor) -> Product:
        if self.kind == "B":
            return super().product(number, kernel, z)
        factors = keras.ops.squeeze(1 + self._relative(number, xp.dtype(z)) * z, -1)
        return lambda x: keras.ops.matmul(x * factors, kernel)

    def _relative(self, number: int, dtype: str) -> Tensor:
        """sqrt(alpha) of the rows of a kernel, (in, 1), or of all of them, ()."""
        stddev = xp.astype(self.stddev(), dtype)
        if self.per == "layer":
            return stddev
        before, rows = sum(rows for rows, _ in self.shapes()[:number]), self.shapes()[number][0]
        return stddev[before : before + rows, None]
