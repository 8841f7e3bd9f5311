"""The index of stability: 1 where the optimizer's own iteration turns unstable."""

import pytest
import torch
from torch import nn

from frechet import Objective, eigsh, hessian, squared_error
from frechet.analyze import optimizer_metric

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")


def quadratic(seed=0):
    """Two blocks under a quadratic loss, and its Hessian."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2, bias=False).double(), nn.Linear(2, 1, bias=False).double())
    X = torch.randn(20, 3, dtype=torch.float64)
    return model, Objective(model, squared_error(), [(X, torch.randn(20, 1, dtype=torch.float64))])


def step_matrix(optimizer, model, objective, H):
    """The linear map of the parameters and the optimizer's buffers over one step, by steps from unit vectors.

    The gradient is H x; state that the optimizer holds beside its buffer stays as it is.
    """
    params, space = list(model.parameters()), objective.space
    key = "exp_avg" if "exp_avg" in optimizer.state[params[0]] else "momentum_buffer"
    n = space.dim
    columns = []
    kept = {p: {k: v.clone() for k, v in optimizer.state[p].items() if v is not None} for p in params}
    for j in range(2 * n):
        z = torch.zeros(2 * n, dtype=torch.float64)
        z[j] = 1e-3
        for p, x, g, m in zip(params, *(space.split(v) for v in (z[:n], H @ z[:n], z[n:])), strict=True):
            for name, value in kept[p].items():
                optimizer.state[p][name] = value.clone()
            p.data.copy_(x)
            p.grad = g.clone()
            optimizer.state[p][key].copy_(m)
        optimizer.step()
        after = [torch.cat([t.reshape(-1) for t in tensors]) for tensors in (
            [p.data for p in params], [optimizer.state[p][key] for p in params])]  # fmt: skip
        columns.append(torch.cat(after) / 1e-3)
    return torch.stack(columns, 1)


SETTINGS = [
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {"momentum": 0.7, "nesterov": True}),
    (torch.optim.SGD, {"momentum": 0.7, "weight_decay": 0.4}),
    # the second moment moves by 1e-12 of itself in a step: P is what it is
    (torch.optim.Adam, {"betas": (0.9, 1 - 1e-12)}),
    (torch.optim.AdamW, {"betas": (0.8, 1 - 1e-12), "weight_decay": 0.3}),
    (torch.optim.Adam, {"betas": (0.8, 1 - 1e-12), "weight_decay": 0.3}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
@pytest.mark.parametrize("groups", ["one", "two"])
def test_the_index_is_one_where_the_optimizers_own_steps_turn_unstable(kind, settings, groups):
    model, objective = quadratic()
    H = hessian(objective).dense().double()
    H = H @ H.T / H.norm() + 0.1 * torch.eye(8, dtype=torch.float64)
    params = list(model.parameters())
    given = params if groups == "one" else [{"params": [params[0]]}, {"params": [params[1]], "lr": 0.03}]
    optimizer = kind(given, lr=0.1, **settings)
    torch.manual_seed(1)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p in params:
        if "exp_avg_sq" in optimizer.state[p]:
            optimizer.state[p]["step"].fill_(1e6)  # no bias of the first moment is left
            optimizer.state[p]["exp_avg_sq"].copy_(torch.rand_like(p) * 1e-6 + 1e-7)  # vhat about 1
    metric = optimizer_metric(optimizer, objective)
    root = metric.speed.sqrt()
    decay = metric.decay

    def radius(scale):
        M = step_matrix(optimizer, model, objective, scale * H)
        return float(torch.linalg.eigvals(M).abs().max())

    def index(scale):
        return float(torch.linalg.eigvalsh(root[:, None] * (scale * H + torch.diag(decay)) * root).max())

    low, high = 1e-6, 1e6  # index is increasing in the scale
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if index(middle) < 1 else (low, middle)
    assert radius(0.999 * low) < 1 + 1e-6
    assert radius(1.001 * low) > 1 + 1e-6


def test_index_operator_is_the_scaled_hessian():
    model, objective = quadratic()
    optimizer = torch.optim.SGD(
        [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[1].weight], "lr": 0.3, "weight_decay": 0.5}],
        lr=1.0,
    )
    metric = optimizer_metric(optimizer, objective)
    assert metric.uniform is None
    assert metric.largest is None
    s = torch.cat([torch.full((6,), 0.05), torch.full((2,), 0.15)]).double()
    w = torch.cat([torch.zeros(6), torch.full((2,), 0.5)]).double()
    expected = s.sqrt()[:, None] * (hessian(objective).dense() + torch.diag(w)) * s.sqrt()
    assert torch.allclose(metric.index(hessian(objective)).dense(), expected, atol=1e-12)


def test_a_uniform_metric_has_a_largest_eigenvalue():
    model, objective = quadratic()
    metric = optimizer_metric(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5), objective)
    assert metric.largest == pytest.approx(3.8 / 0.1 - 0.5)
    H = hessian(objective)
    top, index = (float(eigsh(A, 1, seed=0, rtol=1e-8).values[0]) for A in (H, metric.index(H)))
    assert index == pytest.approx((top + 0.5) / (metric.largest + 0.5))


def test_what_does_not_move_has_speed_zero():
    model, objective = quadratic()
    optimizer = torch.optim.SGD([model[1].weight], lr=0.1)
    assert optimizer_metric(optimizer, objective).speed.tolist() == [0.0] * 6 + [0.05] * 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1].weight.requires_grad_(False)
    assert optimizer_metric(optimizer, objective).speed.tolist() == [0.05] * 6 + [0.0] * 2


def test_before_the_first_step_of_adam_nothing_is_known():
    model, objective = quadratic()
    with pytest.raises(ValueError, match="has moved, got none; its preconditioner is known after its first step"):
        optimizer_metric(torch.optim.Adam(model.parameters(), lr=0.1), objective)
    with pytest.raises(ValueError, match="that it has moved, got none"):
        optimizer_metric(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), objective)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(torch.optim.Adam, {"amsgrad": True}), (torch.optim.NAdam, {}), (torch.optim.RAdam, {}), (torch.optim.Adamax, {}),
     (torch.optim.RMSprop, {"centered": True, "momentum": 0.5}), (torch.optim.RMSprop, {}), (torch.optim.Adadelta, {}),
     (torch.optim.Adagrad, {"lr_decay": 1e-3}), (torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})],
)  # fmt: skip
def test_the_preconditioner_is_the_one_of_the_step(kind, settings):
    """The step that a small gradient is foreseen to give is the one that it gives."""
    from frechet.analyze._run.critical_rate import optimizer_step

    model, objective = quadratic()
    slow = {"betas": (0.9, 0.99999)} if "betas" in kind(model.parameters(), lr=0.1).defaults else {}
    slow |= {"alpha": 0.99999} if kind is torch.optim.RMSprop else {}
    slow |= {"rho": 0.99999} if kind is torch.optim.Adadelta else {}
    optimizer = kind(model.parameters(), lr=0.01, **settings, **slow)
    torch.manual_seed(3)
    for _ in range(2000 if kind in (torch.optim.NAdam, torch.optim.RAdam) else 50):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    g = 1e-4 * objective.space.join([torch.randn_like(p) for p in model.parameters()])
    metric = optimizer_metric(optimizer, objective)
    foreseen = optimizer_step(optimizer, objective, g, metric)
    before = objective.point
    for p, block in zip(model.parameters(), objective.space.split(g), strict=True):
        p.grad = block.clone()
    optimizer.step()
    taken = objective.point - before
    tolerance = 1e-12 if kind is torch.optim.SGD else 0.01  # a bias of 0.9^50 is left
    assert float((foreseen - taken).norm() / taken.norm()) < tolerance
