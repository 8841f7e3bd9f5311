import pytest
import torch
from scipy.optimize import minimize

from frechet.optimize._nonsmooth.convex import Convex, convex_function
from spectra import F64, gaussian


@pytest.mark.parametrize("name", ["l1", "huber", "max"])
@pytest.mark.parametrize("s", [0.1, 1.0, 7.0])
def test_the_proximal_point_minimizes_what_it_says(name, s):
    h, z = convex_function(name), 2 * gaussian(6)
    p = h.prox(z, s)

    def objective(u):
        return float(h.value(u)) + float((u - z).square().sum()) / (2 * s)

    least = objective(p)
    for seed in range(200):
        for scale in (1.0, 1e-2, 1e-4):
            assert objective(p + scale * gaussian(6, seed=seed)) >= least - 1e-13
    found = minimize(
        lambda u: objective(torch.from_numpy(u)), z.numpy(), method="Nelder-Mead", options={"maxiter": 4000}
    )
    assert least <= found.fun + 1e-12


@pytest.mark.parametrize("name", ["l1", "huber", "max"])
def test_subgradients_support_the_function(name):
    h, z, s = convex_function(name), 2 * gaussian(6), 0.5
    p = h.prox(z, s)
    y = (z - p) / s
    for seed in range(100):
        u = 3 * gaussian(6, seed=seed)
        assert float(h.value(u)) >= float(h.value(p) + y @ (u - p)) - 1e-12


def test_values_are_the_definitions():
    z = torch.tensor([-3.0, 0.5, 1.0], dtype=F64)
    assert float(convex_function("l1").value(z)) == 4.5
    assert float(convex_function("max").value(z)) == 1.0
    assert float(convex_function("huber").value(z)) == pytest.approx(2.5 + 0.125 + 0.5)


def test_the_largest_of_equal_entries_shares_the_weight():
    h = convex_function("max")
    p = h.prox(torch.full((4,), 2.0, dtype=F64), 1.0)
    assert torch.allclose(p, torch.full((4,), 1.75, dtype=F64))
    assert torch.equal(h.prox(torch.tensor([5.0]), 2.0), torch.tensor([3.0]))


def test_a_function_of_the_user_is_kept_and_an_unknown_name_is_refused():
    mine = Convex(lambda z: z.sum(), lambda z, s: z - s)
    assert convex_function(mine) is mine
    with pytest.raises(ValueError, match="h must be 'l1', 'huber', 'max' or a Convex, got 'hinge'"):
        convex_function("hinge")
