"""DropPath: residual branches are dropped sample by sample (Larsson et al., arXiv 1605.07648)."""

import collections.abc
import itertools
import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Key, Tensor
from pernodedrop.layers.base.activation_noise import ActivationNoise
from pernodedrop.layers.base.noisy import xp
from pernodedrop.mask import Mask
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class DropPath(ActivationNoise):
    """Sets a residual branch to zero with probability `rate` in training, sample by sample (arXiv 1605.07648).

    Put it at the end of the branch: y = shortcut + drop_path(branch). Each sample has one Bernoulli entry. Branches
    that are kept are scaled by 1 / (1 - rate); inference is the identity. This is the drop path of residual networks
    (timm's `DropPath`, EfficientNet's "drop connect"). Its name is that of FractalNet's drop-path, where joins are
    means rather than sums. `pernodedrop.StochasticDepth` is the older form, with one entry a batch and no scaling in
    training. Masks are those of `pernodedrop.Dropout(noise_shape=(None, 1, ...))` at the same key.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`; `pernodedrop.depth_rates` has one for each
            block of a network.
        seed: int, any; None takes one from Python's `random`.
        scale_by_keep: True, the default, scales the branches that are kept by 1 / (1 - rate), so that the mean in
            training is what inference gives; False leaves them as they are, as timm's argument of this name does.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor of any rank from 1, samples first: the branch.
        training: whether to train; Keras sets it in `fit`.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: integer tensor (batch,): the sample coordinate of each row, instead of its place in the batch.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: a rate outside [0, 1) or an argument that is not as described.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> np.asarray(pnd.DropPath(0.5, seed=1)(np.ones((4, 3), "float32"), training=True))
    array([[2., 2., 2.],
           [0., 0., 0.],
           [0., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """

    def __init__(
        self,
        rate: float | Schedule,
        seed: int | None = None,
        scale_by_keep: bool = True,
        **kwargs: typing.Any,
    ) -> None:
        self.scale_by_keep = checks.check_bool(scale_by_keep, "scale_by_keep")
        start, schedule = schedules.get(rate)
        super().__init__(Mask(Bernoulli(start), "time+in+out"), seed=seed, schedule=schedule, **kwargs)

    def entries(self, inputs: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        batch, *rest = xp.shape(inputs)
        entries = self.entries_of((batch, *(1 for _ in rest)), inputs, key, sample_ids)
        return entries if self.scale_by_keep else xp.astype(entries > 0, "float32")

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config, "scale_by_keep": self.scale_by_keep}


@typing.overload
def depth_rates(rate: float, depth: int, keep_first: bool = False) -> list[float]: ...


@typing.overload
def depth_rates(rate: float, depth: collections.abc.Sequence[int], keep_first: bool = False) -> list[list[float]]: ...


def depth_rates(
    rate: float, depth: int | collections.abc.Sequence[int], keep_first: bool = False
) -> list[float] | list[list[float]]:
    """Drop rates that rise linearly with the depth of a block, from the first block to the last.

    Args:
        rate: rate of the last block, a float in [0, 1 - 2**-24].
        depth: the number of blocks in the whole network, an int from 1; or a list with the number in each stage.
        keep_first: False: rate * l / depth with l from 1 (stochastic depth, arXiv 1603.09382; NASNet, arXiv
            1707.07012). True: rate * l / (depth - 1) with l from 0, so the first block is never dropped (timm, Swin,
            ConvNeXt); a single block then has rate 0.

    Returns:
        A list of `depth` floats. For a list of stages, a list for each stage; the rates rise over all of them.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    >>> depth_rates(0.5, depth=4), depth_rates(0.75, depth=4, keep_first=True)
    ([0.125, 0.25, 0.375, 0.5], [0.0, 0.25, 0.5, 0.75])
    >>> depth_rates(0.5, depth=[1, 3])
    [[0.125], [0.25, 0.375, 0.5]]
    """
    if isinstance(depth, list | tuple):
        stages = [checks.check_count(blocks, "depth") for blocks in depth]
        rates = iter(depth_rates(rate, sum(stages), keep_first))
        return [list(itertools.islice(rates, blocks)) for blocks in stages]
    rate, depth = checks.check_rate(rate), checks.check_count(depth, "depth")
    first, last = (0, max(depth - 1, 1)) if checks.check_bool(keep_first, "keep_first") else (1, depth)
    return [rate * ((first + block) / last) for block in range(depth)]
