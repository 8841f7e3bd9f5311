import math
import pickle

import pytest
import torch

from counting import counting
from frechet.linalg._hutchinson import Deflated, hutch_plus_plus, xtrace_then_probes
from frechet.linalg._sequential import run
from frechet.linalg._trace import trace
from frechet.linalg._xtrace import Sketch
from frechet.operators import from_callable
from frechet.space import euclidean


def symmetric(n, seed=0):
    M = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (M + M.T) / 2 + 3 * torch.eye(n, dtype=torch.float64)


def opaque(M):
    return from_callable(lambda V: (V.T @ M).T, euclidean(len(M), M.dtype), facts="symmetric")


def test_the_sketch_of_hutch_plus_plus_can_be_empty():
    sampler = hutch_plus_plus(opaque(symmetric(40)), 0, 0)
    carry = sampler.extend(None, range(5))
    assert (carry.products, carry.Q.shape[1]) == (5, 0)


def test_xtrace_goes_on_with_probes_behind_its_sketch():
    M = symmetric(300)
    A, count = counting(opaque(M))
    sampler = xtrace_then_probes(A, 0, 10)
    first = sampler.extend(None, range(8))
    assert isinstance(first, Sketch)
    second = sampler.extend(first, range(8, 25))  # across the end of the sketch
    assert isinstance(second, Deflated)
    assert second.products == count.total == 2 * 10 + 15
    assert second.Q.shape[1] == 10
    assert math.isclose(second.captured, float((second.Q.T @ M @ second.Q).trace()), rel_tol=1e-12)
    # probes are those that any other division into blocks would have drawn
    again = sampler.extend(sampler.extend(sampler.extend(None, range(10)), range(10, 13)), range(13, 25))
    assert torch.allclose(again.samples.x, second.samples.x, rtol=1e-12)
    reading = sampler.read(second)
    error = abs(float(reading.value) - float(M.trace()))
    assert error < 4 * float(reading.standard_error)
    assert float(reading.standard_error) < 1.5 * math.sqrt(2 * float(M.square().sum()) / 15)


def test_a_tolerance_that_xtrace_misses_is_reached_by_the_probes():
    M = symmetric(1500)
    A, count = counting(opaque(M))
    states = []
    found = trace(A, seed=1, products=1400, rtol=0.05, block=64, observe=lambda s: states.append(s))
    assert found.method == "xtrace, then probes"
    assert found.products == count.total > 200
    assert found.converged
    assert abs(float(found) / float(M.trace()) - 1) < 0.05
    for state in (states[0], states[2], states[-1]):
        again = trace(opaque(M), seed=1, products=1400, rtol=0.05, block=64, resume=pickle.loads(pickle.dumps(state)))
        assert torch.equal(again.value, found.value)
        assert again.products == found.products


def test_a_loose_tolerance_stops_within_xtrace():
    lam = torch.cat([torch.linspace(10, 1, 20), torch.full((1480,), 1e-3)]).double()
    A, count = counting(opaque(torch.diag(lam)))
    found = trace(A, seed=0, rtol=0.05)
    assert found.products == count.total <= 64
    assert abs(float(found) / float(lam.sum()) - 1) < 0.05


@pytest.mark.parametrize("rank", [0, 3])
def test_a_sketch_that_holds_the_range_gives_the_trace(rank):
    U = torch.linalg.qr(torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    M = U[:, :rank] @ U[:, :rank].T
    sampler = xtrace_then_probes(opaque(M), 0, 10)
    found = run(
        "trace", sampler, euclidean(400, M.dtype), seed=0, products=40, rtol=None, block=16, observe=None, resume=None
    )
    assert abs(float(found) - rank) < 1e-10
