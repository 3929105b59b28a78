"""The recomputed product never has the mask in memory."""

import sys

import pytest

from tests.processes import child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux' /proc")

MIB = 2**20
# large buffers go back to the system when freed, instead of splitting the allocator's free memory by chance
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 * MIB)}


@pytest.mark.parametrize("inputs", [4096, 16384])
def test_peak_of_a_recomputed_step_is_small_whatever_the_input(inputs):
    """The mask is 134 MB at 4096 inputs, 537 MB at 16384."""
    seen = child("peak_memory.py", "recomputed", inputs, **MALLOC)
    assert seen["extra"] < 24 * MIB < seen["mask"]


def test_peak_of_a_materialized_step_shows_the_mask():
    """The measurement sees a mask where there is one."""
    seen = child("peak_memory.py", "materialized", 4096, **MALLOC)
    assert seen["extra"] > seen["mask"]
