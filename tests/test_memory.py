"""A product whose mask is made again never has it in memory."""

import sys

import pytest

from pernodedrop.commands.bench.command import MALLOC
from tests.processes import child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux' /proc"),
]

MIB = 2**20
BOUNDS = {"kernel-4096": 16 * MIB, "recomputed-16384": 32 * MIB}
MATERIALIZED = "materialized-4096"


@pytest.fixture(scope="module")
def peaks():
    """Peaks of steps, in one process of their own: of a method and a number of inputs, and what its mask would take."""
    return child("peak_memory.py", *BOUNDS, MATERIALIZED, **MALLOC)


@pytest.mark.parametrize("step", BOUNDS)
def test_peak_of_a_step_is_small_whatever_the_input(step, peaks):
    """The mask is 34 MB at 4096 inputs, 134 MB at 16384."""
    assert peaks[step]["extra"] < BOUNDS[step] < peaks[step]["mask"]


def test_peak_of_a_materialized_step_shows_the_mask(peaks):
    """The measurement sees a mask where there is one."""
    assert peaks[MATERIALIZED]["extra"] > peaks[MATERIALIZED]["mask"]
