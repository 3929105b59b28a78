"""Is an uncertainty right? Figures of predictions and what came true.

Functions take whole arrays, compute with NumPy in float64 and return floats: of probabilities of classes
(`calibration_error`, `nll`, `brier_score`), of uncertainties that should tell what not to believe (`detection`,
`risk_coverage`), and of predicted distributions of numbers (`gaussian_nll`, `crps`, `intervals`). Two are Keras metrics
too, for `compile`; nothing else here needs Keras.
"""

import typing

from pernodedrop import _lazy
from pernodedrop.uncertainty.metrics.classification import (
    BrierDecomposition,
    Reliability,
    brier_decomposition,
    brier_score,
    calibration_error,
    calibration_error_by_chance,
    nll,
    reliability,
)
from pernodedrop.uncertainty.metrics.regression import (
    Intervals,
    Variances,
    crps,
    gaussian_crps,
    gaussian_nll,
    intervals,
    split_variance,
)
from pernodedrop.uncertainty.metrics.selection import Detection, RiskCoverage, detection, energy, risk_coverage

if typing.TYPE_CHECKING:
    from pernodedrop.uncertainty.metrics.accumulated import BrierScore, CalibrationError
else:
    __getattr__, __dir__ = _lazy.names(__name__, BrierScore="accumulated", CalibrationError="accumulated")

__all__ = [
    "BrierDecomposition",
    "BrierScore",
    "CalibrationError",
    "Detection",
    "Intervals",
    "Reliability",
    "RiskCoverage",
    "Variances",
    "brier_decomposition",
    "brier_score",
    "calibration_error",
    "calibration_error_by_chance",
    "crps",
    "detection",
    "energy",
    "gaussian_crps",
    "gaussian_nll",
    "intervals",
    "nll",
    "reliability",
    "risk_coverage",
    "split_variance",
]
