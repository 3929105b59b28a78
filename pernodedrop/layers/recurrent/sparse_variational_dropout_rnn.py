"""SparseVariationalDropoutRNN: a noise level a weight of recurrent kernels, the noisiest pruned (arXiv 1708.00077)."""

import collections.abc
import typing

import keras
import numpy as np

from pernodedrop._types import Shape, Sharing, Tensor
from pernodedrop.layers.base.noisy import check_built
from pernodedrop.layers.base.posterior import LearnedVariances, log_alpha_of
from pernodedrop.layers.recurrent.cells import assign_kernels, with_kernels
from pernodedrop.layers.recurrent.recurrent_posterior import RecurrentPosterior
from pernodedrop.recurrence import KERNELS


@keras.saving.register_keras_serializable("pernodedrop")
class SparseVariationalDropoutRNN(LearnedVariances, RecurrentPosterior):
    """Learns a noise level for every weight of recurrent kernels and prunes what is noise (arXiv 1708.00077).

    It is `pernodedrop.SparseVariationalDropout` (arXiv 1701.05369) around a loop. A weight's posterior is
    N(theta, sigma**2), its prior log-uniform, and ln(sigma**2) is learned beside theta. In each training call

        z[n, t] = x[n, t] W' + h[n, t - 1] U' + b,    W' = W + sigma * e,    e ~ N(0, 1),

    and U' likewise, the same at all steps. The loss is beta * KL / examples, as there, for all kernels together, once
    however many steps there are. Inference has the mean weights, those with ln(alpha) > threshold set to zero; `fold()`
    gives the inner layer with these kernels.

    Args:
        layer, examples, kernels, sharing: as for `pernodedrop.VariationalDropoutRNN`, of kind "B".
        warm_up, threshold, log_variance, clip_noise: as for `pernodedrop.SparseVariationalDropout`.
        seed: any int; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`. The dtype policy is the inner layer's unless given.

    Call arguments, shapes and dtypes: as for `pernodedrop.VariationalDropoutRNN`.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.SparseVariationalDropoutRNN(keras.layers.LSTM(4), examples=1000, log_variance=5.0, seed=1)
    >>> layer(np.ones((2, 5, 3), "float32"), training=True).shape == (2, 4)
    True
    >>> layer.sparsity, bool((keras.ops.convert_to_numpy(layer.fold().cell.kernel) == 0).all())
    (1.0, True)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        examples: int,
        kernels: collections.abc.Sequence[str] = KERNELS,
        warm_up: int = 0,
        threshold: float = 3.0,
        log_variance: float = -10.0,
        clip_noise: bool = False,
        sharing: Sharing = None,
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        numbers = (warm_up, threshold, log_variance, clip_noise)
        super().__init__(layer, examples, *numbers, kernels=kernels, sharing=sharing, seed=seed, **kwargs)

    def build(self, inputs_shape: Shape, initial_state_shape: typing.Any = None) -> None:
        super().build(inputs_shape, initial_state_shape)
        numbers = sum(rows * columns for rows, columns in self.shapes())
        self.log_variance = self.learned("log_variance", (numbers,), self.start)  # one weight, which has the one loss

    def deviation(self, number: int, kernel: Tensor) -> Tensor:
        return keras.ops.sqrt(self.variances(kernel, self._log_variance_of(number)))

    def without_noise(self, layer: keras.layers.Layer, inputs: Tensor) -> tuple[keras.layers.Layer, Tensor]:
        return with_kernels(layer, self.of_each(layer, self._pruned)), inputs

    def posteriors(self) -> list[tuple[Tensor, Tensor]]:
        of_cells = self.of_each(self.layer, lambda number, kernel, _: (kernel, self._log_variance_of(number)))
        return [one for of_cell in of_cells for one in of_cell.values()]

    def log_alpha(self) -> list[Tensor]:
        """ln(alpha) of every weight, clipped: a float32 tensor of the shape of each kernel with noise.

        The input's kernel comes before the recurrent one, and one cell after another.
        """
        check_built(self)
        return [log_alpha_of(*one) for one in self.posteriors()]

    def fold(self) -> keras.layers.Layer:
        """The inner layer with the pruned kernels: a plain Keras layer, built, with weights of its own.

        Raises:
            ValueError: a layer that is not built.
        """
        plain = super().fold()
        assign_kernels(plain, self.of_each(self.layer, self._pruned))
        return plain

    def _pruned(self, number: int, kernel: Tensor, _: int) -> Tensor:
        return self.pruned(kernel, self._log_variance_of(number))

    def _log_variance_of(self, number: int) -> Tensor:
        """The part of `log_variance` that is of a kernel, in its shape."""
        shapes = self.shapes()
        start = sum(int(np.prod(shape)) for shape in shapes[:number])
        part = keras.ops.convert_to_tensor(self.log_variance)[start : start + int(np.prod(shapes[number]))]
        return keras.ops.reshape(part, shapes[number])
