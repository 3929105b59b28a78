"""MC Dropout: predictions with their uncertainty, from passes that keep the noise (arXiv 1506.02142).

`predict` makes the passes of a Keras model (`models`), and needs Keras, which is imported for it; what is said of them,
in any framework, does not: the `Prediction`, its `metrics` and `plots`, `calibration` and `decisions`.
"""

import typing

from pernodedrop import _lazy
from pernodedrop.uncertainty.prediction import Prediction
from pernodedrop.uncertainty.report import Disagreement, Report

if typing.TYPE_CHECKING:
    from pernodedrop.uncertainty.models import predict
else:
    __getattr__, __dir__ = _lazy.names(__name__, predict="models")

__all__ = ["Disagreement", "Prediction", "Report", "predict"]
