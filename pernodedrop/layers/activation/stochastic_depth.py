"""StochasticDepth: a residual block is the shortcut alone, for a whole batch (Huang et al., arXiv 1603.09382)."""

import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.noisy import Noisy, check_built, floating, xp
from pernodedrop.mask import COORDINATES, Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class StochasticDepth(Noisy):
    """Adds a residual branch to its shortcut, or drops it for a whole batch (Huang et al., arXiv 1603.09382).

    In training y = shortcut + b * branch, where b is 1 with probability 1 - rate and else 0, the same for the batch and
    not scaled. At inference y = shortcut + (1 - rate) * branch, the mean of training. The branch is always computed, so
    no time is saved. `pernodedrop.DropPath` drops sample by sample, scales in training, and leaves inference as it is.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`, whose present rate holds at inference;
            `pernodedrop.depth_rates(0.5, depth)` has the paper's rate for each block.
        seed: int, any; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: [shortcut, branch], two floating tensors of one shape.
        training: whether to train; Keras sets it in `fit`.
        key: the key to use instead of drawing one, from `draw()`.

    Output shape and dtype: the shortcut's.

    Raises:
        TypeError, ValueError: a rate outside [0, 1), inputs that are not two of one shape, or another argument that is
            not as described.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> shortcut, branch = np.ones((1, 2), "float32"), np.full((1, 2), 8, "float32")
    >>> layer = pnd.StochasticDepth(0.25, seed=1)
    >>> np.asarray(layer([shortcut, branch]))
    array([[7., 7.]], dtype=float32)
    """

    def __init__(self, rate: float | Schedule, seed: int | None = None, **kwargs: typing.Any) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(mask=Mask(Bernoulli(start), COORDINATES), seed=seed, schedule=schedule, **kwargs)
        self.supports_masking = True

    def build(self, input_shape: tuple[Shape, Shape]) -> None:
        self._shapes = _pair(input_shape)

    def call(self, inputs: list[Tensor], training: bool | None = None, key: Key | None = None) -> Tensor:
        listed = isinstance(inputs, tuple | list)
        _pair([tuple(one.shape) if hasattr(one, "shape") else one for one in inputs] if listed else inputs)
        shortcut, branch = (floating(tensor, ("dense", "sparse", "ragged")) for tensor in inputs)
        device = xp.device(branch)
        weight = self._drawn(key, branch) if self.has_noise(training) else self.keep_probability(self.peek(device))
        weighted = apply_mask(branch, xp.reshape(weight, (1,) * len(branch.shape)))
        # TensorFlow has no operator for sparse tensors, Keras no addition of ragged ones
        is_sparse = "sparse" in (xp.layout(shortcut), xp.layout(branch))
        return keras.ops.add(shortcut, weighted) if is_sparse else shortcut + weighted

    def compute_mask(self, inputs: list[Tensor], previous_mask: list[Tensor] | None) -> Tensor | None:
        """The mask of the sum, that of `keras.layers.Add`."""
        return keras.layers.Add.compute_mask(self, inputs, previous_mask)  # which asks nothing of a layer

    def compute_output_shape(self, input_shape: tuple[Shape, Shape]) -> Shape:
        return _pair(input_shape)[0]

    def fold(self) -> keras.Model:
        """A model of plain Keras layers that computes what this layer does at inference: Rescaling and Add.

        Raises:
            ValueError: a layer that is not built.
        """
        check_built(self)
        shortcut, branch = (keras.Input(shape[1:], dtype=self.compute_dtype) for shape in self._shapes)
        keep = float(keras.ops.convert_to_numpy(self.keep_probability(self.peek(None))))
        scaled = keras.layers.Rescaling(keep, dtype=self.dtype_policy)(branch)
        total = keras.layers.Add(dtype=self.dtype_policy)([shortcut, scaled])
        return keras.Model([shortcut, branch], total, name=self.name)

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config}

    def _drawn(self, key: Key | None, like: Tensor) -> Tensor:
        """Whether the batch has its branch, 1 or 0, float32 (1,)."""
        zero = xp.arange(1, like=like)
        return xp.astype(self.field(key, xp.device(like)).entries(zero, zero, zero, zero, xp) > 0, "float32")


def _pair(shapes: typing.Any) -> tuple[Shape, Shape]:
    """The shapes of [shortcut, branch], or an error."""
    expected = "[shortcut, branch], two tensors of one shape"
    if not isinstance(shapes, tuple | list) or len(shapes) != 2 or not all(isinstance(s, tuple | list) for s in shapes):
        raise ValueError(checks.invalid("inputs", expected, shapes))
    shortcut, branch = map(tuple, shapes)
    fits = len(shortcut) == len(branch) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(shortcut, branch, strict=True)
    )
    if not fits:
        raise ValueError(checks.invalid("inputs", expected, [shortcut, branch]))
    return shortcut, branch
