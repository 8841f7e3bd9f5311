import math

import pytest
import torch

from frechet.optimize import Constraint
from frechet.optimize._constrained.backward_passes import COLUMNS, Batches
from frechet.optimize._constrained.constrained import constrained
from frechet.optimize._constrained.raw import Functions
from frechet.space import Space, euclidean
from spectra import F64, gaussian


class UnbatchedTwice(torch.autograd.Function):
    """x^3 by hand, with a second derivative by hand that looks at numbers."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        return u * Slope.apply(x)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 3 * x**2

    @staticmethod
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(u.detach().numpy() * 6 * x.detach().numpy())


def curved(x):
    return torch.stack([(x**3).sum(), x.prod(), (x.sin() * x.roll(1)).sum(), x @ x - 1.0])


def many(x):
    return torch.outer(x, x).exp().reshape(-1)


def branched(x):
    return torch.where(x > 0, x**2, -(x**3))


def by_hand(x):
    return UnbatchedTwice.apply(x)


def with_blocks(p):
    return torch.cat([(p["a"] ** 2 * p["b"].sum()).reshape(-1), p["b"].exp()])


def f(x):
    return (x**4).sum() + (x[1:] * x[:-1]).sum() + (x.exp() * x.roll(1)).sum()


def f_of_blocks(p):
    return (p["a"] ** 3).sum() * p["b"].sum() + (p["b"] ** 4).sum()


def raw(functions, n=5, f=f, space=None, at=None):
    space = euclidean(n, F64, torch.device("cpu")) if space is None else space
    asked = Functions(f, functions, space, "a" not in space.names)
    return asked.at(gaussian(space.dim) if at is None else at)[0]


def expected(point, weight, y):
    """g, J and the Hessian of weight f + y'c, each number by a derivative of its own."""
    functions = point.functions
    x = point.x

    def structured(v):
        return v if functions.single else functions.space.unflatten(v)

    def lagrangian(v):
        rows = torch.cat([c(structured(v)).reshape(-1) for c in functions.constraints])
        return weight * functions.f(structured(v)) + y @ rows

    g = torch.autograd.functional.jacobian(lambda v: functions.f(structured(v)), x)
    J = torch.autograd.functional.jacobian(
        lambda v: torch.cat([c(structured(v)).reshape(-1) for c in functions.constraints]), x
    )
    return g, J, torch.autograd.functional.hessian(lagrangian, x)


CASES = {
    "few rows": ((curved,), None, f),
    "many rows": ((many,), None, f),
    "two functions": ((curved, many), None, f),
    "branches": ((branched,), None, f),
    "by hand": ((by_hand, curved), None, f),
    "affine and curved": ((lambda x: gaussian(15).reshape(3, 5) @ x - 2, curved), None, f),
    "affine alone": ((lambda x: gaussian(15).reshape(3, 5) @ x - 2,), None, f),
    "f affine": ((curved,), None, lambda x: x.sum() * 2),
    "f without x": ((curved,), None, lambda x: x.sum() * 0 + 1),
    "one row": ((lambda x: x @ x,), None, f),
    "blocks": ((with_blocks,), Space(("a", "b"), ((2, 2), (3,)), F64, torch.device("cpu")), f_of_blocks),
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("case", CASES)
def test_all_routes_give_the_derivatives(case, weight, together):
    functions, space, function = CASES[case]
    point = raw(functions, space=space, f=function)
    y = gaussian(len(point.c) + 3)[3:]
    g, J, H = expected(point, weight, y)
    if together:
        found = point.hessian(weight, y), point.g, point.J
    else:
        found = (point.g, point.J, point.hessian(weight, y))
        found = found[2], found[0], found[1]
    for value, right in zip(found, (H, g, J), strict=True):
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
    V = gaussian(2 * len(point.x)).reshape(-1, 2)
    torch.testing.assert_close(point.bent(weight, y)(V), H @ V, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("together", [True, False])
def test_passes_one_by_one_are_equal_to_a_batch_and_are_noticed(together):
    batched, alone = raw((curved, by_hand)), raw((curved, by_hand))
    alone.functions.seen.batches.refused["rows"] = alone.functions.seen.batches.refused["columns"] = "a test"
    plain = raw((curved, lambda x: x**3))
    y = gaussian(len(plain.c))
    for point in (batched, alone, plain):
        _ = point.hessian(1.0, y) if together else point.g
    torch.testing.assert_close(batched.J, plain.J, rtol=0, atol=1e-14)
    torch.testing.assert_close(alone.J, plain.J, rtol=0, atol=1e-14)
    torch.testing.assert_close(alone.hessian(1.0, y), plain.hessian(1.0, y), rtol=1e-14, atol=1e-14)
    assert not plain.functions.seen.batches.refused
    if together:
        assert batched.functions.seen.batches.refused


def test_what_is_no_fault_of_batches_is_raised():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, u):
            raise RuntimeError("a fault of the function")

    x = gaussian(4).requires_grad_()
    with torch.enable_grad():
        y = Wrong.apply(x)
    with pytest.raises(RuntimeError, match="a fault of the function"):
        Batches().pulled("rows", [y], [x], [torch.eye(4, dtype=F64)])


@pytest.mark.parametrize("k", [1, 2, COLUMNS, COLUMNS + 1])
def test_batches_of_any_length_are_the_rows_of_the_jacobian(k):
    x = gaussian(k).requires_grad_()
    with torch.enable_grad():
        y = x.cumsum(0) ** 2
    found = Batches().pulled("rows", [y], [x], [torch.eye(k, dtype=F64)])[0]
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(lambda v: v.cumsum(0) ** 2, x.detach()))


def test_the_result_says_that_passes_ran_one_by_one():
    start = torch.tensor([0.5, 0.7], dtype=F64)
    ball = Constraint(lambda x: UnbatchedTwice.apply(x).sum(), -math.inf, 1.0)
    s = constrained(lambda x: -x.sum(), start, ball)
    plain = constrained(lambda x: -x.sum(), start, Constraint(lambda x: (x**3).sum(), -math.inf, 1.0))
    assert s.converged
    assert "one by one" in s.method
    assert "one by one" not in plain.method
    assert torch.allclose(s.x, plain.x, rtol=0, atol=1e-12)
