import math
import pickle
from dataclasses import replace

import pytest
import torch

from cases import F64, definite, random, structured_cases
from counting import counting
from frechet.operators._check import OperatorCheck, check_operator
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity, kronecker
from frechet.operators._operator import PSD, LinearOperator
from frechet.space import euclidean

N = 20
M, S = random(N, N), definite(N)
SPACE = euclidean(N, F64)


def callable_operator(matmat=None, rmatmat=None, facts=()):
    return from_callable(matmat or (lambda V: M @ V), SPACE, rmatmat=rmatmat or (lambda U: M.T @ U), facts=facts)


@pytest.mark.parametrize("case", structured_cases(), ids=repr)
def test_right_operators_pass(case):
    result = check_operator(case.operator, seed=0)
    assert result.failed == ()
    assert result.checked() is result
    # far from the tolerance, not at its edge
    assert max(result.errors.values()) <= 1e-13


@pytest.mark.parametrize("seed", range(20))
def test_right_float32_operators_pass_with_every_seed(seed):
    A = from_matrix(random(60, 60).float())
    K = kronecker(from_matrix(random(8, 5).float()), from_matrix(random(4, 9).float()))
    for B in (A, K, A.T @ A + 0.01 * identity(A.domain)):
        assert check_operator(B, seed=seed).failed == ()


class Twin(LinearOperator):
    """Not checked at its edge, so that a product can go wrong in ways that `from_callable` refuses."""

    def __init__(self, matmat, facts=frozenset()):
        self.domain = self.codomain = SPACE
        self.facts = facts
        self.matmat = matmat

    def _matmat(self, V):
        return self.matmat(V)

    def _rmatmat(self, U):
        return self.matmat(U)


def noise():
    state = iter(range(10_000))
    return lambda V: M @ V + 1e-3 * random(N, V.shape[1], next(state))


def memory():
    calls = []

    def matmat(V):
        calls.append(1)
        return (1 + 1e-4 * len(calls)) * (M @ V)

    return matmat


class Leaks(Twin):
    def __matmul__(self, other):
        return super().__matmul__(other) if other.ndim == 1 else M.clone().requires_grad_() @ other


def indefinite(V):
    """One negative eigenvalue of small size among many positive ones: random v'Av never sees it."""
    d = torch.linspace(1.0, 2.0, N, dtype=F64)
    d[0] = -0.1
    return d[:, None] * V


BROKEN = {
    "wrong adjoint": (callable_operator(rmatmat=lambda U: M @ U), {"adjoint"}),
    "scaled adjoint": (callable_operator(rmatmat=lambda U: 1.001 * (M.T @ U)), {"adjoint"}),
    "lost column": (callable_operator(matmat=lambda V: torch.cat([0 * V[:1], V[1:]]).T.matmul(M.T).T), {"adjoint"}),
    "offset": (callable_operator(matmat=lambda V: M @ V + 1), {"linearity", "adjoint"}),
    "small nonlinearity": (callable_operator(matmat=lambda V: M @ V + 1e-6 * V**3), {"linearity"}),
    "finite difference": (
        callable_operator(lambda V: M @ ((1 + 1e-6 * V) ** 3 - 1) / 3e-6),
        {"linearity", "adjoint"},
    ),
    "normalized": (callable_operator(matmat=lambda V: M @ (V / V.square().sum(0).sqrt())), {"linearity", "adjoint"}),
    "coupled columns": (
        callable_operator(matmat=lambda V: M @ V + 1e-3 * V.mean(1, keepdim=True)),
        {"columns", "adjoint"},
    ),
    "lost last vector of a block": (
        callable_operator(matmat=lambda V: torch.cat([M @ V[:, :-1], 0 * V[:, -1:]], 1) if V.shape[1] > 1 else M @ V),
        {"columns", "adjoint"},
    ),
    "coupled columns of the transpose": (
        callable_operator(rmatmat=lambda U: M.T @ U + 1e-3 * U.mean(1, keepdim=True)),
        {"columns", "adjoint"},
    ),
    "falsely symmetric": (callable_operator(facts="symmetric"), {"adjoint", "symmetry"}),
    "falsely semidefinite": (callable_operator(matmat=indefinite, facts="positive_semidefinite"), {"sign"}),
    "falsely definite zero": (from_matrix(torch.zeros(N, N), facts="positive_definite"), {"sign"}),
    "falsely definite singular": (from_diagonal(-torch.ones(N, dtype=F64)), set()),
    "random noise": (callable_operator(matmat=noise()), {"linearity", "columns", "adjoint", "repeatability"}),
    "changes as it is used": (callable_operator(matmat=memory()), {"linearity", "columns", "adjoint", "repeatability"}),
    "changes its input": (
        callable_operator(matmat=lambda V: M @ V.mul_(2), rmatmat=lambda U: 2 * (M.T @ U)),
        {"input"},
    ),
    "keeps a graph": (Leaks(lambda V: M @ V), {"graph", "adjoint"}),
    "another dtype": (Twin(lambda V: (M @ V).float()), {"kind"}),
    "another shape": (Twin(lambda V: (M @ V)[:-1]), {"kind"}),
    "overflow": (callable_operator(matmat=lambda V: (M @ V) / (V.abs().max() < 100)), {"linearity"}),
    "not a number for large input": (
        callable_operator(matmat=lambda V: M @ V + (0.0 if float(V.abs().max()) < 100 else math.nan)),
        {"linearity"},
    ),
    "not a number on a Krylov space": (
        callable_operator(
            matmat=lambda V: S @ V / (1.0 if float(V.abs().max()) > 0.99 else math.nan),
            facts="positive_semidefinite",
        ),
        {"sign"},
    ),
    "not a number": (Twin(lambda V: M @ V * math.nan), {"kind"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_operator_fails_where_it_is_broken(name):
    A, laws = BROKEN[name]
    result = check_operator(A, seed=1)
    assert laws <= set(result.failed)
    if not laws:
        assert result.failed == ()
        return
    with pytest.raises(
        ValueError, match=rf"check_operator: {type(A).__name__} .* fails, tolerance .*: {result.failed[0]}"
    ):
        result.checked()


def test_each_law_fails_alone_somewhere():
    alone = {result.failed[0] for A, _ in BROKEN.values() if len((result := check_operator(A, seed=2)).failed) == 1}
    assert alone == {"kind", "adjoint", "sign", "input"} | (alone & {"linearity"})
    together = {law for A, _ in BROKEN.values() for law in check_operator(A, seed=3).failed}
    assert together == {
        "kind", "linearity", "columns", "adjoint", "symmetry", "sign", "repeatability", "input", "graph"
    }  # fmt: skip


def test_the_sentence_says_which_law_failed_by_how_much_and_what_to_do():
    with pytest.raises(ValueError, match=r"sign \(error 0\.0\d+\): v'Av < 0 for some v: drop the fact"):
        check_operator(BROKEN["falsely semidefinite"][0], seed=0).checked()


def test_the_sign_test_sees_what_random_vectors_do_not():
    A = BROKEN["falsely semidefinite"][0]
    for seed in range(20):
        V = SPACE.random(range(3), seed, "gaussian")
        assert bool(((V * (A @ V)).sum(0) > 0).all())
        assert "sign" in check_operator(A, seed=seed).failed


def test_an_operator_made_without_its_transpose_is_checked_without_it():
    A = from_callable(lambda V: M @ V, SPACE)
    with pytest.raises(TypeError, match="made without rmatmat"):
        check_operator(A, seed=0)
    result = check_operator(A, seed=0, transpose=False)
    assert result.failed == ()
    assert "adjoint" not in result.errors


def test_products_are_counted():
    for facts in ((), "symmetric", "positive_semidefinite", "positive_definite"):
        A, count = counting(from_matrix(S, facts=facts))
        for probes in (1, 3):
            count.products = count.transposed = 0
            assert check_operator(A, seed=0, probes=probes).products == count.total
            assert count.total <= 20 * probes + 10


def test_the_same_seed_gives_the_same_errors():
    A = from_matrix(M)
    first, second, other = (check_operator(A, seed=s) for s in (4, 4, 5))
    assert first == second
    assert first.errors != other.errors


def test_the_result_is_plain_data():
    result = check_operator(from_matrix(M), seed=0)
    assert pickle.loads(pickle.dumps(result)) == result
    assert isinstance(result, OperatorCheck)
    assert replace(result, failed=("adjoint",)).failed == ("adjoint",)


def test_the_tolerance_can_be_given():
    A = callable_operator(rmatmat=lambda U: 1.001 * (M.T @ U))
    assert "adjoint" in check_operator(A, seed=0).failed
    assert check_operator(A, seed=0, rtol=0.01).failed == ()
    assert check_operator(from_matrix(M.float()), seed=0).tolerance == pytest.approx(2.4e-5, rel=0.02)


def test_edge_sizes():
    for shape in ((1, 1), (0, 3), (3, 0), (0, 0)):
        assert check_operator(from_matrix(torch.ones(shape)), seed=0).failed == ()
    assert check_operator(identity(euclidean(0)), seed=0).failed == ()
    assert check_operator(from_matrix(torch.zeros(4, 4), facts=PSD), seed=0).failed == ()


def test_no_probes_are_refused():
    with pytest.raises(ValueError, match="check_operator: probes must be at least 1, got 0"):
        check_operator(from_matrix(M), seed=0, probes=0)
