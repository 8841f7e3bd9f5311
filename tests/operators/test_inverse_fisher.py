import pytest
import torch

import frechet.operators._inverse_fisher as implementation
from cases import F64, NAMED, random
from frechet import Objective, cross_entropy, diagonal, empirical_fisher, identity, log_determinant, trace
from frechet.operators import from_factors, inverse, inverse_fisher, square_root
from frechet.space import euclidean

SIZES = [(0, 5, None), (1, 1, None), (1, 6, 1), (5, 20, None), (33, 20, 3), (7, 20, 50), (12, 20, 4)]


def dense(G, damping, block=None):
    """The inverse, by a dense factorization in float64."""
    m, n = G.shape
    stretch = torch.arange(n) // (block or max(1, n))
    F = G.double().T @ G.double() / max(1, m) * (stretch[:, None] == stretch)
    return torch.linalg.inv(F + damping * torch.eye(n, dtype=F64))


@pytest.fixture(params=[1 << 22, 7])
def pieces(request, monkeypatch):
    """Whole gradients, and gradients that pass in pieces."""
    monkeypatch.setattr(implementation, "ENTRIES", request.param)


@pytest.mark.parametrize(("m", "n", "block"), SIZES)
@pytest.mark.parametrize("damping", [1e-6, 1.0])
def test_products_diagonal_trace_and_determinant_are_those_of_the_dense_inverse(m, n, block, damping, pieces):
    G = random(m, n)
    B, M = inverse_fisher(G, damping, block=block), dense(G, damping, block)
    scale = float(M.abs().max())
    assert float((B.dense() - M).abs().max()) <= 1e-9 * scale
    torch.testing.assert_close(diagonal(B).value, M.diagonal(), rtol=1e-8, atol=1e-10 * scale)
    assert float(trace(B).value) == pytest.approx(float(M.trace()), rel=1e-8)
    assert float(log_determinant(B).value) == pytest.approx(float(torch.logdet(M)), rel=1e-8, abs=1e-9)
    assert diagonal(B).exact
    assert diagonal(B).products == 0


@pytest.mark.parametrize(("m", "n", "block"), SIZES)
def test_float32_is_right_to_its_rounding_where_the_gradients_outweigh_the_damping(m, n, block, pieces):
    G, damping = 10 * random(m, n).float(), 1e-5
    B, M = inverse_fisher(G, damping, block=block), dense(G, damping, block)
    for i in range(n):
        column = B @ torch.eye(n)[i]
        assert column.dtype == torch.float32
        # a column is as exact as its rounding to float32, although 1/damping is 1e7 times some of it
        torch.testing.assert_close(column.double(), M[:, i], rtol=3e-7, atol=3e-7 * float(M[:, i].abs().max()))
    torch.testing.assert_close(diagonal(B).value.double(), M.diagonal(), rtol=3e-7, atol=0)
    if m:
        x = G[0]  # what an optimizer asks for
        exact = M @ x.double()
        for found in (B @ x, B.of_gradient(0)):
            torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("block", [None, 4])
def test_a_window_that_slides_is_the_window_made_anew(block, pieces):
    G = random(12, 10)
    B = inverse_fisher(G[:0], 1e-3, block=block)
    for i in range(12):
        B = B.added(G[i], window=5)
        M = dense(G[max(0, i - 4) : i + 1], 1e-3, block)  # the mean is over the gradients that are there
        torch.testing.assert_close(B.dense(), M, rtol=1e-9, atol=1e-9 * float(M.abs().max()))
    for i, rest in ((2, [7, 8, 10, 11]), (-1, [7, 8, 10]), (0, [8, 10])):
        B = B.removed(i)
        M = dense(G[rest], 1e-3, block)
        torch.testing.assert_close(B.dense(), M, rtol=1e-9, atol=1e-9 * float(M.abs().max()))


def test_a_thousand_steps_of_a_window_lose_no_digits():
    G = random(1000, 8)
    B = inverse_fisher(G[:0], 1e-4)
    for g in G:
        B = B.added(g, window=3)
    M = dense(G[-3:], 1e-4)
    torch.testing.assert_close(B.dense(), M, rtol=1e-10, atol=1e-10 * float(M.abs().max()))


@pytest.mark.parametrize("block", [None, 3])
def test_it_is_the_closed_form_of_the_structure_and_leads_back_to_it(block):
    G = random(4, 7)
    B = inverse_fisher(G, 0.5, domain=NAMED, block=block)
    A = inverse(B)
    assert A.domain == NAMED
    torch.testing.assert_close(A.dense(), torch.linalg.inv(dense(G, 0.5, block)))
    torch.testing.assert_close(inverse(A).dense(), B.dense())
    root = square_root(B)
    torch.testing.assert_close(root.dense() @ root.dense(), B.dense())
    if block is None:
        written = from_factors(G.T, torch.full((4,), 0.25, dtype=F64), domain=NAMED) + 0.5 * identity(NAMED)
        torch.testing.assert_close(inverse(written).dense(), B.dense())


def test_the_empirical_fisher_of_a_model_is_one():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    X, y = random(9, 3), torch.randint(0, 2, (9,))
    objective = Objective(model, cross_entropy(), [(X, y)])
    E = empirical_fisher(objective, per="example")
    rows = [objective.on((X[i : i + 1], y[i : i + 1])).gradient() for i in range(9)]
    B = inverse_fisher(torch.stack(rows), 0.2, domain=E.domain)
    torch.testing.assert_close(B.dense(), inverse(E + 0.2 * identity(E.domain)).dense())


def test_a_damping_below_rounding_is_named():
    G = 1e12 * torch.ones(3, 2, dtype=F64)
    with pytest.raises(ValueError, match=r"damping must exceed the rounding .*, got 1e-05 beside squares up to 2e\+24"):
        inverse_fisher(G, 1e-5) @ G[0]


def test_wrong_arguments_are_named():
    G = random(2, 3)
    for make, sentence in (
        (lambda: inverse_fisher(G[0], 1.0), r"inverse_fisher: gradients must have shape \(m, n\), got \(3,\)"),
        (lambda: inverse_fisher(G, 0.0), "inverse_fisher: damping must be a number > 0, got 0.0"),
        (lambda: inverse_fisher(G, float("nan")), "inverse_fisher: damping must be a number > 0, got nan"),
        (lambda: inverse_fisher(G / 0, 1.0), "inverse_fisher: gradients must be finite, got a NaN or an infinity"),
        (lambda: inverse_fisher(G, 1.0, block=0), "inverse_fisher: block must be an int >= 1, got 0"),
        (lambda: inverse_fisher(G, 1.0, domain=euclidean(4, F64)), "gradients must have 4 columns, got 3"),
        (lambda: inverse_fisher(G, 1.0).added(G), r"gradient must be \(3,\), got \(2, 3\)"),
        (lambda: inverse_fisher(G, 1.0).added(G[0] / 0), "InverseFisher.added: gradients must be finite"),
        (lambda: inverse_fisher(G, 1.0).added(G[0], window=0), "window must be >= 1, got 0"),
        (lambda: inverse_fisher(G, 1.0).of_gradient(2), "of_gradient: i must be one of 2 gradients, got 2"),
        (lambda: inverse_fisher(G, 1.0).removed(2), "i must be one of 2 gradients, got 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()
    with pytest.raises(TypeError, match=r"gradient must be torch.float64 on cpu as its space, got torch.float32"):
        inverse_fisher(G, 1.0).added(G[0].float())
