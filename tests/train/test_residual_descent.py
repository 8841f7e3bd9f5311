import math

import pytest
import torch

from frechet.errors import NonFinite
from frechet.physics import collocation
from frechet.train import spring_init, spring_step
from frechet.train._residual_descent import filtered

F64 = torch.float64


def network(width=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)  # noqa: E731
    return {"a": 2 * draw(width), "b": draw(width), "c": draw(width) / math.sqrt(width), "d": draw(1)}


def u(x, t):
    return (torch.tanh(x["a"] * t + x["b"]) * x["c"]).sum() + x["d"][0]


def poisson():
    """-u'' = pi^2 sin(pi t) with u(0) = u(1) = 0."""

    def equation(x, t):
        second = torch.func.grad(torch.func.grad(lambda s: u(x, s)))(t[0])
        return second + math.pi**2 * torch.sin(math.pi * t[0])

    points = {"equation": ((torch.arange(40, dtype=F64) + 0.5) / 40)[:, None], "ends": torch.eye(2, dtype=F64)[:, :1]}
    return collocation({"equation": equation, "ends": lambda x, t: u(x, t[0])}, points, weights={"ends": 10**0.5})


def flat_of(x):
    return torch.cat([t.reshape(-1) for t in x.values()])


def dense(residual, x):
    """r and J, point by point and by plain autograd."""
    shapes = {n: t.shape for n, t in x.items()}

    def r(v):
        parts = dict(zip(x, v.split([t.numel() for t in x.values()]), strict=True))
        blocks = {n: parts[n].view(shapes[n]) for n in x}
        return torch.cat([
            c.weight / math.sqrt(len(c)) * torch.stack([c.f(blocks, p).reshape(()) for p in c.columns[0]])
            for c in residual.conditions
        ])  # fmt: skip

    v = flat_of(x)
    return r(v), torch.autograd.functional.jacobian(r, v)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_is_the_formula_with_dense_matrices(momentum):
    conditions, x = poisson(), network()
    r, J = dense(conditions, x)
    state = spring_init(x)
    last = 0.01 * torch.ones_like(state.direction)
    state = type(state)(last, 1)
    moved, after, info = spring_step(conditions, x, state, damping=1e-3, momentum=momentum, lr=0.3)
    K = J @ J.T + 1e-3 * torch.eye(len(r), dtype=F64)
    d = momentum * last - J.T @ torch.linalg.solve(K, r + momentum * J @ last)
    torch.testing.assert_close(after.direction, d, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(flat_of(moved) - flat_of(x), 0.3 * d, rtol=1e-8, atol=1e-10)
    assert info.loss == pytest.approx(float(r @ r) / 2)
    assert after.steps == 2


def test_steps_of_a_fixed_rate_are_no_longer_than_their_bound():
    conditions, x = poisson(), network()
    moved, _, info = spring_step(conditions, x, spring_init(x), damping=1e-6, lr=1.0, longest=1e-3)
    assert float((flat_of(moved) - flat_of(x)).norm()) == pytest.approx(1e-3)
    assert math.isnan(info.after)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_differential_equation_is_solved_to_ten_digits(seed):
    conditions, x = poisson(), network(seed=seed)
    state, losses = spring_init(x), []
    for _ in range(40):
        x, state, info = spring_step(conditions, x, state)
        losses.append(info.after)
        assert info.after <= info.loss
    t = torch.linspace(0, 1, 101, dtype=F64)
    error = torch.stack([u(x, s) for s in t]) - torch.sin(math.pi * t)
    assert float(error.norm() / torch.sin(math.pi * t).norm()) < 1e-9, losses[-1]


def test_singular_values_keep_what_normal_equations_round_away():
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(30, 12, generator=g, dtype=F64))[0] for _ in range(2))
    J = U * torch.logspace(0, -9, 12, dtype=F64) @ V.T
    d = V @ torch.ones(12, dtype=F64)
    found, rank = filtered(J, J @ d, 0.0, 1e-10)
    assert rank == 12
    assert float((found - d).norm() / d.norm()) < 1e-5
    normal = J.T @ torch.linalg.lstsq(J @ J.T, (J @ d)[:, None], driver="gelsd").solution[:, 0]
    assert float((normal - d).norm() / d.norm()) > 1e-2


def test_momentum_keeps_what_changing_points_do_not_see():
    """A consistent linear system, three rows at a time: with momentum the error falls much faster."""
    g = torch.Generator().manual_seed(0)
    A = torch.randn(60, 20, generator=g, dtype=F64) * torch.logspace(0, -1, 20, dtype=F64)
    truth = torch.randn(20, generator=g, dtype=F64)

    every = collocation(lambda x, row: row @ (x - truth), A)

    def error(momentum, lr):
        x = torch.zeros(20, dtype=F64)
        state = spring_init(x)
        h = torch.Generator().manual_seed(1)
        for _ in range(150):
            rows = A[torch.randperm(60, generator=h)[:3]]
            seen = every.at({every.names[0]: rows})
            x, state, _ = spring_step(seen, x, state, damping=1e-6, momentum=momentum, lr=lr)
        return float((x - truth).norm())

    assert error(0.9, 0.2) < 0.5 * min(error(0.0, lr) for lr in (1.0, 0.5, 0.2))


def test_a_vector_of_residuals_and_a_single_tensor_are_taken():
    points = torch.eye(3, dtype=F64)
    c = collocation(lambda x, p: torch.stack([x @ p - 1, 2 * (x @ p) - 2]), points)
    x = torch.zeros(3, dtype=F64)
    x, _, info = spring_step(c, x, spring_init(x))
    torch.testing.assert_close(x, torch.ones(3, dtype=F64))
    assert info.loss == pytest.approx((3 * 1 + 3 * 4) / 3 / 2)
    assert info.rank == 3


def test_wrong_arguments_are_named():
    conditions, x = poisson(), network()
    state = spring_init(x)
    for options, sentence in (
        ({"damping": -1.0}, "damping must be a number >= 0, got -1.0"),
        ({"lr": math.nan}, "lr must be a number >= 0, got nan"),
        ({"cut": -1.0}, "cut must be a number >= 0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"longest": 0.0}, "longest must be > 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=f"spring_step: {sentence}"):
            spring_step(conditions, x, state, **options)
    with pytest.raises(TypeError, match=r"spring_step: residual must bring its Jacobian, .* got function"):
        spring_step(lambda x: x["a"], x, state)
    root = collocation(lambda x, p: (x * p).sqrt().sum(), torch.ones(1, 1, dtype=F64))
    root(torch.ones((), dtype=F64))
    with pytest.raises(NonFinite, match="must be finite"):
        spring_step(root, -torch.ones((), dtype=F64), spring_init(torch.ones((), dtype=F64)))
