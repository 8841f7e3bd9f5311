import math

import pytest
import torch

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.optimize._nonsmooth.prox_linear import prox_linear
from frechet.optimize._nonsmooth.stochastic_prox_linear import stochastic_prox_linear
from spectra import F64, gaussian


def phases(n, m, outliers):
    g = torch.Generator().manual_seed(0)
    x, A = gaussian(n), gaussian(m, n, seed=1)
    b, bad = (A @ x) ** 2, torch.rand(m, generator=g) < outliers
    b[bad] = 20 * b.mean() * torch.rand(int(bad.sum()), generator=g, dtype=F64)
    return (lambda v, i: (A[i] @ v) ** 2 - b[i]), x, x + 0.3 * gaussian(n, seed=2)


def test_the_distance_to_a_sharp_minimum_shrinks_with_t():
    c, x, start = phases(8, 60, 0.1)
    errors = []
    s = stochastic_prox_linear(
        "l1",
        c,
        start,
        rows=60,
        batch_size=12,
        seed=0,
        epochs=12,
        observe=lambda state: bool(errors.append(float((state.x - x).square().sum().sqrt()))),
    )
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-2 * errors[0]
    assert s.iterations == 12 * 5
    assert len(s.history) == 13
    full = prox_linear("l1", lambda v: c(v, torch.arange(60)) / 60, s.x).checked()
    assert s.value >= full.value
    assert s.value == pytest.approx(full.value, rel=1e-3)


def test_all_rows_in_one_batch_is_the_full_method():
    c, x, start = phases(5, 60, 0.1)
    s = stochastic_prox_linear("l1", c, start, rows=60, batch_size=60, seed=0, epochs=8, decay=1.0)
    assert float((s.x - x).square().sum().sqrt()) < 1e-10
    assert s.converged
    assert "8 epochs are over, prox-gradient mapping" in s.message


def test_seed_decides_all():
    c, _, start = phases(5, 60, 0.1)
    first, again, other = (
        stochastic_prox_linear("l1", c, start, rows=60, batch_size=12, seed=i, epochs=1).x for i in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_unfinished_run_is_not_converged_and_observe_stops():
    c, _, start = phases(5, 60, 0.1)
    s = stochastic_prox_linear("huber", c, start, rows=60, batch_size=7, seed=0, epochs=1)
    assert s.status is Status.MAX_ITERATIONS
    assert s.iterations == 9
    s = stochastic_prox_linear("l1", c, start, rows=60, batch_size=30, seed=0, observe=lambda _: True)
    assert s.status is Status.STOPPED
    assert s.iterations == 2


def test_a_step_out_of_the_domain_is_told():
    def c(x, i):
        return torch.log(x) + 20 + 0 * i

    s = stochastic_prox_linear("l1", c, torch.ones(1, dtype=F64), rows=4, batch_size=2, seed=0, t0=50.0, epochs=3)
    assert s.status is Status.NONFINITE
    assert "c is not finite in epoch 1; a smaller t0 may help" in s.message
    assert math.isnan(s.stationarity)


def test_messages():
    one = torch.ones(1, dtype=F64)

    def run(h="l1", c=lambda x, i: x * i, rows=4, batch_size=2, **more):
        return stochastic_prox_linear(h, c, one, rows=rows, batch_size=batch_size, seed=0, **more)

    with pytest.raises(ValueError, match="stochastic_prox_linear: h must be a sum over rows, got 'max'"):
        run("max")
    with pytest.raises(ValueError, match="stochastic_prox_linear: rows must be >= 1, got 0"):
        run(rows=0)
    with pytest.raises(ValueError, match="stochastic_prox_linear: batch_size must be >= 1, got 0"):
        run(batch_size=0)
    with pytest.raises(ValueError, match="stochastic_prox_linear: epochs must be >= 0, got -1"):
        run(epochs=-1)
    with pytest.raises(ValueError, match=r"stochastic_prox_linear: decay must lie in \(0, 1\], got 2"):
        run(decay=2)
    with pytest.raises(ValueError, match="stochastic_prox_linear: c must return one number per row, got 1 for 4 rows"):
        run(c=lambda x, i: x)
    with pytest.raises(NonFinite, match=r"stochastic_prox_linear: c and h\(c\) must be finite at x0"):
        run(c=lambda x, i: (x - 2).sqrt() * i)
