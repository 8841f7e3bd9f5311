"""Two sets of loss curves: what is the same, what is not, and how often chance alone looks like a difference."""

import math

import pytest
import torch

from frechet.analyze import trajectory_invariance


def curves(n, shift, seed, points=12):
    """Noisy curves whose noise goes on from point to point, as that of a training run."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, points, generator=draw, dtype=torch.float64).cumsum(1) / 10
    return list((torch.linspace(1, 0, points, dtype=torch.float64) + shift + noise).exp())


def test_distance_and_spread_by_hand():
    first, second = [torch.tensor([1.0, 1.0]), torch.tensor([math.e, 1.0])], [torch.tensor([1.0, 1.0])] * 2
    found = trajectory_invariance(first, second)
    assert found.distance == pytest.approx(math.sqrt(0.25 / 2), rel=1e-6)  # means differ by (1/2, 0)
    assert found.spread == pytest.approx(math.sqrt((0.5 + 0.0) / 2 / 2), rel=1e-6)
    assert found.smallest == pytest.approx(2 / 6)
    assert found.ratio == pytest.approx(1.0, rel=1e-6)


def test_under_one_law_small_p_values_are_as_rare_as_they_say():
    """p <= 0.1 in at most a tenth of cases; 200 cases exceed 0.17 with probability below 0.001."""
    small = 0
    for seed in range(200):
        both = curves(8, 0.0, seed)
        small += trajectory_invariance(both[:4], both[4:]).p_value <= 0.1
    assert small / 200 <= 0.17


def test_another_law_is_seen():
    seen = [trajectory_invariance(curves(4, 0.0, s), curves(4, 1.5, 1000 + s)) for s in range(20)]
    assert sum(found.p_value == found.smallest for found in seen) >= 18
    assert min(found.ratio for found in seen) > 2


def test_many_curves_are_dealt_at_random():
    found = trajectory_invariance(curves(9, 0.0, 0), curves(9, 1.0, 1))
    assert found.smallest == pytest.approx(2 / 5001)
    assert found.p_value < 0.01
    assert found == trajectory_invariance(curves(9, 0.0, 0), curves(9, 1.0, 1))


def test_the_same_curves_are_no_difference():
    same = [torch.tensor([2.0, 1.0])] * 2
    found = trajectory_invariance(same, same)
    assert (found.distance, found.p_value, found.ratio) == (0.0, 1.0, 1.0)


def test_bad_arguments():
    good = curves(2, 0.0, 0)
    with pytest.raises(ValueError, match="two curves or more of each setting, got 1 and 2"):
        trajectory_invariance(good[:1], good)
    with pytest.raises(ValueError, match="at the same steps"):
        trajectory_invariance(good, curves(2, 0.0, 0, points=3))
    with pytest.raises(ValueError, match="positive and finite"):
        trajectory_invariance(good, [-c for c in good])
