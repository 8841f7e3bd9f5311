import pytest
import torch

from counting import counting
from example_cases import gradient, problem
from frechet.analyze import _single_examples as single_examples
from frechet.analyze._example_quadratics import example_quadratics
from frechet.errors import NonFinite
from frechet.operators._constructors import from_diagonal, from_matrix
from frechet.operators.derivatives._hessian import hessian


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens", "lstm"])
def test_forms_are_those_of_the_gradients_of_single_examples(name):
    objective, functions = problem(name)
    G = torch.stack([gradient(f, objective.point) for f in functions])
    n = objective.space.dim
    M = torch.randn(n, n, dtype=torch.float64)  # not symmetric
    found = example_quadratics(objective, from_matrix(M, domain=objective.space, codomain=objective.space), block=2)
    torch.testing.assert_close(found.values, torch.einsum("in,nm,im->i", G, M, G), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.squared_norms, G.square().sum(1))
    assert (found.examples, found.products, found.passes) == (len(functions), len(functions), 2)


def test_curvature_along_each_gradient_and_its_cost(monkeypatch):
    objective, functions = problem("mlp")
    G = torch.stack([gradient(f, objective.point) for f in functions])
    H = hessian(objective)
    expected = torch.einsum("in,nm,im->i", G, H.dense(), G)
    for size in (1, 3, 100):
        monkeypatch.setattr(single_examples, "CHUNK_BYTES", size * 8 * objective.space.dim)
        counted, count = counting(H)
        found = example_quadratics(objective, counted, block=2)
        torch.testing.assert_close(found.values, expected)
        assert count.total == found.products == len(functions)


def test_bad_arguments_are_named():
    objective, _ = problem("mlp")
    with pytest.raises(TypeError, match="example_quadratics: A must be a LinearOperator, got Tensor"):
        example_quadratics(objective, torch.eye(3))
    with pytest.raises(ValueError, match=r"A must map R\^26 .* to itself, got .*; make it without restrict="):
        example_quadratics(objective, hessian(objective, restrict="*bias"))
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        example_quadratics(objective, hessian(objective), block=0)
    diagonal = torch.full((objective.space.dim,), torch.inf, dtype=torch.float64)
    with pytest.raises(NonFinite, match="example 0 gives a NaN or an infinity; check A"):
        example_quadratics(objective, from_diagonal(diagonal, domain=objective.space))
