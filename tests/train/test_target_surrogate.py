import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, l2, squared_error
from frechet.objective.criteria import custom, poisson
from frechet.train import GaussNewton, SurrogateState, surrogate, surrogate_step

F64 = torch.float64
CRITERIA = {"cross_entropy": (cross_entropy(), 3), "squared_error": (squared_error(), 2), "poisson": (poisson(), 2)}


def problem(name, linear=False, parts=1):
    criterion, C = CRITERIA[name]
    torch.manual_seed(0)
    model = nn.Linear(4, C) if linear else nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C))
    X = torch.randn(15, 4, dtype=F64)
    y = torch.randint(0, C, (15,)) if name == "cross_entropy" else torch.rand(15, C, dtype=F64)
    model = model.double()
    first = Objective(model, criterion, [(X[:6], y[:6]), (X[6:10], y[6:10])])
    return first if parts == 1 else first + 0.5 * Objective(model, criterion, [(X[10:], y[10:])])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", list(CRITERIA))
def test_value_and_gradient_at_the_point_are_those_of_the_loss(name, parts):
    objective = problem(name, parts=parts)
    x = objective.point + 0.1
    s = surrogate(objective, x, eta=0.3)
    torch.testing.assert_close(s.value(x), objective.value(x))
    torch.testing.assert_close(s.gradient(x), objective.gradient(x))


@pytest.mark.parametrize(("name", "eta"), [("cross_entropy", 2.0), ("squared_error", 0.5)])
def test_up_to_one_over_the_smoothness_it_lies_above_the_loss(name, eta):
    objective = problem(name, parts=2)
    s, above = surrogate(objective, eta=eta), []
    g = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 3.0):
        for _ in range(10):
            x = objective.point + scale * torch.randn(objective.space.dim, generator=g, dtype=F64)
            above.append(float(s.value(x) - objective.value(x)))
    assert min(above) > -1e-12
    # and a larger eta is too bold: a broken twin of the law
    bold = surrogate(objective, eta=20 * eta)
    x = objective.point - 3.0 * objective.gradient() / objective.gradient().norm()
    assert float(bold.value(x)) < float(objective.value(x))


def test_the_squared_error_is_its_own_surrogate():
    objective = problem("squared_error", parts=2)
    s = surrogate(objective, eta=0.5)
    x = objective.point + torch.linspace(-1, 1, objective.space.dim, dtype=F64)
    torch.testing.assert_close(s.value(x), objective.value(x))
    torch.testing.assert_close(s.gradient(x), objective.gradient(x))


@pytest.mark.parametrize("name", list(CRITERIA))
def test_on_a_linear_model_it_is_projected_descent_in_the_outputs(name):
    objective = problem(name, linear=True)
    model, eta = objective.model, 0.2
    X = torch.cat([b.inputs for b in objective.batches()])
    y = torch.cat([b.targets for b in objective.batches()])
    z = model(X).detach()
    q = CRITERIA[name][0].score(z, y)
    wide = torch.cat([X, torch.ones(len(X), 1, dtype=F64)], 1)
    projected = wide @ torch.linalg.lstsq(wide, z - eta * q).solution
    x, _, info = surrogate_step(objective, objective.point, SurrogateState(), eta=eta, steps=120)
    moved = torch.func.functional_call(model, objective.space.unflatten(x), (X,))
    torch.testing.assert_close(moved, projected, rtol=1e-6, atol=1e-8)
    assert info.after < info.loss


def test_the_loss_is_asked_once_a_step():
    asked = []

    def loss(y, targets):
        asked.append(1)
        return (y - targets).square().sum(1)

    model = nn.Linear(3, 2).double()
    objective = Objective(model, custom(loss), [(torch.randn(9, 3, dtype=F64), torch.randn(9, 2, dtype=F64))])
    s = surrogate(objective, eta=0.5)
    before = len(asked)
    s.value()
    s.gradient(s.point + 1)
    assert len(asked) == before > 0


def test_steps_with_a_safe_eta_never_raise_the_loss_and_a_run_that_resumes_goes_on():
    objective = problem("cross_entropy", parts=2)
    x, state, losses = objective.point, SurrogateState(), [float(objective.value())]
    for step in range(6):
        if step == 3:
            saved = (x.clone(), state)
        x, state, info = surrogate_step(objective, x, state, eta=2.0, steps=4)
        losses.append(float(objective.value(x)))
        assert losses[-1] <= info.after + 1e-12
    assert losses == sorted(losses, reverse=True)
    again, other = saved
    for _ in range(3):
        again, other, _ = surrogate_step(objective, again, other, eta=2.0, steps=4)
    assert torch.equal(x, again)
    assert state == other
    assert state.steps == 6


def test_an_optimizer_takes_it_as_an_objective():
    objective = problem("cross_entropy")
    before = float(objective.value())
    GaussNewton(objective.model, cross_entropy()).step(surrogate(objective, eta=2.0))
    assert float(objective.value()) < before


def test_wrong_arguments_are_named():
    objective = problem("squared_error")
    with pytest.raises(ValueError, match=r"surrogate: eta must be a number > 0, got 0.0"):
        surrogate(objective, eta=0.0)
    with pytest.raises(TypeError, match="surrogate: objective must be an Objective, got Linear"):
        surrogate(nn.Linear(2, 2), eta=1.0)
    with pytest.raises(ValueError, match="got one with a penalty"):
        surrogate(Objective(objective.model, squared_error(), list(objective.parts[0].data), penalty=l2(1.0)), eta=1.0)
    headed = Objective(objective.model, squared_error(), list(objective.parts[0].data), head="2")
    with pytest.raises(ValueError, match="got one with head="):
        surrogate(headed, eta=1.0)
    for steps in (0, True, 2.0):
        with pytest.raises(ValueError, match="surrogate_step: steps must be an int >= 1"):
            surrogate_step(objective, objective.point, SurrogateState(), eta=0.1, steps=steps)


def test_the_next_step_begins_with_twice_the_length_that_was_taken():
    objective = problem("cross_entropy")
    x, g = objective.point, objective.gradient()
    moved, state, _ = surrogate_step(objective, x, SurrogateState(length=64.0), eta=2.0, steps=1)
    assert state.length < 128
    torch.testing.assert_close(moved, x - state.length / 2 * g)
