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


@pytest.mark.parametrize(("method", "inputs", "bound"), [("kernel", 4096, 16), ("recomputed", 16384, 32)])
def test_peak_of_a_step_is_small_whatever_the_input(method, inputs, bound):
    """The mask is 134 MB at 4096 inputs, 537 MB at 16384."""
    seen = child("peak_memory.py", method, inputs, **MALLOC)
    assert seen["extra"] < bound * MIB < seen["mask"]


def test_peak_of_a_materialized_step_shows_the_mask():
    """The measurement sees a mask where there is one."""
    seen = child("peak_memory.py", "materialized", 4096, **MALLOC)
    assert seen["extra"] > seen["mask"]
