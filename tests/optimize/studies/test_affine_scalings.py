import pytest
import torch

from frechet import least_squares
from frechet.optimize._least_squares.affine_scaling import SCALINGS
from frechet.optimize.studies import interior_least_squares
from more_garbow_hillstrom import PROBLEMS

BOX = next(p for p in PROBLEMS if p.name == "box")


@pytest.mark.parametrize("scaling", [*SCALINGS, "combined"])
def test_known_minimum_between_bounds(scaling):
    seen = []
    s = interior_least_squares(
        BOX.residual, BOX.start, bounds=(BOX.lower, BOX.upper), scaling=scaling, observe=lambda t: bool(seen.append(t))
    )
    assert s.converged
    wanted = BOX.bounded_minimum
    assert abs(2 * s.cost - wanted) <= 1e-4 * (wanted if wanted > 0 else 1.0)
    assert s.method == f"interior, {scaling}, dense Jacobian by {s.method.rsplit(' ', 1)[1]}"
    assert len(seen) >= s.iterations


def test_the_combination_is_the_method_of_least_squares_and_others_go_other_ways():
    bounds = (BOX.lower, BOX.upper)
    plain = least_squares(BOX.residual, BOX.start, bounds=bounds, method="interior")
    found = {
        k: interior_least_squares(BOX.residual, BOX.start, bounds=bounds, scaling=k) for k in (*SCALINGS, "combined")
    }
    assert found["combined"].history == plain.history
    assert torch.equal(found["combined"].x, plain.x)
    assert len({s.history for s in found.values()}) == 5


def test_arguments():
    with pytest.raises(ValueError, match=r"interior_least_squares: scaling must be one of 'coleman-li'.*got 'newton'"):
        interior_least_squares(BOX.residual, BOX.start, bounds=(0.0, 1.0), scaling="newton")
    with pytest.raises(ValueError, match=r"interior_least_squares: max_evaluations must be >= 1, got 0"):
        interior_least_squares(BOX.residual, BOX.start, bounds=(0.0, 1.0), max_evaluations=0)
