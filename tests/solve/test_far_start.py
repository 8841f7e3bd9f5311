import pytest
import torch

from frechet.solve.minimize import minimize


def double_well(x):
    """Minima of -100.317 near 3.165 in each entry, whatever the distance of the start."""
    return (x**4 - 20 * x**2 - 0.1 * x).sum()


@pytest.mark.parametrize("start", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("bounds", [None, (-1e11, 1e11)])
def test_a_start_far_up_does_not_make_a_large_gradient_small(start, bounds):
    x0 = torch.tensor([start, -start], dtype=torch.float64)
    s = minimize(double_well, x0, bounds=bounds).checked()
    assert s.value < -199
    assert s.residual <= 1e-6  # an error of 1e-9 of x
    assert s.iterations <= 200


def test_cubic_growth_too():
    s = minimize(lambda x: x.abs().pow(3).sum() - 20 * x.square().sum(), torch.full((3,), 1e12, dtype=torch.float64))
    assert s.converged
    assert s.x.tolist() == pytest.approx([40 / 3] * 3, rel=1e-10)


def test_a_tolerance_of_the_callers_is_taken_as_it_is():
    x0 = torch.full((2,), 1e8, dtype=torch.float64)
    s = minimize(double_well, x0, gtol=1e12)
    assert s.converged
    assert 1e3 < s.residual <= 1e12


def test_a_quadratic_is_solved_once():
    calls = []

    def f(x):
        calls.append(1)
        return 0.5 * (x - 3).square().sum()

    s = minimize(f, torch.full((4,), 1e9, dtype=torch.float64)).checked()
    assert s.iterations <= 5
    assert len(calls) <= 12


def test_rounding_in_float32_is_no_far_start():
    x0 = torch.tensor([-1.2, 1.0, -1.2, 1.0])
    plain = minimize(lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(), x0).checked()
    assert plain.evaluations <= 60
