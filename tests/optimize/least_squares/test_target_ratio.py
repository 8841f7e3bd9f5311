import math

import pytest
import torch

from frechet import least_squares
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


@pytest.mark.parametrize("at", [1, 5])
def test_a_resumed_run_has_the_same_bits(at):
    residual, p = net_problem()
    kept = []

    def stop_at(k):
        def observe(state):
            if state.iteration == at:
                kept.append(state)
            return state.iteration >= k

        return observe

    whole = least_squares(residual, p, observe=stop_at(8))
    least_squares(residual, p, observe=stop_at(at))
    rest = least_squares(residual, p, resume=kept[-1], observe=stop_at(8 - at))
    assert all(torch.equal(whole.x[name], rest.x[name]) for name in p)
    assert whole.iterations == at + rest.iterations


def test_other_methods_do_not_resume():
    kept = []
    least_squares(decay, torch.ones(3, dtype=F64), observe=lambda s: kept.append(s) or False)
    with pytest.raises(ValueError, match="resume must come with method 'target-ratio'"):
        least_squares(decay, torch.ones(3, dtype=F64), resume=kept[0])
