import torch

from frechet.linalg._result import Status
from frechet.optimize._smooth.trust_region import trust_region
from smooth_problems import begun, far_logistic, rosenbrock


def test_rosenbrock_is_solved_to_rounding_in_a_krylov_space_and_with_a_matrix():
    for full in (0, 64):
        run = trust_region(*begun(rosenbrock, torch.full((6,), -1.2, dtype=torch.float64), full=full))
        assert run.status is None
        torch.testing.assert_close(run.point.x, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
        assert len(run.history) == run.iterations + 1 or run.iterations >= len(run.history)
        assert all(a >= b for a, b in zip(run.history[:-1], run.history[1:], strict=True))


def test_a_refused_step_costs_an_evaluation_and_no_product():
    f, point, rules = begun(lambda x: torch.sqrt(1 + x * x).sum(), torch.tensor([5.0]).double(), full=0)
    run = trust_region(f, point, rules)
    assert run.status is None
    assert f.counts.evaluations > f.counts.gradients  # some were refused
    assert f.counts.products <= f.counts.gradients + 1  # in one dimension a point needs one, and polishing looks once


def test_negative_curvature_is_followed_out_of_a_region_where_newton_goes_up():
    run = trust_region(*begun(lambda x: (0.25 * x**4 - x**2).sum(), torch.tensor([0.1, -0.2]).double(), full=0))
    torch.testing.assert_close(run.point.x.abs(), torch.full((2,), 2**0.5, dtype=torch.float64))


def test_the_far_logistic_start_is_no_difficulty():
    f, x0 = far_logistic()
    run = trust_region(*begun(f, x0, full=0))
    assert run.status is None
    assert run.point.largest < 1e-14
    assert run.iterations <= 30


def test_a_linear_function_is_unbounded_and_the_run_says_so():
    run = trust_region(*begun(lambda x: x.sum(), torch.zeros(2, dtype=torch.float64)))
    assert run.status is Status.UNBOUNDED
    assert "x runs away while f falls" in run.message


def test_a_discontinuous_function_stagnates():
    run = trust_region(*begun(lambda x: torch.where(x < 0.3, 2 - x, x - 0.1).sum(), torch.ones(1).double()))
    assert run.status is Status.STAGNATED


def test_a_nan_at_a_trial_refuses_the_step():
    run = trust_region(*begun(lambda x: (x - 3 * x.sqrt()).sum(), torch.tensor([25.0]).double()))
    assert run.status is None
    torch.testing.assert_close(run.point.x, torch.tensor([2.25]).double())


def test_iterations_are_limited_and_the_run_can_be_stopped():
    x0 = torch.full((6,), -1.2, dtype=torch.float64)
    assert trust_region(*begun(rosenbrock, x0, max_iterations=3)).status is Status.MAX_ITERATIONS
    seen = []
    run = trust_region(*begun(rosenbrock, x0), observe=lambda s: seen.append(s) or s.iteration == 2)
    assert run.status is Status.STOPPED
    assert [s.iteration for s in seen] == [0, 1, 2]
    assert seen[2].value == run.point.value == run.history[-1]
