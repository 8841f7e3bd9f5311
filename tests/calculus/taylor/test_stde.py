import math

import pytest
import torch
from torch import nn

from frechet.calculus.taylor import bilaplacian, differential_operator, laplacian, stde

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def network(d, width=16):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    ).double()


def close(a, b, rtol=1e-10):
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


EXACT = {
    "u_ii": laplacian,
    "u_iijj": bilaplacian,
    "u_iii": lambda f: differential_operator(f, "u_xxx + u_yyy + u_zzz", variables="xyz"),
    "u_ij": lambda f: differential_operator(f, "u_xx + u_yy + u_zz + 2u_xy + 2u_xz + 2u_yz", variables="xyz"),
    "u_iij": lambda f: differential_operator(
        f, "u_xxx + u_yyy + u_zzz + u_xxy + u_xxz + u_yyx + u_yyz + u_zzx + u_zzy", variables="xyz"
    ),
}


@pytest.mark.parametrize("way", [None, "lines", "tangents"])
@pytest.mark.parametrize("operator", EXACT)
def test_all_terms_give_the_sum(operator, way):
    net, x = network(3), randn(2, 3)
    found = stde(net, x, operator, probes=100, seed=0, way=way)
    assert found.exact
    assert not found.standard_error.any()
    close(found.value, EXACT[operator](net)(x), 1e-9)


@pytest.mark.parametrize(("operator", "law"), [("u_ii", "sparse"), ("u_iijj", "sparse"), ("u_iii", "sparse")])
@pytest.mark.parametrize("way", ["lines", "tangents"])
def test_both_ways_estimate_the_same(operator, law, way):
    net, x = network(6), randn(2, 6)
    one = stde(net, x, operator, probes=4, seed=3, law=law, way=way)
    close(one.value, stde(net, x, operator, probes=4, seed=3, law=law).value, 1e-9)


def quadratic(d):
    S = randn(d, d, seed=4)
    S = (S + S.T) / 2
    return S, lambda x: ((x @ S) * x).sum(-1) / 2


@pytest.mark.parametrize("law", ["sparse", "gaussian", "rademacher"])
def test_variances_have_their_formulas(law):
    d, m = 40, 10
    S, f = quadratic(d)
    x = torch.zeros(1, d, dtype=F64)
    diagonal = S.diagonal()
    variance = {
        "sparse": float(d * d / m * diagonal.var() * (1 - m / d)),
        "gaussian": float(2 * (S**2).sum()) / m,
        "rademacher": float(2 * ((S**2).sum() - (diagonal**2).sum())) / m,
    }[law]
    draws = [stde(f, x, "u_ii", probes=m, seed=s, law=law) for s in range(400)]
    values = torch.cat([e.value for e in draws])
    mean, spread = float(values.mean()), float(values.var())
    assert abs(mean - float(S.trace())) <= 4 * math.sqrt(variance / 400)  # exceeded once in 16 000
    assert 0.75 <= spread / variance <= 1.3  # of 400 draws: four standard errors are 0.28
    assert 0.85 <= float(torch.cat([e.standard_error**2 for e in draws]).mean()) / variance <= 1.15


@pytest.mark.parametrize(
    ("operator", "law", "probes"),
    [
        ("u_ii", "sparse", 16),
        ("u_ii", "gaussian", 16),
        ("u_ii", "rademacher", 16),
        ("u_iijj", "sparse", 60),
        ("u_iijj", "gaussian", 60),
    ],
)
def test_intervals_cover(operator, law, probes):
    d = 30 if operator == "u_ii" else 8
    net, x = network(d), randn(3, d, seed=2)
    truth = EXACT[operator](net)(x).detach()
    inside = []
    for seed in range(150):
        with torch.no_grad():
            low, high = stde(net, x, operator, probes=probes, seed=seed, law=law).interval(0.95)
        inside.append(((low <= truth) & (truth <= high)).double())
    coverage = torch.stack(inside).mean(0)
    assert float(coverage.min()) >= 0.88, coverage  # of 150 at 95 %: below with probability 0.0004


def test_heavy_tails_have_fewer_degrees_of_freedom():
    from frechet.calculus.taylor._stde import _heavy_tailed_freedom

    z = torch.randn(4_000_000, dtype=F64, generator=torch.Generator().manual_seed(0)) ** 2
    kurtosis = float(((z - 1) ** 4).mean() / ((z - 1) ** 2).mean() ** 2)
    assert abs(2 * 1000 / (kurtosis - 1) / _heavy_tailed_freedom(1, 1000) - 1) < 0.05
    assert abs(_heavy_tailed_freedom(2, 1000) - 2000 / (1907712 / 9216 - 1)) < 1e-9  # moments of v^4 by hand
    assert _heavy_tailed_freedom(2, 10) == 1.0


def test_gaussian_probes_of_the_biharmonic_operator_are_unbiased_and_rademacher_ones_would_not_be():
    d = 4
    x = torch.zeros(1, d, dtype=F64)

    def quartic(x):
        return x.square().sum(-1).square() + (x**4).sum(-1)

    truth = float(bilaplacian(quartic)(x))
    draws = torch.cat([stde(quartic, x, "u_iijj", probes=50, seed=s, law="gaussian").value for s in range(60)])
    assert abs(float(draws.mean()) - truth) <= 4 * float(draws.std()) / math.sqrt(60)
    with pytest.raises(ValueError, match="Rademacher probes are biased for 'u_iijj'"):
        stde(quartic, x, "u_iijj", probes=5, seed=0, law="rademacher")


def test_the_estimate_is_a_function_of_the_seed_and_differentiable():
    net, x = network(20), randn(2, 20)
    one = stde(net, x, "u_ii", probes=5, seed=1)
    assert torch.equal(one.value, stde(net, x, "u_ii", probes=5, seed=1).value)
    assert not torch.equal(one.value, stde(net, x, "u_ii", probes=5, seed=2).value)
    assert not one.standard_error.requires_grad
    gradients = torch.autograd.grad((one.value**2).sum(), list(net.parameters())[:-1])
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_gradients_average_to_the_gradient():
    d = 6
    net, x = network(d), randn(2, d)
    weight = net[0].weight
    total = torch.zeros_like(weight)
    for j in range(d):  # each coordinate once: probes of two terms in all pairs would take longer
        e = torch.eye(d, dtype=F64)[j : j + 1]
        total += torch.autograd.grad(laplacian(net, directions=e)(x).sum(), weight)[0]
    close(total, torch.autograd.grad(stde(net, x, "u_ii", probes=d, seed=0).value.sum(), weight)[0])


def test_inner_products_of_points_cost_one_row_for_each_probe():
    # |x|^2 by vecdot never forms probes x points x coordinates
    x = randn(3, 50)
    found = stde(lambda x: torch.linalg.vecdot(x, x).sin(), x, "u_ii", probes=50, seed=0)
    r = (x * x).sum(-1)
    close(found.value, 2 * 50 * r.cos() - 4 * r * r.sin())
    plain = stde(lambda x: (x * x).sum(-1).sin(), x, "u_iijj", probes=9, seed=0)
    close(plain.value, stde(lambda x: torch.linalg.vecdot(x, x).sin(), x, "u_iijj", probes=9, seed=0).value)


X = randn(2, 3)


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        (lambda: stde(3, X, "u_ii", probes=4, seed=0), TypeError, "f must be a function of points, got int"),
        (lambda: stde(torch.sin, 3, "u_ii", probes=4, seed=0), TypeError, "x must be a tensor of real points"),
        (lambda: stde(torch.sin, X, 2, probes=4, seed=0), ValueError, "operator must be one derivative"),
        (lambda: stde(torch.sin, X, "u_ii + u_jj", probes=4, seed=0), ValueError, "use differential_operator"),
        (lambda: stde(torch.sin, X, "u_ii", probes=1, seed=0), ValueError, "probes must be an integer >= 2, got 1"),
        (lambda: stde(torch.sin, X, "u_ii", probes=4, seed=-1), ValueError, "seed must be an integer >= 0, got -1"),
        (lambda: stde(torch.sin, X, "u_ii", probes=4, seed=0.5), ValueError, "seed must be an integer"),
        (lambda: stde(torch.sin, X, "u_ii", probes=4, seed=0, law="uniform"), ValueError, "law must be 'sparse'"),
        (lambda: stde(torch.sin, X, "u_ii", probes=4, seed=0, way="curves"), ValueError, "way must be 'lines'"),
        (lambda: stde(torch.sin, X, "u_iii", probes=4, seed=0, law="gaussian"), ValueError, "use law='sparse'"),
        (lambda: stde(torch.sin, X, "u_iijj", probes=4, seed=0, law="rademacher"), ValueError, "biased"),
    ],
)
def test_wrong_calls(call, kind, told):
    with pytest.raises(kind, match=told) as error:
        call()
    assert str(error.value).startswith("stde: ")
