import dataclasses
import math

import pytest
import torch

from frechet import least_squares
from frechet.optimize import LeastSquaresState
from frechet.optimize._least_squares import gram_factor
from frechet.optimize._least_squares import target_ratio as module
from frechet.physics import collocation
from pinns import F64, network, parameters_of, poisson, square


def rosenbrock(x):
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def decay(x):
    t = torch.linspace(0, 3, 20, dtype=F64)
    return x[0] * torch.exp(-x[1] * t) + x[2] - (2 * torch.exp(-t) + 0.5)


def circle(x):
    """More parameters than residuals: a curve of solutions."""
    return (x.square().sum() - 1)[None]


@pytest.mark.parametrize(
    ("residual", "start"),
    [(rosenbrock, [-1.2, 1.0]), (decay, [1.0, 0.3, 0.0]), (circle, [3.0, 2.0, 1.0]), (circle, [1e-3, 0.0, 0.0])],
)
def test_it_solves(residual, start):
    s = least_squares(residual, torch.tensor(start, dtype=F64), method="target-ratio")
    assert s.converged, s.message
    assert s.residual < 1e-12


def test_bounds_hold():
    seen = []

    def watched(x):
        seen.append(x.detach().clone())
        return rosenbrock(x)

    s = least_squares(watched, torch.tensor([-1.2, 1.0], dtype=F64), bounds=(-2.0, 0.8), method="target-ratio")
    assert s.converged
    assert float(s.x[0]) == pytest.approx(0.8)
    assert float(torch.stack(seen).max()) <= 0.8


def test_a_residual_that_is_not_finite_shortens_the_step():
    s = least_squares(lambda x: torch.log(x) + 3, torch.tensor([5.0], dtype=F64), method="target-ratio")
    assert s.converged
    assert float(s.x[0]) == pytest.approx(math.exp(-3), rel=1e-12)


def test_the_cost_never_rises_and_the_step_is_the_longest():
    """Each accepted radius meets the target, and the next in the window does not, or is the last."""
    s = least_squares(rosenbrock, torch.tensor([-1.2, 1.0], dtype=F64), method="target-ratio")
    assert all(b <= a for a, b in zip(s.history, s.history[1:], strict=False))


def net_problem():
    net = network(2, 12, 1)
    inside, edge = square(10, 6)
    return collocation(poisson(net), {"equation": inside, "boundary": edge}), parameters_of(net)


def test_a_low_target_takes_fewer_steps(monkeypatch):
    """The claim of the source: a model that must be right to a half takes shorter steps."""
    residual, p = net_problem()
    steps = {}
    for target in (0.075, 0.9):
        monkeypatch.setattr(module, "TARGET", target)
        s = least_squares(residual, p, observe=lambda state: state.cost < 1e-3, max_evaluations=3000)
        assert s.cost < 1e-3
        steps[target] = s.iterations
    assert steps[0.075] < steps[0.9]


def watched(limit, keep, at):
    """An observer that stops after `limit` steps and keeps the state of step `at`."""

    def observe(state):
        if state.iteration == at:
            keep.append(state)
        return state.iteration >= limit

    return observe


@pytest.mark.parametrize("method", ["target-ratio", "adaptive-damping"])
@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("problem", ["network", "singular", "bounded"])
def test_a_resumed_run_has_the_same_bits(method, at, problem):
    options = {"method": method}
    if problem == "network":
        residual, p = net_problem()
    elif problem == "singular":  # steps that shrink by a constant factor
        residual, p = (lambda x: torch.stack([(x["a"] ** 3).sum(), x["a"][0] ** 2])), {"a": torch.ones(2, dtype=F64)}
    else:
        residual, p = (lambda x: rosenbrock(x["a"])), {"a": torch.tensor([-1.2, 1.0], dtype=F64)}
        options["bounds"] = (-2.0, 0.8)
    kept, seen, again = [], [], []
    whole = least_squares(residual, p, observe=lambda s: seen.append(s) or s.iteration >= 30, **options)
    least_squares(residual, p, observe=watched(at, kept, at), **options)
    left = 30 - at
    rest = least_squares(
        residual, p, resume=kept[-1], observe=lambda s: again.append(s) or s.iteration >= left, **options
    )
    assert all(torch.equal(whole.x[name], rest.x[name]) for name in p)
    assert whole.iterations == at + rest.iterations
    assert [s.control for s in seen[at:]] == [s.control for s in again]
    assert whole.history[at:] == rest.history
    assert whole.status is rest.status


@pytest.mark.parametrize("method", ["target-ratio", "adaptive-damping"])
def test_a_state_survives_a_file(method, tmp_path):
    residual, p = net_problem()
    kept = []
    least_squares(residual, p, method=method, observe=watched(3, kept, 3))
    torch.save(dataclasses.asdict(kept[0]), tmp_path / "state.pt")
    read = LeastSquaresState(**torch.load(tmp_path / "state.pt", weights_only=True))
    runs = [least_squares(residual, p, method=method, resume=s, observe=watched(3, [], 3)) for s in (kept[0], read)]
    assert all(torch.equal(runs[0].x[name], runs[1].x[name]) for name in p)


def test_other_methods_do_not_resume():
    kept = []
    x = torch.ones(3, dtype=F64)
    least_squares(decay, x, observe=lambda s: kept.append(s) or False)
    with pytest.raises(ValueError, match="resume must come with method 'target-ratio' or 'adaptive-damping'"):
        least_squares(decay, x, resume=kept[0])
    with pytest.raises(ValueError, match="resume must be a state of method 'adaptive-damping'"):
        least_squares(decay, x, method="adaptive-damping", resume=kept[0])
    least_squares(decay, x, method="target-ratio", observe=lambda s: kept.append(s) or False)
    with pytest.raises(ValueError, match="resume must be a state of method 'adaptive-damping'"):
        least_squares(decay, x, method="adaptive-damping", resume=kept[-1])


# --- wide problems ----------------------------------------------------------------------------------------------------


def test_squares_and_singular_values_take_the_same_steps(monkeypatch):
    """J J' loses half of the digits of small singular values; the run does not show it."""
    residual, p = wide_problem()
    exact = least_squares(residual, p, max_evaluations=400)
    monkeypatch.setattr(gram_factor, "WIDE", 1)
    squared = least_squares(residual, p, max_evaluations=400)
    assert squared.residual < 1e-10
    assert squared.residual < 1e3 * max(exact.residual, 1e-12)


def test_the_cost_of_wide_steps(monkeypatch):
    """Far from a solution no point is factored by its singular values."""
    monkeypatch.setattr(gram_factor, "WIDE", 1)
    calls = []
    original = gram_factor.factored
    monkeypatch.setattr(gram_factor, "factored", lambda *a: calls.append(a) or original(*a))
    residual, p = wide_problem()
    s = least_squares(residual, p, observe=lambda state: state.iteration >= 3)
    assert s.iterations == 3
    assert not calls


def wide_problem():
    net = network(2, 60, 1)
    inside, edge = square(30, 12)
    return collocation(poisson(net), {"equation": inside, "boundary": edge}), parameters_of(net)
