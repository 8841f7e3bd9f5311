import math

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, gauss_newton, hessian, identity, l2, minimize, squared_error
from frechet.analyze import influence, leave_one_out
from frechet.errors import NonFinite, NotConverged
from frechet.operators.derivatives import kfac

F64 = torch.float64


def ridge(n=25, outputs=1):
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(n, 4, generator=g, dtype=F64), torch.randn(n, outputs, generator=g, dtype=F64)
    return X, y, (lambda: nn.Linear(4, outputs).double()), squared_error()


def softmax(n=40):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, 4, generator=g, dtype=F64)
    return X, torch.randint(0, 3, (n,), generator=g), (lambda: nn.Linear(4, 3).double()), cross_entropy()


def fitted(X, y, made, criterion, without=None):
    """The minimum, and that of the objective less one example's term."""
    torch.manual_seed(0)
    kept = [i for i in range(len(X)) if i != without]
    objective = Objective(made(), criterion, [(X[kept], y[kept])], penalty=l2(0.05 * len(X) / len(kept)))
    return objective, minimize(objective, gtol=1e-13).x


@pytest.mark.parametrize("outputs", [1, 3])
def test_leaving_out_is_exact_for_ridge_regression(outputs):
    X, y, made, criterion = ridge(outputs=outputs)
    objective, x = fitted(X, y, made, criterion)
    found = leave_one_out(objective, x=x)
    for i in range(len(X)):
        other, at = fitted(X, y, made, criterion, without=i)
        with torch.no_grad():
            weight, bias = other.space.unflatten(at).values()
            expected = X[i] @ weight.T + bias
        torch.testing.assert_close(found.outputs[i], expected, rtol=1e-8, atol=1e-10)
        assert float(found.losses[i]) == pytest.approx(float((expected - y[i]).square().mean()), rel=1e-7)
    assert found.loss == pytest.approx(float(found.losses.mean()))
    assert found.trained < found.loss


def test_leaving_out_is_one_newton_step_for_a_classifier():
    X, y, made, criterion = softmax()
    objective, x = fitted(X, y, made, criterion)
    found = leave_one_out(objective, x=x)
    for i in range(0, len(X), 5):
        other, at = fitted(X, y, made, criterion, without=i)
        weight, bias = other.space.unflatten(at).values()
        true = float(nn.functional.cross_entropy((X[i] @ weight.T + bias)[None], y[i : i + 1]))
        with torch.no_grad():
            weight, bias = objective.space.unflatten(x).values()
            trained = float(nn.functional.cross_entropy((X[i] @ weight.T + bias)[None], y[i : i + 1]))
        assert abs(float(found.losses[i]) - true) <= 0.1 * abs(true - trained) + 1e-9


@pytest.mark.parametrize("problem", [ridge, softmax])
def test_scores_are_the_products_of_gradients_with_the_inverse(problem):
    X, y, made, criterion = problem()
    objective, x = fitted(X, y, made, criterion)
    test = Objective(made(), criterion, [(X[:7] + 0.1, y[:7])])
    found = influence(objective, test, damping=0.01, rtol=1e-10, x=x)
    H = gauss_newton(objective, x=x).dense() + 0.01 * torch.eye(objective.space.dim, dtype=F64)
    v = test.gradient(x)
    for i in range(len(X)):
        g = Objective(objective.model, criterion, [(X[i : i + 1], y[i : i + 1])]).gradient(x)
        expected = float(v @ torch.linalg.solve(H, g)) / len(X)
        assert float(found.scores[i]) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert found.residual <= 1e-9
    assert found.top(3)[0][1] == float(found.scores.max())


def test_scores_predict_training_again():
    X, y, made, criterion = softmax()
    objective, x = fitted(X, y, made, criterion)
    test = Objective(objective.model, criterion, [(X[:9] * 0.9, y[:9])])
    scores = influence(objective, test, damping=0.0, curvature="hessian", rtol=1e-10, x=x).scores
    true = []
    for i in range(len(X)):
        _, at = fitted(X, y, made, criterion, without=i)
        true.append(float(test.value(at)) - float(test.value(x)))
    true = torch.tensor(true, dtype=F64)
    assert float(torch.corrcoef(torch.stack([scores, true]))[0, 1]) >= 0.98


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian", "kfac", "ekfac", "operator"])
def test_every_curvature_serves_several_functions(curvature):
    X, y, made, criterion = softmax()
    objective, x = fitted(X, y, made, criterion)
    V = torch.randn(objective.space.dim, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    given = gauss_newton(objective, x=x) + identity(objective.space) if curvature == "operator" else curvature
    found = influence(objective, V, damping=0.1, curvature=given, rtol=1e-9, x=x)
    assert found.scores.shape == (len(X), 3)
    single = influence(objective, V[:, 1], damping=0.1, curvature=given, rtol=1e-9, x=x)
    torch.testing.assert_close(single.scores, found.scores[:, 1], rtol=1e-6, atol=1e-10)
    assert found.residual <= 1e-8


def test_a_system_that_is_not_solved_raises():
    X, y, made, criterion = softmax()
    objective, x = fitted(X, y, made, criterion)
    with pytest.raises(NotConverged):
        influence(objective, torch.arange(15, dtype=F64) ** 2, damping=0.0, rtol=1e-12, max_iterations=1, x=x)


def test_wrong_arguments_are_named():
    X, y, made, criterion = softmax()
    objective, x = fitted(X, y, made, criterion)
    v = torch.ones(objective.space.dim, dtype=F64)
    for arguments, sentence in (
        ((v, -1.0, "gauss_newton"), "influence: damping must be a number >= 0, got -1"),
        ((v[:3], 1.0, "gauss_newton"), r"influence: functions must be gradients \(15,\) or \(15, k\), got \(3,\)"),
        ((v, 1.0, "fisher"), "influence: curvature must be 'gauss_newton', 'hessian', .* or an operator"),
        ((v, 1.0, "nystrom"), "influence: curvature='nystrom' needs rank= and seed=, got rank=None"),
        ((v, 0.0, "arnoldi"), "influence: curvature='arnoldi' needs rank= and seed="),
    ):
        with pytest.raises(ValueError, match=sentence):
            influence(objective, arguments[0], damping=arguments[1], curvature=arguments[2], x=x)
    with pytest.raises(NonFinite, match="influence: functions must have finite gradients"):
        influence(objective, v * math.nan, damping=1.0, x=x)
    other = Objective(nn.Linear(2, 1).double(), squared_error(), [(X[:, :2], X[:, :1])])
    with pytest.raises(ValueError, match="influence: functions must be on"):
        influence(objective, other, damping=1.0, x=x)
    flat = Objective(made(), criterion, [(X, y)])
    with pytest.raises(ValueError, match="leave_one_out: the curvature must be regular, got a singular matrix; give"):
        leave_one_out(flat, x=x)
    wide = Objective(nn.Linear(4, 1000), squared_error(), [(X.float(), torch.zeros(40, 1000))])
    with pytest.raises(ValueError, match="leave_one_out: at most 4000 parameters are served, got 5000"):
        leave_one_out(wide)


@pytest.mark.parametrize("curvature", ["arnoldi", "nystrom"])
def test_low_rank_curvatures_are_exact_at_full_rank_and_say_how_far_off_they_are(curvature):
    X, y, made, criterion = softmax()
    objective, x = fitted(X, y, made, criterion)
    V = torch.randn(objective.space.dim, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    exact = influence(objective, V, damping=0.05, rtol=1e-10, x=x)
    full = influence(objective, V, damping=0.05, curvature=curvature, rank=15, seed=0, x=x)
    torch.testing.assert_close(full.scores, exact.scores, rtol=1e-5, atol=1e-8)
    assert full.gauss_newton_residual < 1e-5
    part = influence(objective, V, damping=0.05, curvature=curvature, rank=5, seed=0, x=x)
    assert part.gauss_newton_residual > 0.01
    assert part.residual == 0.0


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian", "kfac", "ekfac", "operator"])
def test_the_residual_with_the_exact_matrix_is_the_dense_one(curvature):
    X, y, made, criterion = softmax()
    objective, x = fitted(X, y, made, criterion)
    v = torch.randn(15, generator=torch.Generator().manual_seed(1), dtype=F64)
    G = gauss_newton(objective, x=x)
    given = G + identity(G.domain) if curvature == "operator" else curvature
    found = influence(objective, v, damping=0.1, curvature=given, rtol=1e-10, x=x)
    used = {
        "gauss_newton": lambda: G, "hessian": lambda: hessian(objective, x=x), "operator": lambda: given,
        "kfac": lambda: kfac(objective, kind="gauss_newton", x=x),
        "ekfac": lambda: kfac(objective, kind="gauss_newton", corrected=True, x=x),
    }[curvature]().dense()  # fmt: skip
    eye = 0.1 * torch.eye(15, dtype=F64)
    u = torch.linalg.solve(used + eye, v)
    expected = float((v - (G.dense() + eye) @ u).norm() / v.norm())
    assert found.gauss_newton_residual == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_the_scores_of_a_group_are_the_sums_of_its_members():
    X, y, made, criterion = softmax()
    objective, x = fitted(X, y, made, criterion)
    V = torch.randn(15, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    found = influence(objective, V, damping=0.1, x=x)
    groups = torch.arange(40) % 3
    torch.testing.assert_close(found.grouped(groups), torch.stack([found.scores[groups == j].sum(0) for j in range(3)]))
    single = influence(objective, V[:, 0], damping=0.1, x=x)
    torch.testing.assert_close(single.grouped(groups), found.grouped(groups)[:, 0], rtol=1e-5, atol=1e-9)
    for wrong in (groups[:3], groups.double(), groups - 1):
        with pytest.raises(ValueError, match="numbers >= 0 for the 40 examples"):
            found.grouped(wrong)
