"""Does it help? Regularizers compared on data and a model of one's own: which one, at which rate, beyond chance."""

from pernodedrop.study.epoch_end import EpochEndLoss
from pernodedrop.study.study import Study

__all__ = ["EpochEndLoss", "Study"]
