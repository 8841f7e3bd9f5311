import pytest
import torch
from torch import nn

from example_cases import problem
from frechet.analyze._example_frobenius import example_frobenius
from frechet.objective import Objective
from frechet.objective.criteria import custom, squared_error


def dense(functions, x):
    return torch.stack([torch.autograd.functional.hessian(f, x) for f in functions])


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_estimates_tend_to_the_norms_of_dense_hessians(name):
    objective, functions = problem(name)
    exact = dense(functions, objective.point).square().sum((1, 2))
    found = example_frobenius(objective, seed=0, probes=150)
    errors = (found.squares.value - exact) / found.squares.standard_error
    assert float(errors.abs().max()) < 4.5
    assert abs(float(found.mean) - float(exact.mean())) < 4.5 * float(found.mean.standard_error)
    assert bool((found.squares.standard_error < 0.5 * exact).all())
    assert (found.examples, found.passes, found.squares.samples) == (len(functions), 1, 150)
    torch.testing.assert_close(found.mean.value, found.squares.value.mean())


class Quadratic(nn.Module):
    """f_i = x'A_i x / 2 with the given symmetric matrices, so that H_i = A_i."""

    def __init__(self, n):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, A):
        return (self.x @ A @ self.x).unsqueeze(-1) / 2


def quadratic(matrices):
    terms = custom(lambda y, _: y.squeeze(-1))
    return Objective(Quadratic(matrices.shape[-1]), terms, [(matrices, torch.zeros(len(matrices), 1))])


def matrices(n, rank):
    """200 random symmetric matrices with eigenvalues 1 or -1, `rank` of them not zero."""
    draw = torch.Generator().manual_seed(rank)
    Q = torch.linalg.qr(torch.randn(200, n, n, dtype=torch.float64, generator=draw))[0][:, :, :rank]
    signs = torch.randint(0, 2, (200, 1, rank), generator=draw) * 2.0 - 1.0
    return (Q * signs) @ Q.mT


# an interval that covers 0.95 passes a bound of 0.93 in 200 draws with probability 0.9; those here cover less: what is
# tested is what the module says, less four standard deviations of 2000 draws that share probes in groups of 200
@pytest.mark.parametrize(("rank", "least", "most"), [(1, 0.80, 0.94), (30, 0.90, 0.97)])
def test_intervals_cover_as_often_as_is_said(rank, least, most):
    A = matrices(30, rank)
    objective, exact, covered = quadratic(A), A.square().sum((1, 2)), []
    for seed in range(25):
        low, high = example_frobenius(objective, seed=seed, probes=32).interval()
        covered.append(((low <= exact) & (exact <= high)).double().mean())
    assert least <= float(torch.stack(covered).mean()) <= most


def test_standard_errors_are_the_spread_over_seeds():
    A = matrices(30, 30)[:20]
    objective = quadratic(A)
    found = [example_frobenius(objective, seed=s, probes=16) for s in range(100)]
    spread = torch.stack([f.squares.value for f in found]).var(0)
    stated = torch.stack([f.squares.standard_error.square() for f in found]).mean(0)
    assert 0.8 < float((spread / stated).mean()) < 1.25
    spread = torch.stack([f.mean.value for f in found]).var()
    stated = torch.stack([f.mean.standard_error.square() for f in found]).mean()
    assert 0.6 < float(spread / stated) < 1.6  # variances of 100 values


def test_the_seed_decides_and_no_curvature_has_no_error():
    objective, _ = problem("mlp")
    first, again = (example_frobenius(objective, seed=3, probes=4) for _ in range(2))
    assert torch.equal(first.squares.value, again.squares.value)
    assert not torch.equal(example_frobenius(objective, seed=4, probes=4).squares.value, first.squares.value)
    flat = Objective(nn.Linear(2, 1), custom(lambda y, t: (y - t).sum(1)), [(torch.ones(3, 2), torch.ones(3, 1))])
    found = example_frobenius(flat, seed=0, probes=2)
    assert bool((found.squares.value == 0).all())
    assert all(bool((end == 0).all()) for end in found.interval())


def test_one_parameter_is_exact():
    objective = Objective(nn.Linear(1, 1, bias=False), squared_error(), [(torch.full((2, 1), 3.0), torch.ones(2, 1))])
    found = example_frobenius(objective, seed=0, probes=2)
    torch.testing.assert_close(found.squares.value, torch.full((2,), 324.0, dtype=torch.float64))
    low, high = found.interval()
    assert bool((low < 324.0).all())
    assert bool((high > 324.0).all())


def test_bad_arguments_are_named():
    objective, _ = problem("mlp")
    with pytest.raises(ValueError, match="example_frobenius: probes must be at least 2, got 1"):
        example_frobenius(objective, seed=0, probes=1)
    with pytest.raises(TypeError, match="example_frobenius: objective must be an Objective, got Linear"):
        example_frobenius(nn.Linear(1, 1), seed=0)
