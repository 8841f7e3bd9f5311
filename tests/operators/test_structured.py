import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import F64, NAMED, definite_operator, random, structured_cases
from frechet.operators._constructors import (
    block_diagonal,
    from_callable,
    from_diagonal,
    from_factors,
    from_matrix,
    kronecker,
    restriction,
)
from frechet.operators._operator import Fact
from frechet.operators._structured import declared
from frechet.space import Space, euclidean
from laws import LAWS

CASES = structured_cases()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_structured_operators_obey(law, case):
    law(case.operator, case)


def test_float32_products_agree_with_float64_to_rounding():
    g = torch.Generator().manual_seed(0)
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        M, N, U = (torch.randn(s, generator=g).to(dtype) for s in ((4, 3), (2, 5), (15, 2)))
        K = kronecker(from_matrix(M), from_matrix(N))
        v = K.domain.random(0, seed=1, kind="gaussian")
        exact = torch.kron(M.double(), N.double()) @ v.double()
        assert (K @ v).dtype == dtype
        assert torch.allclose((K @ v).double(), exact, rtol=rtol, atol=rtol)
        L = from_factors(U)
        assert torch.allclose((L @ v).double(), U.double() @ (U.double().T @ v.double()), rtol=rtol, atol=10 * rtol)


@given(m=st.integers(0, 4), n=st.integers(0, 4), p=st.integers(0, 4), q=st.integers(0, 4), k=st.integers(0, 3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_kronecker_of_any_shapes_acts_as_a_x_b_transposed(m, n, p, q, k):
    A, B = random(m, n, 1), random(p, q, 2)
    K = kronecker(from_matrix(A), from_matrix(B))
    V = random(n * q, k, 3)
    X = V.T.reshape(k, n, q)
    assert torch.allclose(K @ V, (A @ X @ B.T).reshape(k, m * p).T, atol=1e-12)
    assert K.shape == (m * p, n * q)


@given(shapes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4), k=st.integers(0, 3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_block_diagonal_of_any_shapes_is_the_dense_one(shapes, k):
    parts = [random(m, n, i) for i, (m, n) in enumerate(shapes)]
    A = block_diagonal(*(from_matrix(P) for P in parts))
    V = random(A.shape[1], k, 9)
    assert torch.allclose(A @ V, torch.block_diag(*parts) @ V, atol=1e-12)
    assert torch.allclose(A.T.dense(), torch.block_diag(*parts).T)


def test_the_sign_of_a_diagonal_and_of_factors_is_read_from_the_values():
    one = torch.ones(2)
    assert strongest(from_diagonal(one)) == Fact.POSITIVE_DEFINITE
    assert strongest(from_diagonal(torch.tensor([0.0, 1.0]))) == Fact.POSITIVE_SEMIDEFINITE
    assert strongest(from_diagonal(torch.tensor([-1.0, 1.0]))) == Fact.SYMMETRIC
    assert strongest(from_diagonal(torch.tensor([torch.nan, 1.0]))) == Fact.SYMMETRIC
    U = torch.ones(3, 2)
    assert strongest(from_factors(U, one)) == Fact.POSITIVE_SEMIDEFINITE
    assert strongest(from_factors(U, -one)) == Fact.SYMMETRIC


def strongest(A):
    return max(A.facts, key=list(Fact).index)


def test_blocks_between_different_spaces_are_not_called_symmetric():
    D = definite_operator(3)
    B = block_diagonal(D, D, codomain=euclidean(6, F64))
    assert not B.facts
    assert B.T is not B


def test_facts_imply_weaker_facts():
    assert declared("positive_definite") == set(Fact)
    assert declared([Fact.SYMMETRIC]) == {Fact.SYMMETRIC}
    with pytest.raises(ValueError, match=r"facts: must be among .*, got 'definite'"):
        declared("definite")


def test_a_callable_without_transpose_says_what_to_pass():
    A = from_callable(lambda V: V[:1], 3, 1)
    assert (A @ torch.ones(3)).shape == (1,)
    with pytest.raises(TypeError, match=r"from_callable: .* made without rmatmat.*pass rmatmat="):
        A.T @ torch.ones(1)


def test_a_callable_that_returns_its_input_does_not_hand_it_out():
    A = from_callable(lambda V: V, 3, facts="symmetric")
    v = torch.ones(3)
    (A @ v).zero_()
    assert torch.equal(v, torch.ones(3))


BAD = [
    (lambda: from_matrix(torch.ones(3)), ValueError, r"from_matrix: M must be a matrix, got shape \(3,\)"),
    (
        lambda: from_matrix(torch.ones(2, 3), domain=euclidean(2)),
        ValueError,
        r"M must have shape \(2, 2\), got \(2, 3\)",
    ),
    (
        lambda: from_matrix(torch.eye(2), domain=euclidean(2, F64)),
        TypeError,
        r"M must be torch.float64 .* got torch.float32",
    ),
    (
        lambda: from_matrix(torch.eye(2), codomain=Space(("w",), ((2,),)), facts="symmetric"),
        ValueError,
        "from_matrix: facts need a square operator on one space",
    ),
    (lambda: from_matrix(torch.eye(2, dtype=torch.complex64)), TypeError, "dtype must be real.*view_as_real"),
    (lambda: from_matrix(torch.eye(2, dtype=torch.int64)), TypeError, "dtype must be a floating-point type"),
    (lambda: from_diagonal(torch.ones(2, 2)), ValueError, r"from_diagonal: d must have shape \(n,\), got \(2, 2\)"),
    (lambda: from_diagonal(torch.ones(2), domain=euclidean(3)), ValueError, r"d must have shape \(3,\), got \(2,\)"),
    (
        lambda: from_diagonal(torch.ones(2), domain=euclidean(2, F64)),
        TypeError,
        "from_diagonal: d must be torch.float64",
    ),
    (lambda: from_factors(torch.ones(3)), ValueError, r"from_factors: U must have shape \(n, k\), got \(3,\)"),
    (lambda: from_factors(torch.ones(3, 2), torch.ones(3)), ValueError, r"s must have shape \(2,\), got \(3,\)"),
    (
        lambda: from_factors(torch.ones(3, 2), domain=euclidean(4)),
        ValueError,
        r"U must have 4 rows, got shape \(3, 2\)",
    ),
    (
        lambda: from_factors(torch.ones(3, 1), torch.ones(1, dtype=F64)),
        TypeError,
        "from_factors: s must be torch.float32",
    ),
    (
        lambda: kronecker(from_matrix(torch.eye(2)), definite_operator(2)),
        ValueError,
        "kronecker: A and B must share dtype and device, got .*float32.*float64",
    ),
    (lambda: block_diagonal(), ValueError, "block_diagonal: needs at least one operator, got none"),
    (
        lambda: block_diagonal(from_matrix(torch.eye(2)), definite_operator(2)),
        TypeError,
        "block_diagonal: all blocks must have one dtype and device, got torch.float32 on cpu, torch.float64 on cpu",
    ),
    (
        lambda: block_diagonal(from_matrix(torch.eye(2)), domain=euclidean(3)),
        ValueError,
        r"block_diagonal: the blocks have shape \(2, 2\), got spaces",
    ),
    (lambda: restriction(NAMED, "tail.*"), ValueError, r"pattern 'tail.\*' must match a block"),
    (
        lambda: from_callable(lambda V: V, 2, 3, facts="symmetric"),
        ValueError,
        "facts need a square operator on one space",
    ),
    (lambda: from_callable(lambda V: V, euclidean(2), euclidean(2, F64)), TypeError, "must share dtype and device"),
    (
        lambda: from_callable(lambda V: V[:1], 2) @ torch.ones(2),
        ValueError,
        r"matmat must return shape \(2, 1\), got \(1, 1\)",
    ),
    (
        lambda: from_callable(lambda V: V.double(), 2) @ torch.ones(2),
        TypeError,
        "matmat must return torch.float32, got torch.float64",
    ),
    (
        lambda: from_callable(lambda V: V, 2, rmatmat=lambda U: U[:1]).T @ torch.ones(2),
        ValueError,
        r"rmatmat must return shape \(2, 1\), got \(1, 1\)",
    ),
]


@pytest.mark.parametrize(("make", "kind", "sentence"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_wrong_arguments_are_refused_with_a_sentence(make, kind, sentence):
    with pytest.raises(kind, match=sentence):
        make()
