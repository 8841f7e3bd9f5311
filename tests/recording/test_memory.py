import sys

import pytest
import torch

from frechet.recording import peak_above, start_peak

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its high-water mark")
def test_the_peak_sees_memory_that_was_freed_again():
    before = start_peak(CPU)
    if before is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    block = torch.ones(50_000_000)  # 200 MB
    del block
    peak = peak_above(before, CPU)
    assert peak is not None
    assert 190e6 < peak < 260e6


def test_what_cannot_be_known_is_none():
    assert peak_above(None, CPU) is None
