"""A mask says which function of the coordinates it is, and refuses what is none."""

import re

import pytest

import pernodedrop as pnd
from pernodedrop import checks, mask

pytestmark = pytest.mark.once
NOISE = pnd.Bernoulli(0.5)
PER_SAMPLE = {"bank": 2, "example": None}  # regimes in which samples differ, and the size of the bank


@pytest.mark.parametrize(("regime", "bank_size"), PER_SAMPLE.items())
@pytest.mark.parametrize("sharing", ["sample", "sample+time", ["in", "sample"]], ids=str)
def test_masks_of_samples_cannot_be_shared_by_samples(regime, bank_size, sharing):
    words = checks.invalid("sharing", f"samples apart with regime={regime!r}", sharing)
    with pytest.raises(ValueError, match=re.escape(words)):
        mask.Mask(NOISE, sharing, regime, bank_size)


@pytest.mark.parametrize("sharing", [(), "time", "in+out"], ids=str)
def test_other_coordinates_are_shared_in_every_regime(sharing):
    for regime in mask.REGIMES:
        shared = mask.Mask(NOISE, sharing, regime, PER_SAMPLE.get(regime)).sharing
        assert shared == mask.parse_sharing(sharing) | ({"sample"} if regime == "fixed" else set())


def test_a_new_mask_at_every_call_may_be_shared_by_samples():
    assert mask.Mask(NOISE, "sample").sharing == {"sample"}
