import math

import pytest
import torch

from cases import F64, NAMED, definite, definite_operator, random
from frechet.errors import NoClosedForm
from frechet.operators._closed_form import inverse, square_root
from frechet.operators._constructors import (
    block_diagonal,
    from_callable,
    from_diagonal,
    from_factors,
    from_matrix,
    identity,
    kronecker,
    restriction,
)
from frechet.operators._eigendecomposition import eigendecomposition
from frechet.operators._operator import Fact, Scaled
from frechet.operators._structured import BlockDiagonal, Eigendecomposed, Kronecker, LowRank, Matrix
from frechet.space import Space, euclidean
from laws import LAWS


def structures(dtype=F64):
    """Name, operator, and whether its square root, too, has a closed form."""

    def spd(n, seed):
        return from_matrix(definite(n, seed).to(dtype), facts="positive_definite")

    def dense(m, n, seed):
        return from_matrix(random(m, n, seed).to(dtype))

    P, Q, J, X = spd(5, 1), spd(3, 2), dense(5, 5, 3) + 3.0 * identity(euclidean(5, dtype)), dense(3, 5, 4)
    J = from_matrix(J.dense())
    one, d = identity(P.domain), from_diagonal(torch.linspace(0.5, 2, 5, dtype=dtype))
    L = from_factors(random(5, 2, 5).to(dtype))
    mixed = from_factors(random(5, 2, 6).to(dtype), torch.tensor([1.0, -0.1], dtype=dtype))
    indefinite = from_matrix(torch.diag(torch.tensor([1.0, -2, 3, -4, 5], dtype=dtype)), facts="symmetric")
    K, blocks = kronecker(Q, P), block_diagonal(Q, P)
    along = from_diagonal(torch.linspace(1, 2, 8, dtype=dtype), domain=blocks.domain)
    nested = kronecker(K, from_diagonal(torch.tensor([1.0, 2.0], dtype=dtype)))
    yes, no = True, False
    return [
        ("identity", one, yes),
        ("scaled identity", 4.0 * one, yes),
        ("diagonal", d, yes),
        ("negative diagonal", -d, no),
        ("sum of diagonals", d + 2 * one + 3 * d, yes),
        ("dense", J, no),
        ("definite", P, yes),
        ("scaled definite", 2.5 * P, yes),
        ("negative definite", -P, no),
        ("sum with a dense term", P + 2 * d + 3 * one + L + X.T @ X, yes),
        ("dense plus its transpose", J + J.T, no),
        ("adjoint", J.T, no),
        ("product", J @ P @ d, no),
        ("congruence", J.T @ P @ J, no),
        ("square", P @ P, yes),
        ("square of an indefinite matrix", indefinite @ indefinite, yes),
        ("gram", J.T @ J, yes),
        ("weighted gram", J @ d @ J.T, yes),
        ("kronecker", kronecker(Q, J), no),
        ("definite kronecker", K, yes),
        ("kronecker of two negatives", kronecker(-Q, -P), yes),
        ("shifted kronecker", K + 0.3 * identity(K.domain), yes),
        ("scaled shifted kronecker", 2 * (K + 0.3 * identity(K.domain)) + 0.1 * identity(K.domain), yes),
        ("shifted nested kronecker", nested + 0.5 * identity(nested.domain), yes),
        ("blocks", block_diagonal(J, Q), no),
        ("definite blocks", blocks, yes),
        ("shifted blocks", 2 * blocks + 0.7 * identity(blocks.domain), yes),
        ("blocks plus diagonal", blocks + along + blocks, yes),
        ("shifted blocks of kroneckers", block_diagonal(K, K) + identity(block_diagonal(K, K).domain), yes),
        ("shifted low rank", L + 0.5 * one, yes),
        ("shifted indefinite low rank", mixed + 3 * one, yes),
        ("difference", 4.0 * one - 0.01 * L, yes),
        ("negative shift", L - 50.0 * one, no),
        ("two low ranks", L + 2 * mixed + 4 * one, yes),
        ("shifted small gram", X.T @ X + 0.1 * one, yes),
        ("low rank plus diagonal", L + d, no),
        ("indefinite low rank plus diagonal", 0.1 * mixed + d, no),
        ("full low rank", from_factors(random(5, 6, 7).to(dtype)), yes),
        ("trivial restriction", restriction(P.domain, "*"), yes),
        ("one entry", spd(1, 8), yes),
        ("no entries", from_matrix(torch.zeros(0, 0, dtype=dtype), facts="positive_definite"), yes),
    ]


CASES = structures()
ROOTS = [c for c in CASES if c[2]]


def names(cases):
    return [c[0] for c in cases]


@pytest.mark.parametrize(("name", "A", "_"), CASES, ids=names(CASES))
def test_the_inverse_is_the_dense_inverse(name, A, _):
    B, M = inverse(A), torch.linalg.inv(A.dense())
    assert torch.allclose(B.dense(), M, rtol=1e-10, atol=1e-11 * float(M.abs().max()) if M.numel() else 0)
    assert (B.domain, B.codomain) == (A.codomain, A.domain)
    assert torch.allclose(inverse(B).dense(), A.dense(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("name", "A", "_"), CASES, ids=names(CASES))
def test_the_facts_of_the_inverse_are_those_of_the_operator(name, A, _):
    B = inverse(A)
    assert A.facts <= B.facts
    if Fact.POSITIVE_SEMIDEFINITE in A.facts:
        assert Fact.POSITIVE_DEFINITE in B.facts
    if B.facts and B.shape[0]:
        M = B.dense()
        assert torch.allclose(M, M.T, rtol=1e-10, atol=1e-10 * float(M.abs().max()))
        definite = bool((torch.linalg.eigvalsh(M) > 0).all())
        assert (Fact.POSITIVE_DEFINITE in B.facts) <= definite


@pytest.mark.parametrize(("name", "A", "_"), ROOTS, ids=names(ROOTS))
def test_the_square_root_is_symmetric_semidefinite_and_squares_to_the_operator(name, A, _):
    B = square_root(A)
    M = B.dense()
    assert torch.allclose(M @ M, A.dense(), rtol=1e-10, atol=1e-10)
    assert torch.allclose(M, M.T, atol=1e-12)
    assert Fact.POSITIVE_SEMIDEFINITE in B.facts
    assert not M.numel() or float(torch.linalg.eigvalsh(M)[0]) >= -1e-12
    if Fact.POSITIVE_DEFINITE in A.facts:
        assert Fact.POSITIVE_DEFINITE in B.facts
    half = inverse(B).dense()
    assert torch.allclose(half @ A.dense() @ half, torch.eye(len(half), dtype=F64), atol=1e-8)


@pytest.mark.parametrize(("name", "A", "_"), structures(torch.float32), ids=names(CASES))
def test_float32_stays_float32_and_is_right_to_its_rounding(name, A, _):
    B = inverse(A)
    M = torch.linalg.inv(A.dense().double())
    assert B.dense().dtype == torch.float32
    scale = float(M.abs().max()) if M.numel() else 0.0
    condition = float(torch.linalg.cond(A.dense().double())) if M.numel() else 1.0
    assert torch.allclose(B.dense().double(), M, rtol=0, atol=4e-7 * condition * scale)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["shifted kronecker", "congruence", "low rank plus diagonal", "shifted blocks"])
def test_inverses_obey_the_laws(law, name):
    A = next(A for n, A, _ in CASES if n == name)

    class OneCase:
        dense = torch.linalg.inv(A.dense())

    law(inverse(A), OneCase)


def test_structure_is_kept():
    one = identity(euclidean(5, F64))
    K = kronecker(definite_operator(3), definite_operator(5))
    assert isinstance(inverse(K), Kronecker)
    assert isinstance(square_root(K), Kronecker)
    assert isinstance(inverse(block_diagonal(K, K) + identity(block_diagonal(K, K).domain)), BlockDiagonal)
    assert isinstance(inverse(K + identity(K.domain)), Eigendecomposed)
    assert isinstance(square_root(from_factors(random(5, 2))), LowRank)
    assert isinstance(inverse(definite_operator(5)), Matrix)
    assert inverse(4.0 * one).scale == 0.25
    assert isinstance(square_root(4.0 * one), Scaled)


def test_a_large_low_rank_operator_is_inverted_without_a_matrix_of_its_size():
    n = 100_000
    A = from_factors(random(n, 3)) + 2.0 * identity(euclidean(n, F64))
    v = torch.linspace(-1, 1, n, dtype=F64)
    assert torch.allclose(inverse(A) @ (A @ v), v, atol=1e-9)
    assert torch.allclose(square_root(A) @ (square_root(A) @ v), A @ v, rtol=1e-8, atol=1e-7)


def test_a_small_shift_loses_no_digits_in_the_gain_of_the_square_root():
    A = from_factors(torch.tensor([[1.0], [0.0]], dtype=F64) * 1e-9) + 1.0 * identity(euclidean(2, F64))
    low_rank = square_root(A).terms[1]
    assert float(low_rank.s[0]) == pytest.approx(0.5e-18, rel=1e-12)


def test_singular_gram_matrices_have_a_root():
    X = from_matrix(random(2, 5))
    B = square_root(X.T @ X)
    assert torch.allclose((B @ B).dense(), (X.T @ X).dense())
    assert Fact.POSITIVE_DEFINITE not in B.facts
    assert torch.equal(square_root(0.0 * definite_operator(3)).dense(), torch.zeros(3, 3, dtype=F64))


def test_rounding_below_zero_does_not_outweigh_a_shift():
    K = kronecker(*(from_matrix(random(6, 1, i) @ random(6, 1, i).T, facts="positive_semidefinite") for i in (1, 2)))
    assert float(torch.linalg.eigvalsh(K.dense())[0]) < -1e-18
    B = inverse(K + 1e-18 * identity(K.domain))
    assert Fact.POSITIVE_DEFINITE in B.facts
    assert float(B.values.min()) > 0


def test_rounding_below_zero_counts_as_zero_in_a_square_root():
    M = random(6, 2) @ random(6, 2).T
    B = square_root(from_matrix(M, facts="positive_semidefinite"))
    assert torch.allclose((B @ B).dense(), M, atol=1e-12)


def test_eigenvectors_of_a_kronecker_product_are_orthogonal_and_diagonalize_it():
    K = kronecker(definite_operator(3), block_diagonal(definite_operator(2), from_diagonal(torch.ones(1, dtype=F64))))
    E = eigendecomposition(K, "inverse")
    Q = E.Q.dense()
    assert torch.allclose(Q.T @ Q, torch.eye(9, dtype=F64), atol=1e-13)
    assert torch.allclose(Q @ torch.diag(E.values) @ Q.T, K.dense(), atol=1e-12)


def hilbert(n):
    i = torch.arange(n, dtype=F64)
    return 1 / (i[:, None] + i + 1)


SINGULAR = [
    (inverse, lambda: from_matrix(random(2, 3)), r"inverse: A must be square, got shape \(2, 3\); .* lsmr\(A, b\)"),
    (inverse, lambda: from_diagonal(torch.tensor([1.0, 0.0])), "got 0 at diagonal entry 1"),
    (inverse, lambda: from_diagonal(NAMED.vector({"*": 1.0, "head": 0.0}), domain=NAMED), r"entry 6 \(block 'head'\)"),
    (inverse, lambda: from_diagonal(torch.tensor([5e-324], dtype=F64)), "got 4.94e-324 at diagonal entry 0"),
    (inverse, lambda: 0.0 * from_callable(lambda V: V, 2), "inverse: A must be nonsingular, got 0 times FromCallable"),
    (inverse, lambda: from_matrix(torch.ones(2, 2)), "must be nonsingular to working precision, got the reciprocal"),
    (inverse, lambda: from_matrix(torch.zeros(2, 2)), "reciprocal condition number 0"),
    (inverse, lambda: from_matrix(torch.full((2, 2), math.nan)), "reciprocal condition number nan"),
    (
        inverse,
        lambda: from_matrix(hilbert(12).float()),
        r"reciprocal condition number .*; add c \* identity\(A.domain\)",
    ),
    (inverse, lambda: from_matrix(-torch.eye(2), facts="positive_definite"), "a non-positive pivot in row 0"),
    (inverse, lambda: from_factors(random(4, 2)), r"got rank 2 on R\^4; add c \* identity\(A.domain\)"),
    (
        inverse,
        lambda: from_factors(torch.eye(3)[:, :1]) - identity(euclidean(3)),
        "got the shift -1 cancelling the eigenvalue 1",
    ),
    (inverse, lambda: from_matrix(random(4, 3)) @ from_matrix(random(3, 4)), r"a product through R\^3 on R\^4"),
    (
        inverse,
        lambda: kronecker(from_matrix(random(2, 3)), from_matrix(random(3, 2))),
        r"got the factor of a Kronecker product number 0 of shape \(2, 3\)",
    ),
    (
        inverse,
        lambda: block_diagonal(from_matrix(random(2, 3)), from_matrix(random(3, 2)), codomain=euclidean(5, F64)),
        r"got the block number 0 of shape \(2, 3\)",
    ),
    (square_root, lambda: from_matrix(random(2, 2)), "square_root: A must be symmetric, got Matrix.*declare it"),
    (square_root, lambda: from_diagonal(torch.tensor([1.0, -0.5])), r"got the eigenvalue -0.5 \(the largest is 1\)"),
    (square_root, lambda: -definite_operator(3), "must be positive semidefinite, got the eigenvalue -"),
    (square_root, lambda: -1.0 * identity(euclidean(3)), "must be positive semidefinite, got the eigenvalue -1"),
    (
        square_root,
        lambda: from_factors(random(4, 2)) - 0.1 * identity(euclidean(4, F64)),
        "must be positive semidefinite, got the eigenvalue -0.1",
    ),
]


@pytest.mark.parametrize(("f", "make", "sentence"), SINGULAR, ids=[str(i) for i in range(len(SINGULAR))])
def test_what_is_singular_or_indefinite_is_named(f, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        f(make())


def unknown():
    return from_callable(lambda V: 2 * V, euclidean(4, F64), facts="positive_definite")


TALL = from_matrix(random(5, 4))
UNKNOWN = [
    unknown,
    lambda: unknown() + identity(euclidean(4, F64)),
    lambda: definite_operator(4) + unknown(),
    lambda: from_factors(random(4, 1)) + unknown(),
    lambda: kronecker(unknown(), definite_operator(2)),
    lambda: block_diagonal(unknown(), definite_operator(2)),
    lambda: kronecker(unknown(), identity(euclidean(2, F64))) + identity(Space(("",), ((4, 2),), F64)),
    lambda: TALL.T @ definite_operator(5) @ TALL,
    lambda: from_factors(random(4, 1)) + from_diagonal(torch.tensor([1.0, -1, 1, 1], dtype=F64)),
    lambda: (
        kronecker(definite_operator(2), definite_operator(2))
        + from_diagonal(torch.arange(4.0, dtype=F64), domain=Space(("",), ((2, 2),), F64))
    ),
]


@pytest.mark.parametrize("make", UNKNOWN, ids=[str(i) for i in range(len(UNKNOWN))])
def test_structures_without_a_closed_form_name_the_iterative_way(make):
    with pytest.raises(NoClosedForm, match=r"inverse: .*; use solve\(A, b\)"):
        inverse(make())
    with pytest.raises(NoClosedForm, match=r"square_root: .*; use apply_function\(A, b, torch.sqrt\)"):
        square_root(make())
