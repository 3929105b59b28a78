"""Does it help? Regularizers compared on your data and your model: which one, at which rate, and is it chance.

A `Study` trains Keras models, and needs Keras, which is imported for it; `compare` takes losses from anywhere.
"""

import typing

from pernodedrop import _lazy
from pernodedrop.study.statistics import Comparison, compare

if typing.TYPE_CHECKING:
    from pernodedrop.study import named as named
    from pernodedrop.study import variants as variants
    from pernodedrop.study.epoch_end import EpochEndLoss
    from pernodedrop.study.study import Study
else:
    __getattr__, __dir__ = _lazy.names(
        __name__, EpochEndLoss="epoch_end", Study="study", named="named", variants="variants"
    )

__all__ = ["Comparison", "EpochEndLoss", "Study", "compare"]
