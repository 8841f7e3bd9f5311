import pytest
import torch

from frechet import NotConverged, from_diagonal, from_matrix, identity, implicit
from frechet.calculus import root_conditions, solution_jacobian, stationary_conditions
from frechet.calculus.solutions._sensitivity import GraphJacobian, Rules, solved
from frechet.linalg import nystrom
from frechet.operators import Fact
from frechet.space import Space, euclidean

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_a_preconditioner_is_made_at_the_solution_and_transposed_in_reverse():
    d = torch.logspace(0, 4, 200, dtype=F64)
    twist = 1e-2 * draw(200, 200, seed=9)
    seen = []

    def F(x, b):
        return d * x + twist @ x - b

    b = draw(200, seed=10).requires_grad_()
    exact = torch.linalg.solve((torch.diag(d) + twist).T, torch.ones(200, dtype=F64))
    for preconditioner in (None, lambda A: from_diagonal(1 / d, domain=A.domain)):
        solve = implicit(
            lambda b: torch.linalg.solve(torch.diag(d) + twist, b),
            F,
            preconditioner=preconditioner,
            observe=seen.append,
        )
        assert torch.allclose(torch.autograd.grad(solve(b).sum(), b)[0], exact, atol=1e-6)
    assert seen[1].iterations < seen[0].iterations / 3
    near = torch.linalg.inv(torch.diag(d) + twist + twist.triu())  # far from symmetric
    skewed = implicit(
        lambda b: torch.linalg.solve(torch.diag(d) + twist + twist.triu(), b),
        lambda x, b: F(x, b) + twist.triu() @ x,
        preconditioner=lambda A: from_matrix(near, domain=A.domain, codomain=A.domain),
        observe=seen.append,
    )
    torch.autograd.grad(skewed(b).sum(), b)
    assert seen[2].iterations <= 2  # the transpose of the inverse
    symmetric = implicit(
        lambda b: b / d,
        root_conditions(lambda x, b: d * x - b, facts="positive_definite"),
        preconditioner=lambda A: nystrom(A, rank=50, damping=0.0, seed=0),
    )
    assert torch.allclose(torch.autograd.grad(symmetric(b).sum(), b)[0], 1 / d, atol=1e-8)


def test_a_failed_solve_raises_and_can_be_taken_as_it_is():
    d = torch.logspace(0, 6, 100, dtype=F64)
    b = draw(100, seed=11).requires_grad_()
    conditions = root_conditions(lambda x, b: d * x - b, facts="positive_definite")
    with pytest.raises(NotConverged, match=r"reverse mode by cg .*max_iterations' after 3"):
        implicit(lambda b: b / d, conditions, max_iterations=3)(b).sum().backward()
    rough = implicit(lambda b: b / d, conditions, max_iterations=3, strict=False)(b)
    assert float((torch.autograd.grad(rough.sum(), b)[0] - 1 / d).abs().max()) > 1e-3
    saddle = stationary_conditions(lambda x, b: b @ x - x @ x, facts="positive_definite")
    with pytest.raises(NotConverged, match="not positive definite, d'Ad/d'd = -2"):
        implicit(lambda b: b / 2, saddle, method="cg")(b).sum().backward()


def matrix(n, seed=0):
    A = draw(n, n, seed=seed) + 4 * n**0.5 * torch.eye(n, dtype=F64)
    return from_matrix(A), A


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("method", ["dense", "gmres", "lsmr"])
def test_blocks_are_solved_column_by_column(method, transposed):
    A, dense = matrix(30)
    B = draw(30, 3, seed=1)
    X = solved(A, B, Rules(method=method, rtol=1e-12), "test", transposed=transposed)
    assert torch.allclose(X, torch.linalg.solve(dense.T if transposed else dense, B), atol=1e-9)


@pytest.mark.parametrize(
    ("n", "facts", "expected"),
    [
        (64, (), "dense (64 unknowns)"),
        (65, "positive_definite", "cg (positive definite)"),
        (65, "symmetric", "minres (symmetric)"),
        (65, (), "gmres (not symmetric)"),
    ],
)
def test_the_method_follows_from_facts_and_is_said(n, facts, expected):
    seen = []
    A = from_matrix(torch.eye(n, dtype=F64), facts=facts)
    solved(A, torch.ones(n, 1, dtype=F64), Rules(observe=seen.append), "test")
    assert seen[0].message.partition(":")[0] == f"test by {expected}"


def test_a_preconditioner_or_a_name_overrules_the_size():
    seen = []
    A = from_matrix(torch.eye(3, dtype=F64), facts="positive_definite")
    b = torch.ones(3, 1, dtype=F64)
    solved(A, b, Rules(preconditioner=identity(A.domain), observe=seen.append), "test")
    solved(A, b, Rules(method="lsmr", observe=seen.append), "test")
    assert ["by cg" in seen[0].message, "by lsmr (asked for)" in seen[1].message] == [True, True]


def test_the_products_of_a_dense_solve_are_counted():
    seen = []
    A, _ = matrix(7)
    solved(A, draw(7, 2), Rules(observe=seen.append), "test")
    assert [s.products for s in seen] == [7, 7]
    assert seen[0].residual < 1e-12


def test_a_singular_matrix_serves_what_lies_in_its_range_and_refuses_the_rest():
    A = from_matrix(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=F64), facts="symmetric")
    inside, outside = torch.tensor([[1.0], [-1.0]], dtype=F64), torch.ones(2, 1, dtype=F64)
    for method in ("dense", "minres"):
        found = solved(A, inside, Rules(method=method), "test", transposed=True)
        assert found[:, 0].tolist() == pytest.approx([0.5, -0.5])
        with pytest.raises(NotConverged, match="singular"):
            solved(A, outside, Rules(method=method), "test", transposed=True)
        for b in (inside, outside):  # a motion of the solution, which the null vector leaves open
            with pytest.raises(NotConverged, match="singular"):
                solved(A, b, Rules(method=method), "test")
        loose = solved(A, inside, Rules(method=method, strict=False), "test")
        assert loose[:, 0].tolist() == pytest.approx([0.5, -0.5])
    least = solved(A, inside + outside, Rules(method="lsmr"), "test")
    assert least[:, 0].tolist() == pytest.approx([0.5, -0.5])


def potentials(C, a, b):
    """Scaling of exp(-C) to the marginals a and b, with a gauge: potentials are free up to a constant."""
    u, v = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(500):
        u = a.log() - torch.logsumexp(v - C, 1)
        v = b.log() - torch.logsumexp(u[:, None] - C, 0)
    return {"u": u, "v": v}


def dual(x, C, a, b):
    return torch.exp(x["u"][:, None] + x["v"] - C).sum() - x["u"] @ a - x["v"] @ b


@pytest.mark.parametrize("method", ["auto", "minres", "lsmr"])
def test_a_gauge_does_not_matter_to_functions_that_do_not_see_it(method):
    # OTT #162: the Hessian of the dual is singular along (1, -1) and was solved with a ridge
    C, a, b = draw(4, 3, seed=3).requires_grad_(), torch.full((4,), 0.25).double(), torch.full((3,), 1 / 3).double()
    solve = implicit(potentials, stationary_conditions(dual), method=method, rtol=1e-11)

    def plan(x):
        return torch.exp(x["u"][:, None] + x["v"] - C)

    weights = draw(4, 3, seed=4)
    found = torch.autograd.grad((weights * plan(solve(C, a, b))).sum(), C)[0]
    unrolled = torch.autograd.grad((weights * plan(potentials(C, a, b))).sum(), C)[0]
    assert torch.allclose(found, unrolled, atol=1e-8)
    seen_by_gauge = solve(C, a, b)["u"].sum()
    if method == "lsmr":
        torch.autograd.grad(seen_by_gauge, C)
    else:
        with pytest.raises(NotConverged, match="singular"):
            torch.autograd.grad(seen_by_gauge, C)


def test_least_norm_is_the_shortest_motion():
    # x'x = a leaves the direction across x open: the shortest motion is along x
    x = torch.tensor([3.0, 4.0], dtype=F64)
    a = torch.tensor([25.0, 25.0], dtype=F64)
    F = root_conditions(lambda x, a: x @ x - a)
    D = solution_jacobian(F, x, a, method="lsmr")
    assert torch.allclose(D @ torch.ones(2, dtype=F64), x / (2 * 25))
    with pytest.raises(NotConverged, match="method='lsmr' gives the derivative of least norm"):
        solution_jacobian(F, x, a) @ torch.tensor([1.0, 2.0], dtype=F64)


def quartics(B):
    a = draw(B, 3, seed=5).abs() + 1

    def F(x, a):
        return x**3 + a[:, [1, 2, 0]] * x.sum(1, keepdim=True) - a

    x = torch.full_like(a, 0.5)
    for _ in range(60):
        x = x - torch.linalg.solve(torch.diag_embed(3 * x**2) + a[:, [1, 2, 0]].unsqueeze(-1), F(x, a))
    return F, x, a


def test_problems_of_a_batch_are_solved_one_by_one():
    F, x, a = quartics(40)
    seen = []
    u = draw(40, 3, seed=6)
    b = a.clone().requires_grad_()
    together = torch.autograd.grad((implicit(lambda a: x, F, batch=True, observe=seen.append)(b) * u).sum(), b)[0]
    assert seen[0].message.startswith("implicit: reverse mode by dense (3 unknowns in each problem)")
    assert seen[0].products == 3 + 1  # one for each unknown of one problem, one to see that they are independent
    whole = torch.autograd.grad((implicit(lambda a: x, F, method="gmres", rtol=1e-13)(b) * u).sum(), b)[0]
    assert torch.allclose(together, whole, atol=1e-9)


def test_a_batch_with_one_singular_problem_keeps_the_others():
    d = torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 5.0]], dtype=F64)
    b = torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 5.0]], dtype=F64, requires_grad=True)
    solve = implicit(lambda b: torch.ones_like(b), lambda x, b: d * x - b, batch=True)
    u = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]], dtype=F64)
    exact = torch.where(d > 0, 1 / d, 0.0)
    assert torch.allclose(torch.autograd.grad((u * solve(b)).sum(), b)[0], exact)
    with pytest.raises(NotConverged, match="singular"):
        torch.autograd.grad(solve(b).sum(), b)


def test_problems_that_depend_on_each_other_are_no_batch():
    y = draw(4, 2).requires_grad_()
    coupled = implicit(lambda y: y.cumsum(0), lambda x, y: x - torch.cat([x[:1] * 0, x[:-1]]) - y, batch=True)
    with pytest.raises(ValueError, match="problems of a batch must be independent"):
        coupled(y).sum().backward()


def test_the_operator_of_a_kept_graph_has_its_products():
    x = draw(3, seed=7).requires_grad_()
    y = torch.stack([x[0] * x[1], x[1].sin() + x[2] ** 2])
    J = GraphJacobian([y], [x], Space(("",), ((3,),), F64), euclidean(2, F64))
    exact = torch.autograd.functional.jacobian(lambda x: torch.stack([x[0] * x[1], x[1].sin() + x[2] ** 2]), x.detach())
    assert torch.allclose(J.dense(), exact)
    assert torch.allclose(J @ torch.eye(3, dtype=F64), exact)
    assert Fact.SYMMETRIC not in J.facts


def test_numbers_that_are_not_finite_are_named():
    A = from_matrix(torch.tensor([[torch.nan, 0.0], [0.0, 1.0]], dtype=F64))
    with pytest.raises(NotConverged, match="the matrix or the right side is not finite"):
        solved(A, torch.ones(2, 1, dtype=F64), Rules(), "test")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "lu"}, "implicit: method must be one of 'auto', 'cg', .* got 'lu'"),
        ({"rtol": -1.0}, "implicit: rtol must be a number >= 0, got -1.0"),
        ({"max_iterations": -1}, "implicit: max_iterations must be >= 0, got -1"),
        (
            {"method": "dense", "preconditioner": identity(euclidean(2))},
            "preconditioner must be None with",
        ),
    ],
)
def test_bad_rules_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        implicit(torch.sqrt, lambda x, a: x**2 - a, **change)
