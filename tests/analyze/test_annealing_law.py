"""The annealing law: recovered from curves, errors that cover, and a schedule that it has not seen."""

import pytest
import torch

from frechet.analyze import fit_annealing_law

TRUE = (2.5, 6.0, 0.45, 0.4)
T = 4000


def area(rates, lam):
    """S2 by its double sum: each fall counts with the weights of all steps after it."""
    falls = torch.cat([rates[:1], rates[:-1]]) - rates
    weights = torch.cumsum(lam ** torch.arange(len(rates), dtype=torch.float64), 0)
    return torch.stack([(falls[: s + 1] * weights[: s + 1].flip(0)).sum() for s in range(len(rates))])


def curve(rates, lam=0.99, parameters=TRUE):
    L0, A, alpha, C = parameters
    return L0 + A * rates.cumsum(0) ** -alpha - C * area(rates, lam)


def schedules():
    t = torch.arange(T, dtype=torch.float64) / T
    constant, cosine = torch.full((T,), 0.01, dtype=torch.float64), 0.001 + 0.0045 * (1 + torch.cos(torch.pi * t))
    stable = torch.where(t < 0.8, 0.01, 0.01 - 0.009 * (t - 0.8) / 0.2)
    return constant, cosine, stable


@pytest.fixture(scope="module")
def curves():
    return [(rates, curve(rates)) for rates in schedules()]


def chosen(rates, losses, noise=0.0, seed=0):
    steps = torch.arange(200, T + 1, 100)
    draw = torch.Generator().manual_seed(seed)
    return (
        rates,
        steps,
        losses[steps - 1] * (noise * torch.randn(len(steps), generator=draw, dtype=torch.float64)).exp(),
    )


def test_the_law_is_recovered_and_predicts_a_schedule_that_it_has_not_seen(curves):
    law = fit_annealing_law([chosen(*c) for c in curves[:2]])
    assert law.lam == 0.99
    assert (law.L0, law.A, law.alpha, law.C) == pytest.approx(TRUE, rel=1e-4)
    assert torch.allclose(law.predict(curves[2][0])[100:], curves[2][1][100:], rtol=1e-5)


def test_the_covariance_covers(curves):
    inside = torch.zeros(4)
    runs = 60
    for seed in range(runs):
        law = fit_annealing_law(
            [chosen(*c, noise=3e-4, seed=10 * seed + i) for i, c in enumerate(curves[:2])], lambdas=(0.99,)
        )
        found = torch.tensor([law.L0, law.A, law.alpha, law.C])
        inside += ((found - torch.tensor(TRUE)).abs() <= 1.993 * torch.tensor(law.standard_errors)).float()
    assert float(inside.min()) >= 51  # of 60; a right interval has 51 or more with probability 0.999


def test_without_annealing_nothing_is_determined(curves):
    with pytest.raises(ValueError, match="at least one schedule must anneal"):
        fit_annealing_law([chosen(*curves[0])])


@pytest.mark.parametrize(
    ("rates", "steps", "losses"),
    [(torch.ones(5), torch.tensor([1, 6]), torch.ones(2)), (torch.ones(5), torch.tensor([0]), torch.ones(1)),
     (torch.ones(5), torch.tensor([1]), torch.zeros(1)), (torch.ones(5), torch.tensor([1, 2]), torch.ones(1))],
)  # fmt: skip
def test_bad_curves(rates, steps, losses):
    with pytest.raises(ValueError, match="a curve must be rates"):
        fit_annealing_law([(rates, steps, losses)])
    with pytest.raises(ValueError, match="must hold at least one run"):
        fit_annealing_law([])
