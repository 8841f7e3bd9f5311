import pytest

from frechet.linalg._result import exact_estimate
from frechet.report._schema import Cost, Density, Measured, Slice, from_estimate

FREE = Cost(0, 0, 0.0)


def test_intervals_and_lengths_are_checked():
    with pytest.raises(ValueError, match="lower must be at most upper"):
        Measured(1.0, 2.0, 1.0, 0.95, False, FREE, "m")
    with pytest.raises(ValueError, match="level must lie in"):
        Measured(1.0, 0.0, 2.0, 0.0, False, FREE, "m")
    with pytest.raises(ValueError, match="must have one length"):
        Density((0.0, 1.0), (1.0,), (0.0,), (2.0,), 0.95, 0.1, 8, 4, 0, FREE, "m")
    with pytest.raises(ValueError, match="must have one length"):
        Slice("d", 1.0, (0.0,), (1.0, 2.0), (1.0,))


def test_an_estimate_becomes_a_number_with_its_interval():
    m = from_estimate(exact_estimate(3.0), cost=FREE)
    assert (m.lower, m.value, m.upper, m.exact) == (3.0, 3.0, 3.0, True)
