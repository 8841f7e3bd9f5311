import pytest
import torch

from frechet import Status, from_diagonal, from_matrix
from frechet.calculus.solutions._approximate_inverse import InverseRules

F64 = torch.float64
D = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=F64)
H = from_matrix(torch.diag(D), facts="positive_definite")
B = torch.ones(4, dtype=F64)


@pytest.mark.parametrize(
    ("given", "spent"),
    [
        ({}, 4 + 1),
        ({"rank": 4, "seed": 0}, 2 + 4),
        ({"preconditioner": from_diagonal(1 / D)}, 4 + 1),
        ({"inverse": "neumann", "terms": 200, "scale": 0.2}, 200),
        ({"inverse": "nystrom", "rank": 4, "seed": 0}, 4 + 1),
    ],
)
@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_every_way_solves_the_damped_system_and_counts(given, spent, damping):
    solver, setup = InverseRules(damping=damping, **given).checked().solver(H)
    s = solver(B)
    assert s.converged
    assert torch.allclose(s.x, 1 / (D + damping), atol=1e-7)
    assert s.products + setup <= spent
    assert s.residual <= 1.5e-8 * 2


def test_a_neumann_series_has_its_residual_in_closed_form():
    solver, _ = InverseRules("neumann", terms=7, scale=0.1).solver(H)
    s = solver(B)
    assert s.residual == pytest.approx(float(((1 - 0.1 * D) ** 7).square().sum().sqrt()))
    assert torch.allclose(s.x, (1 - (1 - 0.1 * D) ** 7) / D)
    assert (s.status, s.products) == (Status.MAX_ITERATIONS, 7)


def test_the_scale_is_found_below_the_limit_and_paid_for():
    solver, setup = InverseRules("neumann", seed=0).solver(H)
    s = solver(B)
    assert setup > 0
    assert "100 terms" in s.message
    assert 0.1 < float(s.message.rpartition(" ")[2]) <= 1 / 8 + 1e-9
    assert s.residual < 1e-3


def test_low_rank_is_told_from_converged():
    solver, _ = InverseRules("nystrom", rank=2, damping=0.1, seed=0).solver(H)
    assert solver(B).status is Status.MAX_ITERATIONS
    zero = solver(0 * B)
    assert (zero.converged, float(zero.x.abs().max())) == (True, 0.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inverse": "lu"}, "inverse must be one of 'cg', 'neumann', 'nystrom', got 'lu'"),
        ({"damping": -1.0}, "damping must be a number >= 0, got -1.0"),
        ({"rtol": -1.0}, "rtol must be a number >= 0"),
        ({"terms": 3}, "terms and scale must come with inverse='neumann', got inverse='cg'"),
        ({"inverse": "neumann", "terms": 0, "scale": 1.0}, "terms must be >= 1 and scale > 0"),
        ({"inverse": "neumann"}, "seed must be given where the scale of the Neumann series"),
        ({"inverse": "neumann", "rank": 3}, "rank must come with inverse='cg' or 'nystrom'"),
        ({"inverse": "nystrom"}, "inverse='nystrom' needs rank, got None"),
        ({"rank": 3}, "seed must be given where a Nystrom approximation is drawn"),
        ({"rank": 3, "seed": 0, "preconditioner": H}, "preconditioner must come with inverse='cg' and no rank"),
        ({"inverse": "nystrom", "rank": 3, "seed": 0, "observe": bool}, "observe must come with"),
    ],
)
def test_choices_that_do_not_go_together_are_named(change, match):
    with pytest.raises(ValueError, match=f"hypergradient: {match}"):
        InverseRules(**change).checked()
