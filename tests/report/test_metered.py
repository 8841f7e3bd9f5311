import pytest
import torch
from torch import nn

from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators import from_callable
from frechet.recording import ran_out
from frechet.report._measure import WEIGHTS, measure
from frechet.report._metered import Meter, metered
from frechet.report._run import Run
from frechet.report._settings import Settings
from frechet.space import euclidean

CPU = torch.device("cpu")
REFUSED = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


def small(most):
    """The double of a vector, for at most so many at once."""

    def product(V):
        if V.shape[1] > most:
            raise RuntimeError(REFUSED)
        return 2 * V

    return from_callable(product, euclidean(6), facts="symmetric")


def test_products_and_passes_are_counted():
    meter = Meter()
    A = metered(small(10), meter)
    V = torch.randn(6, 3)
    assert torch.equal(A @ V, 2 * V)
    assert torch.equal(A.T @ V[:, 0], 2 * V[:, 0])
    assert (meter.products, meter.passes, meter.at_once) == (4, 2, None)


def test_a_block_that_does_not_fit_is_halved_and_so_are_those_after_it():
    meter = Meter()
    A = metered(small(3), meter)
    V = torch.randn(6, 10)
    assert torch.equal(A @ V, 2 * V)
    assert meter.at_once == 2
    assert (meter.products, meter.passes) == (10, 5)
    assert torch.equal(A @ V, 2 * V)
    assert meter.passes == 10


def test_one_vector_that_does_not_fit_is_an_error_and_so_is_any_other():
    with pytest.raises(RuntimeError, match="can't allocate"):
        metered(small(0), Meter()) @ torch.randn(6, 4)
    with pytest.raises(RuntimeError, match="can't allocate"):
        metered(small(1), Meter(), alone=False) @ torch.randn(6, 4)

    def wrong(V):
        raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason"):
        metered(from_callable(wrong, euclidean(6), facts="symmetric"), Meter()) @ torch.randn(6, 4)


def test_the_rate_is_that_of_the_last_passes_without_the_first():
    meter = Meter()
    meter.note("H", 1, 60.0)  # what is loaded and compiled once is not what a product costs
    assert meter.rate("H") is None
    meter.note("H", 1, 2.0)
    assert meter.rate("H") == 2.0
    meter.note("H", 8, 7.0)
    assert meter.rate("H") == 1.0
    for _ in range(20):
        meter.note("H", 1, 5.0)
    assert meter.rate("H") == 5.0
    meter.forget("H")
    assert meter.rate("H") is None


def test_blocks_that_are_slower_than_single_vectors_are_given_up():
    meter = Meter()
    A = metered(small(10), meter, name="A")
    for k, seconds in ((1, 9.0), (1, 1.0), (1, 1.0), (8, 16.0)):
        meter.note("A", k, seconds)
    A @ torch.randn(6, 5)
    assert (meter.products, meter.passes) == (5, 5)


def test_what_running_out_looks_like():
    assert ran_out(RuntimeError(REFUSED))
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert ran_out(raised.value)


class Hungry(nn.Module):
    """A model with memory for the derivatives of so many examples."""

    def __init__(self, most):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.most = most

    def forward(self, x):
        if torch.is_grad_enabled() and len(x) > self.most:
            raise RuntimeError(REFUSED)
        return self.inner(x)


def measured(model):
    torch.manual_seed(0)
    data = [(torch.randn(n, 3, dtype=torch.float64), torch.randn(n, 1, dtype=torch.float64)) for n in (16, 10)]
    run = Run(CPU, WEIGHTS)
    measure(Objective(model.double(), squared_error(), data), Settings(probes=4, steps=8), run)
    return run


def test_a_report_whose_batches_do_not_fit_goes_on_with_pieces_and_says_so():
    torch.manual_seed(1)
    model = Hungry(100)
    whole = measured(model)
    model.most = 5
    cut = measured(model)
    said = [f"{entry.what}: {entry.why}" for entry in cut.left_out]
    assert said[0].startswith("whole batches: memory ran out with 16 examples at once; they were taken 8 at a time")
    assert said[1].startswith("whole batches: memory ran out with 8 examples at once; they were taken 4 at a time")
    assert "whole batches" not in [entry.what for entry in whole.left_out]
    a, b = (r.results["Hessian eigenvalues"].values for r in (whole, cut))
    assert torch.allclose(a, b, rtol=1e-9)


def test_a_report_for_which_one_example_is_too_much_ends():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        measured(Hungry(0))
