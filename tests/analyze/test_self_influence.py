import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, gauss_newton, hessian, l2, minimize, squared_error
from frechet.analyze import leave_one_out, self_influence
from frechet.operators.derivatives import kfac

F64 = torch.float64


def problem(penalty=0.05):
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(30, 4, generator=g, dtype=F64), torch.randint(0, 3, (30,), generator=g)
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    data = [(X[:11], y[:11]), (X[11:], y[11:])]
    return Objective(model, cross_entropy(), data, penalty=l2(penalty) if penalty else None), X, y


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian", "kfac", "ekfac", "nystrom", "arnoldi"])
def test_scores_are_the_quadratic_forms_of_the_gradients(curvature):
    objective, X, y = problem()
    x = objective.point
    H = {
        "gauss_newton": gauss_newton, "hessian": hessian, "arnoldi": gauss_newton, "nystrom": gauss_newton,
        "kfac": lambda o: kfac(o, kind="gauss_newton"),
        "ekfac": lambda o: kfac(o, kind="gauss_newton", corrected=True),
    }[curvature](objective).dense() + 0.1 * torch.eye(15, dtype=F64)  # fmt: skip
    found = self_influence(objective, damping=0.1, curvature=curvature, rank=15, seed=0, rtol=1e-10)
    for i in range(30):
        g = Objective(objective.model, cross_entropy(), [(X[i : i + 1], y[i : i + 1])]).gradient(x)
        expected = float(g @ torch.linalg.solve(H, g)) / 30
        assert float(found.scores[i]) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(
        found.losses, nn.functional.cross_entropy(objective.model(X), y, reduction="none").detach()
    )


def test_for_ridge_regression_they_are_the_first_order_of_leaving_out():
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(200, 3, generator=g, dtype=F64), torch.randn(200, 1, generator=g, dtype=F64)
    objective = Objective(nn.Linear(3, 1).double(), squared_error(), [(X, y)], penalty=l2(0.1))
    x = minimize(objective, gtol=1e-12).x
    found = self_influence(objective, damping=0.0, curvature="gauss_newton", rtol=1e-10, x=x)
    exact = leave_one_out(objective, x=x).losses - found.losses
    assert float((found.scores / exact - 1).abs().max()) < 0.15  # leverages are about 4 / 200
    assert float(torch.corrcoef(torch.stack([found.scores, exact]))[0, 1]) > 0.999


def test_wrong_labels_come_first():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(100, 4, generator=g, dtype=F64)
    y = (X[:, 0] > 0).long()
    y[:4] = 1 - y[:4]
    objective = Objective(nn.Linear(4, 2).double(), cross_entropy(), [(X, y)], penalty=l2(0.02))
    x = minimize(objective, gtol=1e-8).x
    found = self_influence(objective, damping=0.01, x=x)
    assert {i for i, _ in found.top(6)} >= {0, 1, 2, 3}
    assert "EKFAC" in repr(found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"damping": -1.0}, "damping must be a number >= 0"),
        ({"damping": 1.0, "curvature": "fisher"}, "self_influence: curvature must be"),
        ({"damping": 1.0, "curvature": "arnoldi"}, "needs rank= and seed="),
    ],
)
def test_what_does_not_fit_is_said(given, said):
    with pytest.raises(ValueError, match=said):
        self_influence(problem()[0], **given)
