import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from counting import counting
from frechet.errors import NonFinite
from frechet.linalg._density import spectral_density
from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Status
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix, identity
from frechet.space import euclidean

BULK = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SPECTRA = {
    "outliers": torch.cat([torch.linspace(5, 50, 10).double(), BULK[10:].abs()]),
    "indefinite": torch.cat([torch.tensor([20.0, 9.0, -8.0, -3.0]).double(), 0.5 * BULK[4:]]),
    "power law": 1 / torch.arange(1, 301, dtype=torch.float64),
    "low rank": torch.cat([torch.linspace(0.1, 3, 30).double(), torch.zeros(270).double()]),
}


def smoothed(values, grid, width):
    z = (grid[:, None] - values) / width
    return torch.exp(-0.5 * z**2).mean(1) / (width * math.sqrt(2 * math.pi))


def least_successes(trials, share=0.95):
    """A right interval covers at least this often with probability 0.999."""
    return int(stats.binom.ppf(0.001, trials, share))


@pytest.mark.parametrize("name", SPECTRA)
def test_band_covers_the_smoothed_density(name):
    A, shares = from_diagonal(SPECTRA[name]), []
    for seed in range(24):
        density = spectral_density(A, seed=seed, steps=30)
        grid = density.grid()[::10]
        value, low, high = density.on(grid)
        truth = smoothed(SPECTRA[name], grid, density.width())
        shares.append(float(((low <= truth) & (truth <= high)).double().mean()))
        assert bool(((low >= 0) & (low <= value) & (value <= high)).all())
    shares = np.array(shares)  # points of one run are correlated: the spread between runs says how much
    assert shares.mean() > 0.95 - 3.1 * shares.std(ddof=1) / math.sqrt(24)
    assert shares.mean() < 0.995


def test_band_is_right_at_a_single_eigenvalue_and_between_clusters():
    values = torch.cat([torch.tensor([10.0]), torch.rand(99, generator=torch.Generator().manual_seed(0))]).double()
    A, trials, inside = from_diagonal(values), 300, np.zeros(3)
    grid = torch.tensor([10.0, 10.4, 5.0], dtype=torch.float64)
    for seed in range(trials):
        _, low, high = spectral_density(A, seed=seed, probes=2, steps=12).on(grid, 0.3)
        truth = smoothed(values, grid, 0.3)
        inside += ((low <= truth) & (truth <= high)).numpy()
    assert (inside >= least_successes(trials)).all(), inside
    assert (inside[:2] <= stats.binom.ppf(0.999, trials, 0.95)).all(), inside


@pytest.mark.parametrize("name", SPECTRA)
def test_intervals_of_traces_cover(name):
    values = SPECTRA[name]
    A, trials = from_diagonal(values), 60
    functions = [lambda x: x, lambda x: x**2, lambda x: x.abs() / (x.abs() + 0.1), lambda x: torch.exp(-x)]
    inside = np.zeros(len(functions))
    for seed in range(trials):
        density = spectral_density(A, seed=seed, steps=12)
        for i, f in enumerate(functions):
            low, high = density.trace_of(f).interval()
            inside[i] += bool(low <= f(values).sum() <= high)
    assert (inside[:2] >= least_successes(trials)).all(), inside
    assert (inside[2:] >= least_successes(trials, 0.93)).all(), inside  # their quadrature error is estimated
    assert inside[0] < trials or name == "power law"


def test_trace_and_frobenius_norm_are_those_of_the_first_products():
    A = from_diagonal(SPECTRA["indefinite"])
    n, space = 300, A.domain
    Z = space.random(range(4), 7, "gaussian")
    V = Z / space.norm(Z)
    density = spectral_density(A, seed=7, probes=4, steps=2)
    assert math.isclose(float(density.trace_of(lambda x: x)), float(n * (V * (A @ V)).sum(0).mean()), rel_tol=1e-12)
    frobenius = float(n * (A @ V).square().sum(0).mean())
    assert math.isclose(float(density.trace_of(lambda x: x**2)), frobenius, rel_tol=1e-12)
    Q = eigsh(A, 3, seed=0, rtol=1e-10)
    deflated = spectral_density(A, seed=7, probes=4, steps=2, deflate=Q)
    P = Z - Q.vectors @ (Q.vectors.T @ Z)
    P = P / space.norm(P)
    expected = Q.values.sum() + 297 * (P * (A @ P)).sum(0).mean()
    assert math.isclose(float(deflated.trace_of(lambda x: x)), float(expected), rel_tol=1e-10)


def test_standard_error_is_the_spread_of_the_estimates():
    A = from_diagonal(SPECTRA["outliers"])
    for f in (lambda x: x, lambda x: torch.sqrt(x + 1)):
        estimates = [spectral_density(A, seed=s, probes=4, steps=12).trace_of(f) for s in range(150)]
        spread = np.std([float(e) for e in estimates], ddof=1)
        root_mean_square = math.sqrt(np.mean([float(e.standard_error) ** 2 for e in estimates]))
        assert abs(root_mean_square / spread - 1) < 0.2
        mean = np.mean([float(e) for e in estimates])
        assert abs(mean - float(f(SPECTRA["outliers"]).sum())) < 3.5 * spread / math.sqrt(150)


def test_deflation_is_unbiased_and_sharper():
    values = SPECTRA["outliers"]
    A = from_diagonal(values)
    known = eigsh(A, 10, seed=0, rtol=1e-8)
    f = torch.sqrt
    plain = spectral_density(A, seed=0, probes=2, steps=20).trace_of(f)
    estimates = [spectral_density(A, seed=s, probes=2, steps=20, deflate=known).trace_of(f) for s in range(100)]
    z = [(float(e) - float(f(values).sum())) / float(e.standard_error) for e in estimates]
    assert abs(np.mean(z)) < 3.5 / math.sqrt(100)
    assert 0.8 < np.std(z) < 1.3
    assert float(estimates[0].standard_error) < 0.7 * float(plain.standard_error)


def test_density_integrates_to_one_with_and_without_deflation():
    A = from_diagonal(SPECTRA["indefinite"])
    for deflate in (None, eigsh(A, 2, which="both", seed=0)):
        density = spectral_density(A, seed=0, deflate=deflate)
        grid = density.grid()
        value, _, _ = density.on(grid)
        assert math.isclose(float(torch.trapezoid(value, grid)), 1.0, abs_tol=2e-3)
        wide = torch.linspace(-30, 40, 7001, dtype=torch.float64)
        assert math.isclose(float(torch.trapezoid(density.on(wide, 0.3)[0], wide)), 1.0, abs_tol=1e-6)


def test_zero_variance_leaves_only_rounding():
    density = spectral_density(3.0 * identity(euclidean(50)), seed=0, probes=3)
    assert (density.products, density.lengths) == (3, (1, 1, 1))
    estimate = density.trace_of(torch.log)
    assert math.isclose(float(estimate), 50 * math.log(3), rel_tol=1e-6)
    assert 0 < float(estimate.standard_error) < 1e-4
    value, low, high = density.on()
    truth = smoothed(torch.full((50,), 3.0, dtype=torch.float64), density.grid(), density.width())
    assert bool(((low <= truth) & (truth <= high)).all())
    assert float((high - low).max() / value.max()) < 0.05


def test_one_dimension_zero_operator_and_full_deflation():
    one = spectral_density(from_diagonal(torch.tensor([4.0])), seed=0, probes=2)
    assert float(one.trace_of(torch.sqrt)) == pytest.approx(2.0)
    zero = spectral_density(from_diagonal(torch.zeros(9)), seed=0)
    assert float(zero.trace_of(lambda x: x)) == 0.0
    assert bool(torch.isfinite(zero.on()[0]).all())
    A = from_diagonal(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    known = spectral_density(A, seed=0, deflate=eigsh(A, 3, seed=0))
    estimate = known.trace_of(lambda x: x**2)
    assert (known.products, estimate.exact) == (0, True)
    assert float(estimate) == pytest.approx(30.0)
    grid = torch.linspace(0, 6, 50, dtype=torch.float64)
    _, low, high = known.on(grid, 0.2)
    truth = smoothed(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), grid, 0.2)
    assert bool(((low <= truth) & (truth <= high)).all())


def test_more_probes_extend_the_first_ones_and_products_are_counted():
    A, count = counting(from_diagonal(SPECTRA["power law"]))
    few = spectral_density(A, seed=3, probes=2, steps=9)
    assert few.products == count.total == 18
    many = spectral_density(A, seed=3, probes=5, steps=9)
    assert torch.equal(many.alpha[:2], few.alpha)
    assert not torch.equal(many.alpha[2:4], few.alpha)


def test_full_depth_finds_every_eigenvalue():
    values = torch.tensor([0.5, 1.0, 4.0, 9.0], dtype=torch.float64)
    density = spectral_density(from_diagonal(values), seed=0, probes=3, steps=40)
    assert torch.allclose(density.nodes, values.expand(3, 4))
    assert torch.allclose(density.weights.sum(1), torch.ones(3, dtype=torch.float64))


def test_quadrature_error_is_in_the_standard_error():
    A = from_diagonal(torch.logspace(-6, 0, 300, dtype=torch.float64))
    truth, cut = 300 * -3 * math.log(10), 0
    for seed in range(20):
        low, high = spectral_density(A, seed=seed, probes=32, steps=10).trace_of(torch.log).interval()
        cut += bool(low <= truth <= high)
    assert cut >= 18  # without the quadrature term: none


@pytest.mark.parametrize("stop_at", [3, 5, 12, 14])
def test_resumed_run_equals_an_uninterrupted_one(stop_at):
    A, seen = from_diagonal(SPECTRA["outliers"]), []
    whole = spectral_density(A, seed=0, probes=4, steps=5)

    def stop(state):
        seen.append(pickle.dumps(state))
        return len(seen) == stop_at

    part = spectral_density(A, seed=0, probes=4, steps=5, observe=stop)
    assert part.status is Status.STOPPED
    assert part.products == stop_at
    assert part.lengths == {3: (3,), 5: (5,), 12: (5, 5), 14: (5, 5)}[stop_at]
    assert bool(torch.isfinite(part.trace_of(lambda x: x).value))
    state = pickle.loads(seen[-1])
    rest = spectral_density(A, seed=0, probes=4, steps=5, resume=state)
    assert torch.equal(rest.alpha, whole.alpha)
    assert torch.equal(rest.beta, whole.beta)
    assert (rest.products, rest.lengths) == (whole.products, whole.lengths)
    with pytest.raises(ValueError, match="spectral_density: resume must come from the same call"):
        spectral_density(A, seed=1, probes=4, steps=5, resume=state)


def test_rounding_below_zero_is_clamped_for_semidefinite_operators():
    A = from_diagonal(torch.cat([torch.rand(40, generator=torch.Generator().manual_seed(0)), torch.zeros(160)]))
    density = spectral_density(A, seed=0, steps=60)
    assert float(density.nodes.min()) >= 0.0
    assert math.isfinite(float(density.trace_of(torch.sqrt)))


def test_bad_arguments_are_named():
    A = from_diagonal(SPECTRA["indefinite"])
    density = spectral_density(A, seed=0, probes=1, steps=3)
    cases = [
        (lambda: spectral_density(from_matrix(torch.ones(2, 2)), seed=0), r"spectral_density: A must be symmetric"),
        (lambda: spectral_density(A, seed=0, probes=0), "spectral_density: probes must be a positive int, got 0"),
        (lambda: spectral_density(A, seed=0, steps=1.5), "spectral_density: steps must be a positive int, got 1.5"),
        (lambda: density.on(width=-1.0), "Density: width must be positive, got -1.0"),
        (lambda: density.on(level=1.0), "Density.on: level must lie between 0 and 1, got 1.0"),
        (lambda: density.trace_of(torch.log), "trace_of: f must be finite on the spectrum, got nan at -"),
        (lambda: density.trace_of(torch.sum), r"trace_of: f must map \(0,\) to the same shape, got \(\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    nan = from_callable(lambda V: V * math.nan, euclidean(5), facts="symmetric")
    with pytest.raises(NonFinite, match=r"spectral_density: product 1 \(A @ v\) holds a NaN"):
        spectral_density(nan, seed=0)


def test_eigenpairs_of_the_same_seed_do_not_know_the_probes():
    # ten Ritz vectors after ten products span the whole Krylov space, and so the vector that began it
    A = from_diagonal(torch.linspace(-1, 3, 300, dtype=torch.float64))
    few = eigsh(A, 5, which="both", seed=0, max_products=10)
    assert few.vectors.shape[1] == few.products == 10
    density = spectral_density(A, seed=0, probes=4, steps=5, deflate=few)
    assert density.lengths == (5, 5, 5, 5)
    z = A.domain.random(0, 0, "gaussian")
    shared = (few.vectors.T @ z).square().sum() / (z @ z)
    assert float(shared) < 0.15  # 10 of 300 dimensions by chance; all of it before
