"""A product with a constant operator in the graph has the derivatives of the matrix product, in every nesting."""

import pytest
import torch

from frechet import from_matrix
from frechet.operators import applied
from spectra import F64, gaussian

M = gaussian(12).reshape(3, 4)
A = from_matrix(M)
V = gaussian(4, seed=1)


def smooth(product):
    return lambda v: product(v).sin().sum() * v.cos().sum()


NESTINGS = {
    "reverse": torch.func.grad,
    "forward": torch.func.jacfwd,
    "forward over reverse": lambda f: torch.func.jacfwd(torch.func.grad(f)),
    "reverse over forward": lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
    "reverse over reverse": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "forward over forward": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    "third": lambda f: torch.func.jacfwd(torch.func.jacrev(torch.func.jacfwd(f))),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_derivatives_are_those_of_the_matrix(nesting):
    d = NESTINGS[nesting]
    torch.testing.assert_close(d(smooth(lambda v: applied(A, v)))(V), d(smooth(lambda v: M @ v))(V))


def test_gradcheck_in_both_modes_and_on_blocks():
    v, W = V.clone().requires_grad_(), gaussian(8).reshape(4, 2).requires_grad_()
    for x in (v, W):
        assert torch.autograd.gradcheck(lambda x: applied(A, x).square(), x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x: applied(A, x).square(), x, check_fwd_over_rev=True)


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 5)])
def test_a_batch_is_one_product(shape):
    seen = []

    def product(V):
        seen.append(V.shape)
        return M @ V

    from frechet import from_callable

    B = from_callable(product, 4, 3, rmatmat=lambda U: M.T @ U, dtype=F64)
    X = gaussian(shape[0] * 10 if len(shape) > 2 else 20).reshape(shape)
    found = torch.func.vmap(lambda x: applied(B, x), in_dims=-1)(X)
    right = torch.func.vmap(lambda x: M @ x, in_dims=-1)(X)
    torch.testing.assert_close(found, right)
    assert len(seen) == 1


def test_what_is_no_operator_is_refused():
    with pytest.raises(TypeError, match="A must be a LinearOperator"):
        applied(M, V)
