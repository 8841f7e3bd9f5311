import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import F64, NAMED, definite_operator, random
from counting import counting
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity
from frechet.operators._operator import Adjoint, Fact, Product, Scaled, Sum
from frechet.space import Space, euclidean

A = from_matrix(random(3, 4).float())
B = from_matrix(random(3, 3, 1))


@st.composite
def expressions(draw, depth=3):
    """A random operator expression on R^3 beside its dense matrix."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        seed = draw(st.integers(0, 5))
        M = random(3, 3, seed)
        match draw(st.integers(0, 3)):
            case 0:
                return from_matrix(M), M
            case 1:
                return from_matrix(M + M.T, facts="symmetric"), M + M.T
            case 2:
                return from_diagonal(M[0]), torch.diag(M[0])
            case _:
                return identity(euclidean(3, F64)), torch.eye(3, dtype=F64)
    X, M = draw(expressions(depth - 1))
    match draw(st.integers(0, 5)):
        case 0:
            return X.T, M.T
        case 1:
            c = draw(st.sampled_from([-2.0, 0.0, 0.5]))
            return c * X, c * M
        case 2:
            return X.T @ X, M.T @ M
        case op:
            Y, N = draw(expressions(depth - 1))
            if op == 3:
                return X + Y, M + N
            return (X - Y, M - N) if op == 4 else (X @ Y, M @ N)


@given(pair=expressions())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_expressions_agree_with_the_same_expressions_of_matrices(pair):
    X, M = pair
    size = max(1.0, float(M.abs().max()))
    assert torch.allclose(X.dense(), M, atol=1e-11 * size)
    assert torch.allclose(X.T.dense(), M.T, atol=1e-11 * size)
    if Fact.SYMMETRIC in X.facts:
        assert torch.allclose(M, M.T, atol=1e-11 * size)
    if Fact.POSITIVE_SEMIDEFINITE in X.facts:
        assert float(torch.linalg.eigvalsh((M + M.T) / 2)[0]) >= -1e-10 * size


def test_algebra_keeps_the_shapes():
    W = from_matrix(random(3, 5))
    assert (B @ W).shape == (3, 5)
    assert (B @ W).T.shape == (5, 3)
    assert (2 * W - W).shape == (3, 5)
    assert repr(W.T @ W) == "Product R^5 (1 block, float64, cpu) -> R^5, positive semidefinite"


def test_sums_and_products_are_flat_and_scalings_are_collected():
    assert len((B + B + B).terms) == 3
    product = (2 * B) @ (3 * B @ B)
    assert isinstance(product, Scaled)
    assert product.scale == 6
    assert len(product.operator.factors) == 3
    assert isinstance((2 * B) * 3, Scaled)
    assert ((2 * B) * 3).operator is B


def test_a_transposed_product_beside_the_product_is_recognized():
    P = B @ from_matrix(random(3, 3, 2))
    for X in (P, 2 * P, P + B, P.T):
        assert Fact.POSITIVE_SEMIDEFINITE in (X.T @ X).facts
        assert Fact.POSITIVE_SEMIDEFINITE in (X @ X.T).facts
    assert not (P @ P).facts


def test_semidefinite_plus_a_positive_shift_is_definite_and_minus_it_is_not():
    gram, one = B.T @ B, identity(B.domain)
    assert Fact.POSITIVE_DEFINITE in (gram + 0.1 * one).facts
    assert (gram - 0.1 * one).facts == {Fact.SYMMETRIC}
    assert (0 * definite_operator(3)).facts == {Fact.SYMMETRIC, Fact.POSITIVE_SEMIDEFINITE}
    assert Fact.POSITIVE_DEFINITE not in (B.T @ definite_operator(3) @ B).facts


def test_operators_are_frozen():
    for X in (A, A.T, A + A, A @ A.T, 2 * A):
        with pytest.raises(dataclasses.FrozenInstanceError):
            X.domain = euclidean(2)


def test_the_dense_matrix_costs_the_smaller_side():
    for M in (random(3, 150), random(150, 3)):
        X, count = counting(from_matrix(M))
        assert torch.equal(X.dense(), M)
        assert count.total == 3


def test_the_identity_does_not_hand_out_the_memory_of_its_argument():
    v = torch.ones(3)
    result = identity(euclidean(3)) @ v
    result += 1
    assert torch.equal(v, torch.ones(3))


def test_numbers_of_every_kind_scale():
    for two in (
        2,
        2.0,
        np.float64(2),
        np.float32(2),
        np.array(2.0),
        torch.tensor(2.0),
        torch.tensor(2.0, requires_grad=True),
    ):
        for X in (two * A, A * two):
            assert X.scale == 2.0
            assert X.operator is A
    assert (A / 4).scale == 0.25
    assert (-A).scale == -1.0


def test_tensors_multiply_from_the_left():
    M = A.dense()
    assert torch.allclose(torch.ones(3) @ A, torch.ones(3) @ M)
    assert torch.allclose(torch.ones(2, 3) @ A, torch.ones(2, 3) @ M)
    assert (torch.ones(0, 3) @ A).shape == (0, 4)


REFUSED = [
    (
        lambda: np.ones(3, dtype=np.float32) @ A,
        TypeError,
        "expected a torch tensor, got a numpy array; convert with torch.from_numpy",
    ),
    (lambda: A @ np.ones(4), TypeError, "expected a torch tensor, got a numpy array"),
    (
        lambda: np.ones((3, 3)) * A,
        TypeError,
        r"c must be a number, got shape \(3, 3\); to compose write from_matrix\(c\) @ A",
    ),
    (lambda: np.ones(3) + A, TypeError, r"for a multiple of the identity write A \+ c \* identity\(A.domain\)"),
    (lambda: torch.ones(3, 3) * A, TypeError, r"c must be a number, got shape \(3, 3\)"),
    (lambda: A * torch.ones(4), TypeError, r"for a row scaling from_diagonal\(c\) @ A"),
    (lambda: A * A, TypeError, "compose operators with A @ B"),
    (lambda: A * "2", TypeError, "c must be a real number, got str"),
    (lambda: 1j * A, TypeError, "c must be a real number, got complex"),
    (lambda: torch.tensor(1j) * A, TypeError, "c must be a real number, got complex"),
    (lambda: B + 0.1, TypeError, r"write A \+ c \* identity\(A.domain\)"),
    (lambda: 0.1 + B, TypeError, r"write A \+ c \* identity\(A.domain\)"),
    (lambda: B - 0.1, TypeError, r"write A \+ c \* identity\(A.domain\)"),
    (lambda: 0.1 - B, TypeError, r"write A \+ c \* identity\(A.domain\)"),
    (lambda: torch.ones(3, 3) + B, TypeError, r"write A \+ c \* identity\(A.domain\)"),
    (lambda: A @ torch.ones(4, dtype=torch.complex64), TypeError, "expected torch.float32, got torch.complex64"),
    (
        lambda: A @ torch.ones(4, dtype=F64),
        TypeError,
        r"expected torch.float32, got torch.float64; convert with v.to\(torch.float32\)",
    ),
    (lambda: A @ torch.ones(3), ValueError, r"Matrix @ v: expected shape \(4,\) or \(4, k\) for R\^4 .*, got \(3,\)"),
    (lambda: A @ torch.ones(4, 1, 1), ValueError, r"got \(4, 1, 1\)"),
    (lambda: A @ torch.ones(4, device="meta"), ValueError, "expected a tensor on cpu, got meta"),
    (lambda: A @ [1.0, 2.0], TypeError, "expected a tensor, a dict or an operator, got list"),
    (lambda: torch.ones(2, 4) @ A, ValueError, r"V @ Matrix: expected shape \(k, 3\) for R\^3 .*, got \(2, 4\)"),
    (lambda: A @ A, ValueError, r"A @ B: A's domain must equal B's codomain, got R\^4 .* and R\^3"),
    (lambda: A @ B, ValueError, "float32, cpu.* and R\\^3 .*float64"),
    (lambda: B + A, ValueError, r"A \+ B: domains must be equal, got R\^3 .* and R\^4"),
    (
        lambda: identity(euclidean(4)) + identity(Space(("w",), ((2, 2),))),
        ValueError,
        r"with block '' of shape \(4,\) and block 'w' of shape \(2, 2\)",
    ),
    (lambda: identity(NAMED) @ {"head": torch.ones(1)}, ValueError, "missing .*layer.bias"),
]


@pytest.mark.parametrize(("make", "kind", "sentence"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_makes_no_sense_is_refused_with_a_sentence(make, kind, sentence):
    with pytest.raises(kind, match=sentence):
        make()


def test_the_algebra_adds_no_products():
    X, count = counting(B)
    y = (X @ X.T + 2 * X) @ torch.ones(3, dtype=F64)
    assert (count.products, count.transposed) == (2, 1)
    assert torch.allclose(y, (B @ B.T + 2 * B).dense() @ torch.ones(3, dtype=F64))


def test_building_expressions_makes_no_products():
    X, count = counting(B)
    expression = (X.T @ X + identity(X.domain)).T @ (X - X.T)
    assert isinstance(expression, Product)
    assert isinstance(X - X.T, Sum)
    assert isinstance(X.T, Adjoint)
    assert count.total == 0


def test_a_graph_in_the_callable_does_not_leak_where_gradients_are_on():
    M = random(3, 3).requires_grad_()
    X = from_callable(lambda V: M @ V, euclidean(3, F64))
    assert not (X @ torch.ones(3, dtype=F64)).requires_grad


def test_a_matrix_that_does_not_fit_is_one_sentence():
    A = from_diagonal(torch.ones(1 << 24))
    with pytest.raises(MemoryError, match=r"dense: the matrix \(16777216, 16777216\) needs 1.05e\+06 GiB"):
        A.dense()
