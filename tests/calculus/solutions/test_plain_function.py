import pytest
import torch

from frechet.calculus.solutions._plain_function import Nested, Pulled, Pushed
from frechet.operators.derivatives._products import dual_numbers

F64 = torch.float64
with dual_numbers():  # at their first use torch warns of itself
    pass
X, Y = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([1.2, -0.4], dtype=F64)


def g(x, y):
    return [x.sin() * y, (x * y**2).sum()]


def nested(x, y):
    return torch.cat([t.reshape(-1) for t in Nested.apply(g, x, y)])


def plain(x, y):
    return torch.cat([t.reshape(-1) for t in g(x, y)])


FIRST = {"rev": torch.func.jacrev, "fwd": torch.func.jacfwd}


@pytest.mark.parametrize("argnum", [0, 1])
@pytest.mark.parametrize("inner", FIRST)
@pytest.mark.parametrize("outer", FIRST)
def test_derivatives_nest_as_those_of_the_function_itself(inner, outer, argnum):
    once = FIRST[inner](nested, argnums=argnum)
    assert torch.allclose(once(X, Y), FIRST[inner](plain, argnums=argnum)(X, Y))
    exact = torch.func.jacrev(torch.func.jacrev(plain, argnums=argnum), argnums=0)(X, Y)
    assert torch.allclose(FIRST[outer](once, argnums=0)(X, Y), exact)


def test_a_second_direction_is_not_lost_in_forward_mode():
    # torch turns forward mode off in the jvp of a function of one's own: arithmetic there loses the outer direction
    one = torch.ones((), dtype=F64)

    def along(f):
        return lambda x: torch.func.jvp(f, (x,), (one,))[1]

    def cube(x):
        return Nested.apply(lambda x: [x**3], x)[0]

    x = torch.tensor(2.0, dtype=F64)
    assert [float(along(cube)(x)), float(along(along(cube))(x)), float(along(along(along(cube)))(x))] == [12, 12, 6]


def test_gradcheck_in_both_modes():
    inputs = [X.clone().requires_grad_(), Y.clone().requires_grad_()]
    assert torch.autograd.gradcheck(nested, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(nested, inputs, check_fwd_over_rev=True)


def test_it_runs_on_plain_tensors_inside_every_transform():
    seen = []

    def spy(x):
        seen.append(type(x) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(x))
        return [x**2]

    f = lambda x: Nested.apply(spy, x)[0].sum()  # noqa: E731
    torch.func.vmap(torch.func.hessian(f))(torch.rand(2, 3, dtype=F64))
    assert len(seen) > 2
    assert all(seen)


def test_pulled_and_pushed_are_partial_derivatives():
    x, y = X.clone().requires_grad_(), 2 * X.clone().requires_grad_()
    u = [torch.ones(2, dtype=F64), torch.ones((), dtype=F64)]
    with torch.enable_grad():
        y = 2 * x  # depends on x: its path must not be followed
        [pulled] = Pulled(g, (0,), 2)(x, y, *u)
        pushed = Pushed(g, (0,), 2)(x, y, torch.ones(2, dtype=F64))
    exact = torch.autograd.functional.jacobian(lambda x: plain(x, y.detach()), X)
    assert torch.allclose(pulled, exact.sum(0))
    assert torch.allclose(torch.cat([t.reshape(-1) for t in pushed]), exact.sum(1))
