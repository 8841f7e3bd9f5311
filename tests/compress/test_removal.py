import itertools

import pytest
import torch

import frechet.compress._removal as implementation
from cases import F64, definite, random
from frechet import Objective, cross_entropy, from_diagonal, from_matrix, gauss_newton, identity
from frechet.compress import compensated, removed_in_order
from frechet.linalg import nystrom
from frechet.operators import inverse, inverse_fisher
from frechet.operators.derivatives import kfac
from frechet.space import euclidean

N = 12


def quadratic(seed=0):
    """A Hessian, and weights at its minimum."""
    return definite(N, seed), random(N, 1, seed + 10)[:, 0]


def inverses():
    """Inverses of each kind with the dense matrix of their curvature."""
    H, _ = quadratic()
    G = random(5, N, 3)
    F = G.T @ G / 5 + 0.1 * torch.eye(N, dtype=F64)
    stretch = torch.arange(N) // 5
    L = from_matrix(H, facts="positive_definite")
    sketch = nystrom(L, rank=6, damping=0.3, seed=0)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3).double()
    K = kfac(Objective(model, cross_entropy(), [(random(20, 3), torch.randint(0, 3, (20,)))]))
    K = K + 0.1 * identity(K.domain)
    return {
        "dense": (inverse(L), H),
        "diagonal": (from_diagonal(1 / H.diagonal()), torch.diag(H.diagonal())),
        "fisher": (inverse_fisher(G, 0.1), F),
        "fisher in blocks": (inverse_fisher(G, 0.1, block=5), torch.where(stretch[:, None] == stretch, F, 0 * F)),
        "nystrom": (sketch, torch.linalg.inv(sketch.dense())),
        "kfac": (inverse(K), K.dense()),
    }


KINDS = inverses()


def best(H, w, Q, g):
    """The least increase with the weights in Q at zero, by elimination, and where it is."""
    R = [i for i in range(len(w)) if i not in Q]
    d = torch.zeros_like(w)
    d[Q] = -w[Q]
    d[R] = torch.linalg.solve(H[R][:, R], H[R][:, Q] @ w[Q] - g[R]) if R else d[R]
    return float(g @ d + d @ H @ d / 2), w + d


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("dense", [2048, 0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("Q", [[], [3], [0, 5, 7, 11], list(range(N - 1)), list(range(N))])
def test_a_set_leaves_exactly_the_least_increase_of_the_quadratic(kind, Q, dense, slope, monkeypatch):
    monkeypatch.setattr(implementation, "DENSE", dense)
    (B, H), (_, w) = KINDS[kind], quadratic()
    g = 0.3 * random(N, 1, 20)[:, 0] if slope else torch.zeros(N, dtype=F64)
    increase, x = best(H, w, Q, g)
    found = compensated(w, B, Q, gradient=g if slope else None)
    torch.testing.assert_close(found.x, x, rtol=1e-7, atol=1e-7)
    assert found.increase == pytest.approx(increase, rel=1e-8, abs=1e-12)
    d = found.x - w
    assert float(g @ d + d @ H @ d / 2) == pytest.approx(found.increase, rel=1e-8, abs=1e-12)
    assert not bool(found.x[Q].any())


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_weight_that_goes_is_the_one_that_brute_force_finds(kind):
    (B, H), (_, w) = KINDS[kind], quadratic()
    zero = torch.zeros_like(w)
    losses = [best(H, w, [q], zero)[0] for q in range(N)]
    found = removed_in_order(w, B, 1)
    assert int(found.removed[0]) == min(range(N), key=losses.__getitem__)
    assert found.increase == pytest.approx(min(losses), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_each_next_weight_is_the_one_that_brute_force_finds_among_those_left(kind):
    (B, H), (_, w) = KINDS[kind], quadratic()
    order = removed_in_order(w, B, 8).removed.tolist()
    for k in range(8):
        left = [q for q in range(N) if q not in order[:k]]
        losses = {q: best(H, w, [*order[:k], q], 0 * w)[0] for q in left}
        assert order[k] == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize("kind", KINDS)
def test_single_removals_end_where_their_set_ends(kind):
    (B, H), (_, w) = KINDS[kind], quadratic()
    one_by_one = removed_in_order(w, B, 7)
    for k in (1, 4, 7):
        Q = one_by_one.removed[:k].tolist()
        assert float(one_by_one.increases[k - 1]) == pytest.approx(best(H, w, Q, 0 * w)[0], rel=1e-8)
    together = compensated(w, B, one_by_one.removed)
    torch.testing.assert_close(one_by_one.x, together.x, rtol=1e-8, atol=1e-9)
    assert one_by_one.increase == pytest.approx(together.increase, rel=1e-8)
    assert len(set(one_by_one.removed.tolist())) == 7


def test_the_order_of_a_set_does_not_matter():
    (B, _), (_, w) = KINDS["dense"], quadratic()
    ends = []
    for order in itertools.permutations([1, 4, 9]):
        x = w
        for k in range(1, 4):  # the set grows; what went before stays at zero
            x = compensated(x, B, list(order[:k])).x
        ends.append(x)
    expected = compensated(w, B, [1, 4, 9]).x
    for x in ends:
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-10)


def test_taking_a_set_for_independent_leaves_more():
    (B, H), (_, w) = KINDS["dense"], quadratic()
    Q = [0, 2, 3, 6, 8]
    d = B.dense()[:, Q] @ (-w[Q] / B.dense().diagonal()[Q])
    cut = w + d
    cut[Q] = 0.0
    independent = float((cut - w) @ H @ (cut - w)) / 2
    assert compensated(w, B, Q).increase < 0.99 * independent


def test_candidates_alone_go_in_order():
    (B, _), (_, w) = KINDS["dense"], quadratic()
    mask = torch.arange(N) % 2 == 0
    found = removed_in_order(w, B, 6, candidates=mask)
    assert sorted(found.removed.tolist()) == [0, 2, 4, 6, 8, 10]
    assert bool((found.x[~mask] != 0).all())


def test_a_model_in_float32_is_pruned_as_in_float64():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    X, y = torch.randn(60, 4), torch.randint(0, 3, (60,))
    found = []
    for dtype in (torch.float32, F64):
        objective = Objective(model.to(dtype), cross_entropy(), [(X.to(dtype), y)])
        A = gauss_newton(objective)
        B = inverse(from_matrix(A.dense(), domain=A.domain, facts="positive_semidefinite") + 1e-2 * identity(A.domain))
        found.append(compensated(objective.point, B, [0, 1, 5]))
    assert found[0].x.dtype == torch.float32
    torch.testing.assert_close(found[0].x.double(), found[1].x, rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_named():
    (B, H), (_, w) = KINDS["dense"], quadratic()
    for call, sentence in (
        (lambda: compensated(w[:3], B, [0]), r"compensated: x must have shape \(12,\), got \(3,\)"),
        (lambda: compensated(w, B, [12]), "compensated: removed must lie between 0 and 11, got 12 to 12"),
        (lambda: compensated(w, B, torch.ones(3, dtype=torch.bool)), r"a mask must have shape \(12,\), got \(3,\)"),
        (lambda: compensated(w, from_matrix(H), [0]), "compensated: inverse must be positive definite, got Matrix"),
        (lambda: compensated(w, B, [0], gradient=w[:2]), r"compensated: gradient must have shape \(12,\), got \(2,\)"),
        (lambda: removed_in_order(w, B, 13), "removed_in_order: number must lie between 0 and 12, got 13"),
        (lambda: removed_in_order(w, B, 1, candidates=w), r"candidates must be a mask \(12,\), got \(12,\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    assert "3 of 12 weights" in repr(compensated(w, B, [0, 1, 1, 2]))
    assert "removed" in compensated(w, B, [0])._repr_html_()
    assert euclidean(N, F64) == B.domain
