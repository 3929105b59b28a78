"""A testing kit for noises of one's own: is a noise what it claims to be, on every backend?

>>> import pernodedrop as pnd
>>> print(pnd.testing.check_noise(pnd.Bernoulli(0.5), backends=["numpy"], examples=5))
Bernoulli(rate=0.5): 16 claims hold on numpy.
Not applicable or not tried there: normality, reparameterization, agreement, everywhere,
    compilation, gradients, reparameterized_gradients.

Reading order: claims.py is the contract, variation.py the numbers that a noise is tried with, search.py looks for
examples that break a claim; the other files serve these three.
"""

from pernodedrop.testing import claims
from pernodedrop.testing.contract import NoiseContract
from pernodedrop.testing.report import Finding, Outcome, Refused, Report
from pernodedrop.testing.search import check_noise
from pernodedrop.testing.verdict import Broken

__all__ = ["Broken", "Finding", "NoiseContract", "Outcome", "Refused", "Report", "check_noise", "claims"]
