import pytest
import torch
from torch import nn

from example_cases import gradient, problem
from frechet.analyze import _single_examples as single_examples
from frechet.analyze._gram import gradient_gram, ntk_matrix
from frechet.errors import NotDifferentiable, UnusableObjective
from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators.derivatives._jacobian import jacobian

KINDS = [(name, route) for name in ("mlp", "conv", "tokens") for route in ("vmap", "loop")] + [("lstm", None)]


@pytest.mark.parametrize(("name", "route"), KINDS)
def test_both_matrices_are_their_definitions(name, route):
    objective, functions = problem(name)
    G = torch.stack([gradient(f, objective.point) for f in functions])
    found = gradient_gram(objective, route=route)
    torch.testing.assert_close(found.matrix, G @ G.T, rtol=1e-10, atol=1e-12)
    factored = {"mlp": 2, "conv": 1, "tokens": 0, "lstm": 0}[name] if route == "vmap" else 0
    whole = name == "mlp" and route == "vmap"  # all of its layers are linear
    assert (found.examples, found.rows, found.factored) == (len(functions), 0 if whole else len(functions), factored)
    assert found.passes == 1 + (not whole) + (factored > 0)
    J = jacobian(objective, route="reverse")
    found = ntk_matrix(objective, route=route)
    expected = (J @ J.T).dense()
    torch.testing.assert_close(found.matrix, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))
    assert (found.examples, found.rows, found.factored) == (len(functions), 0 if whole else J.shape[0], factored)
    assert found.passes == 1 + (not whole) + (factored > 0)
    assert found.route == (route or "loop")


@pytest.mark.parametrize("held", [1, 2, 4, 5, 7, 100])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_little_memory_costs_rows_and_changes_nothing(monkeypatch, held, chunk):
    for name in ("mlp", "conv"):
        objective, _ = problem(name)
        whole = gradient_gram(objective), ntk_matrix(objective)  # by factors where the layer is linear
        row = 8 * objective.space.dim
        monkeypatch.setattr(single_examples, "CHUNK_BYTES", chunk * row)
        for make, expected in zip((gradient_gram, ntk_matrix), whole, strict=True):
            found = make(objective, memory=held * row, route="loop")
            torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-12, atol=1e-12)
            m = len(found.matrix)
            passes = -(-m // held)
            assert found.passes == passes + 1
            assert found.rows == sum(m - p * held for p in range(passes))
        monkeypatch.undo()


def test_restriction_keeps_the_parameters_that_match():
    objective, _ = problem("conv")
    J = jacobian(objective, restrict="*bias")
    torch.testing.assert_close(ntk_matrix(objective, restrict="*bias").matrix, (J @ J.T).dense())


def test_outputs_without_an_axis_of_their_own():
    class Flat(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze(-1)

    X = torch.randn(4, 3)
    objective = Objective(Flat(3, 1), squared_error(), [(X, torch.zeros(4))])
    torch.testing.assert_close(ntk_matrix(objective).matrix, (X @ X.T + 1).double())
    torch.testing.assert_close(gradient_gram(objective).matrix.mean(), objective.gradient().square().sum().double())


def test_models_that_cannot_be_taken_apart_are_refused():
    class Centered(nn.Linear):
        def forward(self, x):
            return super().forward(x) - super().forward(x).mean(0)

    class Branching(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    data = [(torch.randn(4, 2), torch.randn(4, 1))]
    for make in (gradient_gram, ntk_matrix):
        with pytest.raises(UnusableObjective, match="the output of example 0 alone must be its output in the batch"):
            make(Objective(Centered(2, 1), squared_error(), data))
        branching = Objective(Branching(2, 1), squared_error(), [(torch.ones(1, 2), torch.ones(1, 1))])
        with pytest.raises(NotDifferentiable, match="route='vmap' cannot go through this model"):
            make(branching, route="vmap")
        assert make(branching).route == "loop"


def test_bad_arguments_are_named():
    objective, _ = problem("mlp")
    with pytest.raises(TypeError, match="ntk_matrix: objective must be an Objective, got Linear"):
        ntk_matrix(nn.Linear(1, 1))
    for make in (gradient_gram, ntk_matrix):
        with pytest.raises(ValueError, match="route must be 'vmap' or 'loop', got 'forward'"):
            make(objective, route="forward")
        with pytest.raises(ValueError, match="memory must be positive bytes, got 0"):
            make(objective, memory=0)
