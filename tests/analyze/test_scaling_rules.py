"""The rules against the processes that they speak of: noisy quadratics, averages, steady states."""

import math

import pytest
import torch

from frechet.analyze import (
    Hyperparameters,
    adamw_timescale,
    scale_for_batch,
    scale_for_width,
    weight_decay_for,
    width_exponent,
)


def adam_on_a_noisy_quadratic(hp, noise, steps, seeds=2, n=200):
    """The late mean loss of Adam on |w|^2 / 2 per coordinate with gradient noise."""
    (b1, b2), late = hp.betas, []
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        w, m, v = torch.ones(n), torch.zeros(n), torch.full((n,), noise**2)
        for t in range(steps):
            g = w + noise * torch.randn(n, generator=draw)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            w = w - hp.rate * m / (v.sqrt() + hp.eps)
            if t >= 0.75 * steps:
                late.append(float(w.square().mean() / 2))
    return sum(late) / len(late)


def test_the_square_root_rule_keeps_adams_stationary_loss_and_the_linear_rule_does_not():
    hp = Hyperparameters(2e-3, (0.95, 0.999), 1e-8)
    base = adam_on_a_noisy_quadratic(hp, 3.0, 12000)
    rooted = adam_on_a_noisy_quadratic(scale_for_batch(hp, 4, optimizer="adam"), 1.5, 3000)
    linear = adam_on_a_noisy_quadratic(Hyperparameters(8e-3, (0.8, 0.996), 1e-8), 1.5, 3000)
    assert rooted / base == pytest.approx(1.0, abs=0.12)
    assert linear / base > 1.6


def test_the_linear_rule_keeps_the_path_of_sgd_per_example():
    """The mean and the stationary variance of SGD on a noisy quadratic, in closed form."""
    hp = Hyperparameters(1e-3, steps=4000)
    new = scale_for_batch(hp, 8, optimizer="sgd")
    assert (1 - new.rate) ** new.steps == pytest.approx((1 - hp.rate) ** hp.steps, rel=0.02)

    def stationary(rate, variance):
        return rate * variance / (2 - rate)

    assert stationary(new.rate, 1 / 8) == pytest.approx(stationary(hp.rate, 1.0), rel=0.01)


def test_an_average_forgets_at_the_same_rate_per_example():
    rho, k = 0.999, 8
    new = scale_for_batch(Hyperparameters(0.1, average=rho), k, optimizer="sgd").average
    assert k * math.log(0.5) / math.log(new) == pytest.approx(math.log(0.5) / math.log(rho), rel=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("factor", [0.25, 1, 4])
def test_there_and_back_is_where_it_began_and_the_timescale_in_examples_stays(optimizer, factor):
    hp = Hyperparameters(1e-3, (0.9, 0.999), 1e-8, weight_decay=0.1, average=0.99, steps=1000)
    new = scale_for_batch(hp, factor, optimizer=optimizer)
    back = scale_for_batch(new, 1 / factor, optimizer=optimizer)
    for name in ("rate", "betas", "eps", "weight_decay", "average"):
        assert getattr(back, name) == pytest.approx(getattr(hp, name), rel=1e-12), name
    old, fresh = (adamw_timescale(h.rate, h.weight_decay, batch=b, data=1e6) for h, b in ((hp, 32), (new, 32 * factor)))
    assert old == pytest.approx(fresh, rel=1e-12)


def test_decay_at_a_fixed_timescale_is_linear_in_the_batch():
    small, large = (weight_decay_for(0.1, 1e-3, batch=b, data=1e6) for b in (32, 128))
    assert large == pytest.approx(4 * small)
    assert adamw_timescale(1e-3, small, batch=32, data=1e6) == pytest.approx(0.1)
    assert adamw_timescale(1e-3, weight_decay_for(500.0, 1e-3)) == pytest.approx(500.0)


@pytest.mark.parametrize(
    ("role", "adam", "sgd", "deviation"),
    [("input", 1, 4, 1), ("hidden", 1 / 4, 1, 1 / 2), ("output", 1 / 4, 1 / 4, 1 / 4), ("vector", 1, 4, 1)],
)
def test_widths(role, adam, sgd, deviation):
    hp = Hyperparameters(0.01, deviation=0.1, weight_decay=0.2)
    found = scale_for_width(hp, 4, role=role, optimizer="adam")
    assert found.rate == pytest.approx(0.01 * adam)
    assert found.deviation == pytest.approx(0.1 * deviation)
    assert found.weight_decay == 0.2
    assert scale_for_width(hp, 4, role=role, optimizer="sgd").rate == pytest.approx(0.01 * sgd)


def test_a_step_of_the_scaled_rate_moves_features_alike_at_every_width():
    """One sign step on a hidden matrix changes its rank-one update's spectral norm by rate times width: constant."""
    hp, tops = Hyperparameters(0.01), []
    for width in (64, 256):
        rate = scale_for_width(hp, width / 64, role="hidden", optimizer="adam").rate
        u, v = torch.randn(width, 1, dtype=torch.float64), torch.randn(1, width, dtype=torch.float64)
        tops.append(float(torch.linalg.matrix_norm(rate * (u @ v).sign(), 2)))
    assert tops[0] == pytest.approx(tops[1], rel=1e-12)


def test_the_width_exponent_of_noise_is_a_half():
    """AdamW fed with noise makes random matrices, whose top singular value grows as the root of the width."""
    tops, widths, rate, decay = [], (32, 96), 1e-2, 1.0
    for d in widths:
        draw = torch.Generator().manual_seed(0)
        W, m, v, late = torch.zeros(d, d), torch.zeros(d, d), torch.ones(d, d), []
        for t in range(500):
            g = torch.randn(d, d, generator=draw)
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            W = (1 - rate * decay) * W - rate * m / (v.sqrt() + 1e-8)
            if t >= 350 and t % 50 == 0:
                late.append(float(torch.linalg.matrix_norm(W, 2)))
        tops.append(sum(late) / len(late))
    a = width_exponent(widths, (tops[0], tops[1]), ratios=(rate / decay, rate / decay))
    assert a == pytest.approx(0.5, abs=0.08)
    hp = Hyperparameters(1e-3, weight_decay=0.1)
    kept = scale_for_width(hp, 4, role="hidden", optimizer="adam", exponent=0.5)
    assert kept.weight_decay == pytest.approx(0.1)
    assert scale_for_width(hp, 4, role="hidden", optimizer="adam", exponent=0.75).weight_decay == pytest.approx(0.2)
    assert scale_for_width(hp, 4, role="vector", optimizer="adam", exponent=0.75).weight_decay == 0.0


def test_bad_arguments():
    hp = Hyperparameters(1e-3, (0.9, 0.999))
    with pytest.raises(ValueError, match="factor must be at most 10, at which a beta reaches 0, got 16"):
        scale_for_batch(hp, 16, optimizer="adam")
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="factor must be positive and finite"):
            scale_for_batch(hp, factor, optimizer="sgd")
        with pytest.raises(ValueError, match="factor must be positive and finite"):
            scale_for_width(hp, factor, role="hidden", optimizer="sgd")
    with pytest.raises(ValueError, match="optimizer must be 'sgd' or 'adam', got 'lion'"):
        scale_for_batch(hp, 2, optimizer="lion")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="role one of input, hidden, output, vector"):
        scale_for_width(hp, 2, role="head", optimizer="sgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch and data must come together"):
        adamw_timescale(1e-3, 0.1, batch=32)
    with pytest.raises(ValueError, match="must be positive and finite"):
        adamw_timescale(1e-3, 0.0)
    with pytest.raises(ValueError, match="widths must differ"):
        width_exponent((64, 64), (1.0, 2.0), ratios=(1.0, 1.0))
