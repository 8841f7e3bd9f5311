"""The low-rank posterior beside the dense one, its error, and its draws."""

import pytest
import torch

from frechet.calculus.functionals import sobolev
from frechet.operators import Metric, from_callable, from_diagonal, product_metric
from frechet.physics import Control, low_rank_posterior, march
from spectra import gaussian

F64 = torch.float64
N, H = 40, 1 / 40
PRIOR = sobolev(N, H, order=2.0, boundary="neumann", length=0.3)
AT = torch.tensor([3, 10, 11, 25, 36])


def heated(u):
    """The temperature at a few places after a while, of the temperature u at the start."""

    def step(y):
        full = torch.cat([y[:1], y, y[-1:]])
        return y + 0.4 * (full[2:] - 2 * y + full[:-2]) * (1 + 0.05 * y**2)

    return march(step, u, steps=12, output=lambda y: y[AT]).final[AT]


TRUTH = torch.cos(3 * torch.linspace(0, 1, N, dtype=F64))
DATA = heated(TRUTH) + 0.01 * gaussian(5)


def misfit(u):
    return (heated(u) - DATA) / 0.01


def dense(u):
    J = torch.func.jacrev(misfit)(u)
    return torch.linalg.inv(J.T @ J + PRIOR.mass.dense())


@pytest.mark.parametrize("rank", [5, 12, N])
def test_it_is_the_dense_posterior_where_all_directions_that_data_inform_are_kept(rank):
    p, C = low_rank_posterior(misfit, TRUTH, PRIOR, rank=rank, seed=0, rtol=1e-9), dense(TRUTH)
    torch.testing.assert_close(p.covariance.dense(), C, rtol=1e-6, atol=1e-8)
    value, error = p.variance()
    torch.testing.assert_close(value, C.diagonal(), rtol=1e-6, atol=1e-8)
    assert float(error.max()) <= 1e-8
    J, R = torch.func.jacrev(misfit)(TRUTH), PRIOR.factor.dense()
    right = torch.linalg.eigvalsh(R.T @ J.T @ J @ R).flip(0)[:rank]
    torch.testing.assert_close(p.values, right.clamp(min=0), rtol=1e-6, atol=1e-6)
    M = PRIOR.mass.dense()
    torch.testing.assert_close(p.vectors.T @ M @ p.vectors, torch.eye(rank, dtype=F64), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_the_error_of_variances_covers_what_was_left_out(rank):
    p, right = low_rank_posterior(misfit, TRUTH, PRIOR, rank=rank, seed=1, rtol=1e-9), dense(TRUTH).diagonal()
    value, error = p.variance()
    slack = 1e-9 * float(value.max())
    assert bool((right <= value + slack).all())
    assert bool((right >= value - error - slack).all())
    assert float(error.max()) > 1e-6


def test_draws_have_the_mean_and_the_covariance():
    p, C = low_rank_posterior(misfit, TRUTH, PRIOR, rank=5, seed=0, rtol=1e-9), dense(TRUTH)
    X = p.samples(4000, seed=3)
    d = X - TRUTH[:, None]
    sampled = d @ d.T / 4000
    scale = (C.diagonal()[:, None] * C.diagonal() + C**2).sqrt() / 4000**0.5
    assert float(((sampled - C) / scale).abs().max()) <= 5
    assert float((d.mean(1) / (C.diagonal() / 4000).sqrt()).abs().max()) <= 5
    torch.testing.assert_close(p.samples(7, seed=3), X[:, :7], rtol=1e-10, atol=1e-12)


def test_a_control_with_a_prior_has_the_most_probable_point_and_its_posterior():
    control = Control(
        lambda u: heated(u), lambda y, u: (y - DATA) / 0.01, prior=PRIOR, mean=torch.full((N,), 0.2, dtype=F64)
    )
    s = control.minimize(torch.zeros(N, dtype=F64), gtol=1e-6)
    assert s.converged
    right = misfit(s.x) @ misfit(s.x) / 2 + (s.x - 0.2) @ PRIOR.mass.dense() @ (s.x - 0.2) / 2
    assert s.value == pytest.approx(float(right), rel=1e-9)
    p = control.posterior(s.x, rank=5, seed=0)
    torch.testing.assert_close(p.variance()[0], dense(s.x).diagonal(), rtol=1e-4, atol=1e-8)
    assert "left out at most" in repr(p)


def test_blocks_of_controls_have_one_posterior():
    prior = product_metric({"u": PRIOR, "c": Metric(from_diagonal(torch.full((1,), 25.0, dtype=F64)))})
    x = {"u": TRUTH, "c": torch.zeros(1, dtype=F64)}
    p = low_rank_posterior(lambda x: misfit(x["u"]) + x["c"], x, prior, rank=5, seed=0)
    value, _ = p.variance()
    assert value.shape == (N + 1,)
    assert float(value[-1]) < 1 / 25


def test_wrong_arguments_are_told():
    eye = from_callable(lambda V: V, N, facts="positive_definite", dtype=F64)
    with pytest.raises(ValueError, match="prior must be a Metric with a factor"):
        low_rank_posterior(misfit, TRUTH, Metric(eye, eye), rank=2, seed=0)
    with pytest.raises(ValueError, match="x must have the 40 entries of the prior, got 39"):
        low_rank_posterior(misfit, TRUTH[:-1], PRIOR, rank=2, seed=0)
    with pytest.raises(ValueError, match="rank must lie between 1 and 40"):
        low_rank_posterior(misfit, TRUTH, PRIOR, rank=0, seed=0)
    with pytest.raises(ValueError, match="prior must be given for a posterior"):
        Control(heated, lambda y, u: y).posterior(TRUTH, rank=2, seed=0)
    with pytest.raises(ValueError, match="cost must return residuals here, got a scalar"):
        Control(heated, lambda y, u: y.sum(), prior=PRIOR).posterior(TRUTH, rank=2, seed=0)


def test_intervals_of_variances_and_of_draws_cover_what_was_drawn_from_the_prior():
    n, noise = 12, 0.1
    prior, A = sobolev(n, 1 / n, order=2.0, boundary="neumann", length=0.3), gaussian(4, n)
    generator = torch.Generator().manual_seed(0)
    hits, draws_hit, count = 0, 0, 60
    posterior = low_rank_posterior(lambda x: A @ x / noise, torch.zeros(n, dtype=F64), prior, rank=4, seed=0)
    deviations, draws = posterior.variance()[0].sqrt(), posterior.samples(400, seed=1)  # the same for all data
    for _ in range(count):
        truth = prior.factor @ torch.randn(n, dtype=F64, generator=generator)
        data = A @ truth + noise * torch.randn(4, dtype=F64, generator=generator)
        mean = posterior.covariance @ (A.T @ data / noise**2)
        hits += int(((mean - truth).abs() < 1.96 * deviations).sum())
        below = (mean[:, None] + draws < truth[:, None]).double().mean(1)
        draws_hit += int(((below > 0.025) & (below < 0.975)).sum())
    # entries of one draw are correlated: at worst 60 independent ones, of whose mean 0.03 is the standard deviation
    assert min(hits, draws_hit) / (count * n) >= 0.95 - 0.09
    assert hits < count * n
