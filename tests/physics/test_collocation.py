import math
from types import SimpleNamespace

import pytest
import torch
from torch.func import jacrev

import laws
import pinns
from frechet import check_operator, least_squares
from frechet.calculus.taylor import laplacian
from frechet.physics import collocation, conflict
from pinns import F64, network, parameters_of, poisson, sine, square, value

KINDS = {
    "Taylor mode": (pinns.poisson, (2, 6, 1)),
    "torch.func": (pinns.poisson_by_functions, (2, 6, 1)),
    "first and second order": (pinns.heat, (2, 5, 4, 1)),
    "a system": (pinns.system, (2, 6, 2)),
    "divergence form": (pinns.divergence_form, (2, 5, 1)),
}
LAWS = [
    laws.agrees_with_dense,
    laws.transposes,
    laws.is_linear,
    laws.acts_on_columns,
    laws.maps_dicts_to_dicts,
    laws.keeps_dtype_and_device,
    laws.keeps_no_graph,
    laws.leaves_its_input,
    laws.multiplies_from_the_left,
    laws.repeats_itself,
]


def problem(kind, n=7, sides=5, **options):
    """A residual, a start, and the Jacobian by `jacrev` of the whole."""
    make, sizes = KINDS[kind]
    net = network(*sizes)
    inside, edge = square(n, sides)
    conditions = make(net)
    points = {name: inside if name == "equation" else edge for name in conditions}
    if "sides" in points:
        points["sides"] = square(n, sides, seed=1)[1]
    p = parameters_of(net)
    residual = collocation(conditions, points, **options)
    residual(p)

    def whole(p):
        return torch.cat([r.reshape(-1) for r in residual(p).values()])

    J = jacrev(whole)(p)
    return residual, p, torch.cat([J[name].flatten(1) for name in p], 1)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_are_those_of_the_whole_jacobian(kind):
    residual, p, J = problem(kind)
    assert float((residual.jacobian(p) - J).abs().max()) <= 1e-13 * float(J.abs().max())


@pytest.mark.parametrize("kind", ["Taylor mode", "a system"])
@pytest.mark.parametrize("law", LAWS)
def test_products_are_those_of_the_matrix(kind, law):
    residual, p, J = problem(kind, chunk=3)
    law(residual.operator(p), SimpleNamespace(dense=J))


def test_products_are_adjoint():
    residual, p, _ = problem("a system")
    check_operator(residual.operator(p), seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(kind, chunk):
    _, p, J = problem(kind)
    parts, _, _ = problem(kind, chunk=chunk)
    laws.close(parts.jacobian(p), J)
    v = torch.randn(J.shape[1], dtype=F64, generator=torch.Generator().manual_seed(0))
    laws.close(parts.operator(p) @ v, J @ v)
    laws.close(parts.operator(p).T @ (J @ v), J.T @ (J @ v))


@pytest.mark.parametrize("mean", [True, False])
def test_weights_scale_rows(mean):
    net = network(2, 6, 1)
    inside, edge = square(7, 5)
    points, p, w = {"equation": inside, "boundary": edge}, parameters_of(net), torch.linspace(0, 2, 5, dtype=F64)
    plain = collocation(poisson(net), points, mean=False)
    heavy = collocation(poisson(net), points, weights={"equation": 3.0, "boundary": w}, mean=mean)
    factors = torch.cat([torch.full((7,), 3.0, dtype=F64) / (7**0.5 if mean else 1), w / (5**0.5 if mean else 1)])
    laws.close(heavy.jacobian(p), factors[:, None] * plain.jacobian(p))
    laws.close(torch.cat([*heavy(p).values()])[:, 0], factors * torch.cat([*plain(p).values()])[:, 0])
    again = plain.weighted({"equation": 3.0, "boundary": w})
    laws.close(again.jacobian(p), torch.cat([torch.full((7,), 3.0, dtype=F64), w])[:, None] * plain.jacobian(p))
    everywhere = collocation(poisson(net), points, weights=2.0, mean=False)
    laws.close(everywhere.jacobian(p), 2 * plain.jacobian(p))


def test_columns_follow_the_order_of_the_parameters():
    residual, p, J = problem("Taylor mode")
    turned = dict(reversed(p.items()))
    blocks = dict(zip(p, J.split([t.numel() for t in p.values()], 1), strict=True))
    laws.close(residual.jacobian(turned), torch.cat([blocks[name] for name in turned], 1))


def test_parameters_may_be_one_tensor():
    x = torch.linspace(0, 1, 5, dtype=F64)[:, None]
    residual = collocation(lambda p, x: (p * x ** torch.arange(3)).sum() ** 2, {"all": x}, mean=False)
    p = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    powers = x ** torch.arange(3)
    laws.close(residual.jacobian(p), 2 * (powers @ p)[:, None] * powers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_parameters_stays(dtype):
    net = network(2, 6, 1).to(dtype)
    inside, edge = (t.to(dtype) for t in square(7, 5))
    residual = collocation(poisson(net), {"equation": inside, "boundary": edge})
    p = parameters_of(net)
    v = torch.ones(sum(t.numel() for t in p.values()), dtype=dtype)
    J = residual.jacobian(p)
    assert J.dtype is (residual.operator(p) @ v).dtype is residual(p)["equation"].dtype is dtype
    exact, q, _ = problem("Taylor mode")
    assert float((J - exact.jacobian(q)).abs().max()) <= 50 * torch.finfo(dtype).eps * float(J.abs().max())


def test_points_with_values():
    x, y = torch.linspace(0, 1, 5, dtype=F64)[:, None], torch.arange(5, dtype=F64)
    residual = collocation(lambda p, x, y: p[0] * x[0] - y, {"data": (x, y)}, mean=False)
    p = torch.tensor([2.0], dtype=F64)
    laws.close(residual(p)["data"][:, 0], 2 * x[:, 0] - y)


def test_blocks_of_the_kernel():
    residual, p, J = problem("Taylor mode")
    laws.close(residual.gram(p, "equation"), J[:7] @ J[:7].T)
    laws.close(residual.gram(p, "equation", "boundary"), J[:7] @ J[7:].T)


# --- other points -----------------------------------------------------------------------------------------------------


def test_other_points():
    residual, p, _ = problem("Taylor mode", weights={"boundary": 2.0})
    inside, _ = square(11, 1, seed=1)
    moved = residual.at({"equation": inside})
    assert moved(p)["equation"].shape == (11, 1)
    assert torch.equal(moved(p)["boundary"], residual(p)["boundary"])


def test_a_sample_has_rows_of_the_whole():
    residual, p, J = problem("Taylor mode", mean=False, weights={"boundary": torch.arange(1.0, 6.0, dtype=F64)})
    part = residual.sample({"equation": 3, "boundary": 2}, seed=4)
    rows = part.jacobian(p)
    assert rows.shape[0] == 5
    assert all(float((J - row).abs().amax(1).min()) <= 1e-14 for row in rows)
    assert torch.equal(rows, residual.sample({"equation": 3, "boundary": 2}, seed=4).jacobian(p))


def test_balanced_weights_give_rows_of_one_size():
    residual, p, _ = problem("Taylor mode")
    even = residual.balanced(p)
    sizes = [even.only(name).jacobian(p).square().sum() for name in even.names]
    laws.close(sizes[1], sizes[0])
    laws.close(sizes[0], residual.only("equation").jacobian(p).square().sum())


def test_the_conflict_of_two_conditions_is_their_cosine():
    residual, p, J = problem("Taylor mode")
    r = residual(p)
    a, b = J[:7].T @ r["equation"][:, 0], J[7:].T @ r["boundary"][:, 0]
    found = conflict(residual, p)
    assert found.score == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-12)
    assert found.size["boundary"] == pytest.approx(float(b.norm()), rel=1e-12)
    assert found.cosine["equation"] == pytest.approx(found.score, abs=1e-12)
    assert "equation" in str(found)


# --- least squares ----------------------------------------------------------------------------------------------------


def test_a_small_network_solves_an_equation():
    """u'' = -pi^2 sin(pi x), beside the solution by second differences on a fine grid."""
    net = network(1, 32, 1)
    with torch.no_grad():
        net[0].weight.uniform_(-3, 3)
        net[0].bias.uniform_(-3, 3)
    u = value(net)
    x, ends = torch.linspace(0, 1, 60, dtype=F64)[:, None], torch.tensor([[0.0], [1.0]], dtype=F64)
    conditions = {
        "equation": lambda p, x: laplacian(u(p))(x) + math.pi**2 * sine(x),
        "ends": lambda p, x: u(p)(x),
    }
    residual = collocation(conditions, {"equation": x, "ends": ends})
    s = least_squares(residual, dict(net.named_parameters()), observe=lambda state: state.cost < 1e-12)
    n = 400
    grid = torch.linspace(0, 1, n + 1, dtype=F64)[1:-1]
    A = torch.diag(torch.full((n - 1,), -2.0, dtype=F64))
    A += torch.diag(torch.ones(n - 2, dtype=F64), 1) + torch.diag(torch.ones(n - 2, dtype=F64), -1)
    differences = torch.linalg.solve(A * n**2, -(math.pi**2) * torch.sin(math.pi * grid))
    assert float((u(s.x)(grid[:, None]) - differences).abs().max()) < 1e-5  # pi^2 h^2 / 12 of the differences
    assert float((u(s.x)(grid[:, None]) - sine(grid[:, None])).abs().max()) < 1e-6
    net.load_state_dict(s.x)


@pytest.mark.parametrize(("n", "method"), [(40, "adaptive-damping"), (5, "target-ratio")])
def test_the_method_follows_the_shape(n, method):
    net = network(2, 5, 1)
    inside, edge = square(n, 8)
    residual = collocation(poisson(net), {"equation": inside, "boundary": edge})
    s = least_squares(residual, parameters_of(net), max_evaluations=90)
    assert s.method.startswith(method)
    assert s.cost < 0.5 * s.start_cost


def test_all_ways_to_the_jacobian_lead_to_one_point():
    x = torch.linspace(0, 1, 12, dtype=F64)[:, None]
    residual = collocation(lambda p, x: p[0] * torch.exp(p[1] * x[0]) - 2 * torch.exp(-x[0]), {"data": x})
    start = torch.tensor([1.0, 0.0], dtype=F64)
    found = [least_squares(residual, start, jacobian=way) for way in ("auto", "dense", "products", "3-point")]
    for s in found:
        assert s.converged
        laws.close(s.x, torch.tensor([2.0, -1.0], dtype=F64))


def test_bounds_and_robust_losses_take_the_same_residual():
    x = torch.linspace(0, 1, 12, dtype=F64)[:, None]
    residual = collocation(lambda p, x: p[0] * x[0] + p[1] - 2 * x[0], {"data": x})
    start = torch.tensor([0.5, 0.5], dtype=F64)
    s = least_squares(residual, start, bounds=(0.0, 1.5))
    assert s.converged
    assert float(s.x[0]) == 1.5
    s = least_squares(residual, start, loss="huber")
    assert s.converged
    laws.close(s.x, torch.tensor([2.0, 0.0], dtype=F64), scale=100.0)


def test_the_cost_is_one_gradient_a_point():
    """The whole Jacobian calls the function of a condition as often as one row does."""
    calls = []
    net = network(2, 6, 1)
    u = value(net)

    def counted(p, x):
        calls.append(x.shape)
        return torch.func.hessian(u(p))(x).diagonal().sum()

    inside, _ = square(50, 1)
    residual = collocation(counted, {"equation": inside})
    p = parameters_of(net)
    residual(p)
    calls.clear()
    residual.jacobian(p)
    assert len(calls) <= 2


# --- each law is seen to fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["a row", "the weight", "the order"])
def test_a_broken_jacobian_is_found(broken):
    residual, p, J = problem("Taylor mode")
    found = residual.jacobian(p)
    if broken == "a row":
        found[3] *= 1 + 1e-11
    elif broken == "the weight":
        found[7:] *= 2
    else:
        found = found.flip(1)
    assert float((found - J).abs().max()) > 1e-13 * float(J.abs().max())
