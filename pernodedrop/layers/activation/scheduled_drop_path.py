"""ScheduledDropPath: DropPath whose rate rises during training (Zoph et al., arXiv 1707.07012)."""

import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Config
from pernodedrop.layers.activation.drop_path import DropPath
from pernodedrop.schedules import Linear


@keras.saving.register_keras_serializable("pernodedrop")
class ScheduledDropPath(DropPath):
    """DropPath whose rate rises linearly from 0 to `rate` over `steps` updates (Zoph et al., arXiv 1707.07012).

    It is `pernodedrop.DropPath(pernodedrop.schedules.Linear(0.0, rate, steps))`. In NASNet the rate also rises with
    depth: for cell l from 0 it is rate(l, t) = rate * (l + 1) / depth * min(1, t / steps). For that, make a layer for
    each number of `pernodedrop.depth_rates(rate, depth)`. The authors' depth counts reduction and stem cells; their
    final rates are 0.4 on CIFAR-10, with 937 500 steps, and 0.3 for the large ImageNet model.

    Args:
        rate: the final drop rate, a float in [0, 1).
        steps: the update at which the rate reaches it, to stay there, an int from 1.
        seed, **kwargs: as for `pernodedrop.DropPath`.

    Call arguments, shapes and dtypes: as for `pernodedrop.DropPath`.

    Raises:
        TypeError, ValueError: a rate outside [0, 1) or an argument that is not as described.

    Example:

    >>> import pernodedrop as pnd
    >>> cells = [pnd.ScheduledDropPath(rate, steps=1000) for rate in pnd.depth_rates(0.4, depth=20)]
    >>> [cells[-1].schedule(step) for step in (0, 500, 1000, 2000)]
    [0.0, 0.2, 0.4, 0.4]
    """

    def __init__(self, rate: float, steps: int, seed: int | None = None, **kwargs: typing.Any) -> None:
        super().__init__(Linear(0.0, checks.check_rate(rate), steps), seed=seed, **kwargs)

    def get_config(self) -> Config:
        schedule = typing.cast(Linear, self.schedule)
        return {**super().get_config(), "rate": schedule.end, "steps": schedule.steps}
