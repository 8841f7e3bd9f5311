"""Gradients without backpropagation: unbiased where they say so, variances by formula, intervals that cover."""

import math

import pytest
import scipy
import torch
from torch.distributions import Bernoulli, Categorical, Normal, Poisson

from frechet.calculus.estimated import (
    GradientEstimate,
    bias_and_variance,
    expectation_gradient,
    forward_gradient,
    knn_gradient,
    local_perturbation_gradient,
    signs,
    straight_through,
    zeroth_order_gradient,
)

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def bounds_of_coverage(n, level=0.95):
    """Counts that n intervals of this level lie between with probability 0.999."""
    return scipy.stats.binom.ppf(0.0005, n, level) / n, 1.0


D = 20
G = drawn(D, seed=1)
SPARSE = torch.zeros(D, dtype=F64).index_fill_(0, torch.tensor([3]), 2.0)


def linear(g):
    return lambda x: (g * x).sum() + 0.0 * x.square().sum()


# --- forward gradients ------------------------------------------------------------------------------------------------

LAWS = ["gaussian", "rademacher", "sphere", "orthogonal"]
VARIANCE = {
    "gaussian": D + 1,
    "rademacher": D - 1,
    "sphere": D - 1,
    "orthogonal": D / 5 - 1,
}


@pytest.mark.parametrize("law", LAWS)
def test_forward_gradients_are_unbiased_with_the_variance_of_the_formula(law):
    m = 5
    run = lambda seed: forward_gradient(linear(G), torch.zeros(D, dtype=F64), probes=m, seed=seed, law=law)  # noqa: E731
    report = bias_and_variance(run, G, repeats=200, seed=0)
    assert abs(float(report.bias_squared)) < 5 * float(report.bias_squared.standard_error)
    expected = float(G.square().sum()) * VARIANCE[law] / (1 if law == "orthogonal" else m)
    assert abs(float(report.variance) - expected) < 5 * float(report.variance.standard_error)
    low, _ = bounds_of_coverage(200)  # entries of a run depend on each other: the runs count
    assert report.coverage is not None
    assert report.coverage > low


@pytest.mark.parametrize("g", [G, SPARSE], ids=["dense", "one coordinate"])
@pytest.mark.parametrize("law", ["rademacher", "sphere", "orthogonal"])
@pytest.mark.parametrize("m", [4, 12])
def test_their_intervals_cover(g, law, m):
    run = lambda seed: forward_gradient(linear(g), torch.zeros(D, dtype=F64), probes=m, seed=seed, law=law)  # noqa: E731
    report = bias_and_variance(run, g, repeats=150, seed=1)
    assert report.coverage is not None
    assert report.coverage > bounds_of_coverage(150)[0]


def test_a_biased_law_is_refused_and_a_right_one_is_taken():
    x = torch.zeros(D, dtype=F64)
    with pytest.raises(ValueError, match="second moment"):
        forward_gradient(linear(G), x, probes=8, seed=0, law=lambda m, seed: drawn(m, D, seed=seed) / math.sqrt(D))
    found = forward_gradient(linear(G), x, probes=8, seed=0, law=lambda m, seed: drawn(m, D, seed=seed))
    assert found.unbiased
    with pytest.raises(ValueError, match=r"\(8, 20\) directions"):
        forward_gradient(linear(G), x, probes=8, seed=0, law=lambda m, seed: drawn(m, 3))


@pytest.mark.parametrize("law", LAWS)
def test_guesses_keep_it_unbiased_and_lower_its_variance(law):
    x = torch.zeros(D, dtype=F64)
    guesses = torch.stack([G + 0.3 * drawn(D, seed=4), drawn(D, seed=5)])
    plain = bias_and_variance(
        lambda s: forward_gradient(linear(G), x, probes=4, seed=s, law=law), G, repeats=80, seed=0
    )
    guided = bias_and_variance(
        lambda s: forward_gradient(linear(G), x, probes=4, seed=s, law=law, guesses=guesses), G, repeats=80, seed=0
    )
    assert abs(float(guided.bias_squared)) < 5 * float(guided.bias_squared.standard_error)
    assert float(guided.variance) < 0.3 * float(plain.variance)
    assert float(guided.cosine) > float(plain.cosine)
    assert guided.coverage is not None
    assert guided.coverage > bounds_of_coverage(80)[0]


def test_guesses_that_span_the_gradient_give_it_and_dependent_ones_count_once():
    x = torch.zeros(D, dtype=F64)
    found = forward_gradient(linear(G), x, probes=2, seed=0, guesses=torch.stack([G, 2 * G, drawn(D)]))
    torch.testing.assert_close(found.value, G)
    assert found.evaluations == 4
    alone = forward_gradient(linear(G), x, probes=0, seed=0, guesses=drawn(2, D, seed=9), complement=False)
    Q, _ = torch.linalg.qr(drawn(2, D, seed=9).T)
    torch.testing.assert_close(alone.value, Q @ (Q.T @ G))
    assert not alone.unbiased
    assert math.isinf(float(alone.bias_bound[0]))


def test_all_orthogonal_directions_give_the_gradient_without_error():
    found = forward_gradient(lambda x: x.exp().sum(), G, probes=D, seed=0, law="orthogonal", chunk=3)
    torch.testing.assert_close(found.value, G.exp())
    assert float(found.standard_error.max()) < 1e-6 * float(G.exp().max())


# --- values alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["sphere", "gaussian", "rademacher"])
@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_the_bias_of_differences_stays_below_its_bound_and_the_interval_covers(law, scheme):
    x = 0.5 + 0.1 * drawn(4)
    width = 0.2

    def f(x):  # Hessian within 1, third derivatives within 1
        return x.sin().sum()

    run = lambda s: zeroth_order_gradient(  # noqa: E731
        f, x, probes=30, width=width, seed=s, law=law, scheme=scheme, gradient_constant=1.0, hessian_constant=1.0
    )
    report = bias_and_variance(run, x.cos(), repeats=100, seed=0)
    bound = float(run(0).bias_bound[0])
    assert 0 < bound < 1
    assert bool((report.bias.abs() <= bound + 5 * report.bias_error).all())
    assert report.coverage is not None
    assert report.coverage > bounds_of_coverage(100)[0]


def test_the_smoothed_gradient_of_a_step_is_that_of_its_mean():
    x, width = torch.tensor([0.1], dtype=F64), 0.5
    run = lambda s: zeroth_order_gradient(  # noqa: E731
        lambda x: float(x > 0), x, probes=40, width=width, seed=s, law="gaussian"
    )
    density = torch.exp(-0.5 * (x / width) ** 2) / (width * math.sqrt(2 * math.pi))
    report = bias_and_variance(run, density, repeats=200, seed=0)
    assert abs(float(report.bias_squared)) < 5 * float(report.bias_squared.standard_error)
    one = run(0)
    assert math.isinf(float(one.bias_bound))
    low, high = one.interval(0.999, bias=False)
    assert float(low) <= float(density) <= float(high)


def test_local_perturbations_credit_outputs_to_their_own_inputs():
    n, k = 60, 3
    places = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(i))[:k] for i in range(n)])
    mask = torch.zeros(n, n, dtype=torch.bool).scatter_(1, places, True)
    W = drawn(n, n) * mask
    f = lambda x: W @ x  # noqa: E731
    exact = W.sum(0)
    local = bias_and_variance(
        lambda s: local_perturbation_gradient(f, torch.zeros(n, dtype=F64), mask, probes=2, width=0.1, seed=s),
        exact,
        repeats=50,
        seed=0,
    )
    everywhere = bias_and_variance(
        lambda s: zeroth_order_gradient(
            lambda x: f(x).sum(), torch.zeros(n, dtype=F64), probes=2, width=0.1, seed=s, law="rademacher"
        ),
        exact,
        repeats=50,
        seed=0,
    )
    assert abs(float(local.bias_squared)) < 5 * float(local.bias_squared.standard_error)
    ratio = float(everywhere.variance) / float(local.variance)
    assert 0.6 * (n - 1) / (k - 1) < ratio < 1.6 * (n - 1) / (k - 1)


# --- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ball", ["sup", "euclidean"])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_neighbours_cover_the_gradient_with_their_bias_bound(ball, noise):
    held = 0
    for seed in range(100):
        X = torch.rand(800, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
        Y = X.sin().sum(1) + noise * drawn(800, seed=seed + 1)
        x = torch.full((3,), 0.5, dtype=F64)
        found = knn_gradient(X, Y, x, neighbours=40, ball=ball, gradient_constant=1.0)
        low, high = found.interval(0.95)
        held += float(((low <= x.cos()) & (x.cos() <= high)).double().mean())
    assert held / 100 > bounds_of_coverage(100)[0]


def test_neighbours_of_a_plane_are_exact_and_wrong_ones_are_refused():
    X = drawn(50, 3)
    found = knn_gradient(X, X @ G[:3], torch.zeros(3, dtype=F64), neighbours=10)
    torch.testing.assert_close(found.value, G[:3])
    assert not found.unbiased
    with pytest.raises(ValueError, match=r"neighbours must be an integer in 5\.\.50"):
        knn_gradient(X, X[:, 0], torch.zeros(3, dtype=F64), neighbours=4)
    flat = X.clone()
    flat[:, 2] = 0.0
    with pytest.raises(ValueError, match="one hyperplane"):
        knn_gradient(flat, X[:, 0], torch.zeros(3, dtype=F64), neighbours=10)
    with pytest.raises(ValueError, match="all lie at x"):
        knn_gradient(torch.zeros(9, 2, dtype=F64), torch.zeros(9, dtype=F64), torch.zeros(2, dtype=F64), neighbours=5)


# --- expectations -----------------------------------------------------------------------------------------------------


def mixture(how_coin, how_noise):
    """E (coin + z)^2 with coin ~ Bernoulli(s(a)) and z ~ N(b, 1 + coin), one choice after the other."""

    def program(theta, draw):
        coin = draw(Bernoulli(theta[0].sigmoid()), how_coin)
        return (coin + draw(Normal(theta[1], 1 + coin), how_noise)) ** 2

    return program


def exact_mixture(theta):
    p = theta[0].sigmoid()
    return p * ((1 + theta[1]) ** 2 + 4) + (1 - p) * (theta[1] ** 2 + 1)


@pytest.mark.parametrize("noise", ["pathwise", "score"])
@pytest.mark.parametrize("coin", ["enumerate", "score"])
def test_every_mix_of_estimators_is_unbiased_and_covers(coin, noise):
    theta = torch.tensor([0.4, -0.3], dtype=F64)
    exact = torch.func.grad(exact_mixture)(theta)
    run = lambda s: expectation_gradient(mixture(coin, noise), theta, samples=20, seed=s)  # noqa: E731
    report = bias_and_variance(run, exact, repeats=30, seed=0)
    assert abs(float(report.bias_squared)) < 5 * float(report.bias_squared.standard_error)
    assert bool((report.bias.abs() < 4.5 * report.bias_error).all())
    assert report.coverage is not None
    assert report.coverage > bounds_of_coverage(30, 0.92)[0]  # squares of normals have heavy tails


def test_enumeration_alone_is_exact_whatever_the_structure():
    def program(theta, draw):
        total = theta.new_zeros(())
        for _ in range(2):
            i = draw(Categorical(logits=theta), "enumerate")
            total = total + theta[i] ** 2 if int(i) else total
            if int(i) == 2:  # a choice that only some runs have
                total = total * (1 + draw(Bernoulli(theta[0].sigmoid()), "enumerate"))
        return total

    def by_hand(theta):
        p, q = theta.softmax(0), theta[0].sigmoid()
        value = theta.new_zeros(())

        def step(total, weight, left):
            nonlocal value
            if not left:
                value = value + weight * total
                return
            for i in range(3):
                new = total + theta[i] ** 2 if i else total
                for coin in (0, 1) if i == 2 else (None,):
                    w = weight * p[i] * (1 if coin is None else q if coin else 1 - q)
                    step(new if coin is None else new * (1 + coin), w, left - 1)

        step(theta.new_zeros(()), theta.new_ones(()), 2)
        return value

    theta = torch.tensor([0.3, -0.5, 0.8], dtype=F64)
    found = expectation_gradient(program, theta, samples=2, seed=0)
    torch.testing.assert_close(found.value, torch.func.grad(by_hand)(theta))
    assert not found.standard_error.any()
    assert found.unbiased


def test_a_jump_shows_as_a_bias_of_the_pathwise_estimator():
    def program(how):
        return lambda theta, draw: (draw(Normal(theta, 1.0), how) > 0).double() + 0.1 * draw(Normal(theta, 1.0), how)

    theta = torch.tensor(0.2, dtype=F64)
    run = lambda how: lambda s: expectation_gradient(program(how), theta, samples=20, seed=s)  # noqa: E731
    against = bias_and_variance(run("pathwise"), run("score"), repeats=50, seed=0)
    assert float(against.bias_squared.interval(0.999)[0]) > 0
    density = math.exp(-0.02) / math.sqrt(2 * math.pi)
    assert float(against.bias[0]) == pytest.approx(-density, abs=5 * float(against.bias_error[0]))


def test_draws_leave_the_global_generator_alone_and_repeat():
    theta = torch.tensor(0.2, dtype=F64)
    before = torch.get_rng_state()
    run = lambda: expectation_gradient(  # noqa: E731
        lambda theta, draw: draw(Normal(theta, 1.0), "pathwise") ** 2, theta, samples=5, seed=3
    )
    assert torch.equal(run().value, run().value)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (lambda theta, draw: draw(Bernoulli(theta.sigmoid()), "pathwise"), "pathwise derivatives"),
        (lambda theta, draw: draw(Poisson(theta.exp()), "enumerate"), "finitely many values"),
        (lambda theta, draw: draw(Bernoulli(theta.sigmoid().expand(2)), "enumerate").sum(), "one choice at a time"),
        (lambda theta, draw: draw(Normal(theta, 1.0), "reparametrized"), "'pathwise', 'score' or 'enumerate'"),
        (lambda theta, draw: theta.expand(3), "scalar tensor"),
    ],
)
def test_a_choice_without_that_estimator_is_refused(program, words):
    with pytest.raises(ValueError, match=words):
        expectation_gradient(program, torch.tensor(0.1, dtype=F64), samples=3, seed=0)


# --- straight through -------------------------------------------------------------------------------------------------


def test_values_are_those_of_the_step_bit_for_bit_and_slopes_those_of_the_surrogate():
    x = torch.cat([drawn(100) * 1e3, torch.tensor([0.0, -0.0, 1.5, 0.1], dtype=F64)]).requires_grad_()
    y = straight_through(torch.round, torch.tanh)(x)
    assert torch.equal(y, torch.round(x))
    (g,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(g, 1 - torch.tanh(x) ** 2)
    for surrogate in ("identity", "clipped", "tanh", "power"):
        y = signs(x, surrogate)
        assert set(y.tolist()) == {-1.0, 1.0}
        assert float(y.detach()[100]) == 1.0


@pytest.mark.parametrize("power", [1.0, 3.0, 10.0])
def test_the_power_surrogate_is_the_slope_of_its_function(power):
    x = torch.tensor([-1.4, -0.5, -0.2, 0.3, 1.0, 1.6, 0.05, -0.01], dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(signs(x, power=power).sum(), x)
    inside = (x.abs() >= 0.1) & (x.abs() <= 1.5)
    (exact,) = torch.autograd.grad((x.sign() * x.abs() ** (1 / power)).sum(), x)
    torch.testing.assert_close(g[inside.detach()], exact[inside.detach()])
    assert float(g[5]) == 0.0
    assert g[6].item() == pytest.approx(0.1 ** (1 / power) / 0.1)


def test_the_report_shows_the_bias_of_a_surrogate_and_none_where_the_loss_is_linear():
    theta = torch.tensor(0.3, dtype=F64)

    def surrogate(loss):
        def run(seed):
            z = theta + drawn(50, seed=seed)
            leaf = theta.clone().requires_grad_()
            return torch.autograd.grad(loss(signs(leaf + z - theta, "clipped")).mean(), leaf)[0]

        return run

    density = math.exp(-0.045) / math.sqrt(2 * math.pi)  # d E sign = 2 density
    inside = math.erf(0.7 / math.sqrt(2)) / 2 + math.erf(1.3 / math.sqrt(2)) / 2
    report = bias_and_variance(surrogate(lambda s: s), torch.tensor(2 * density, dtype=F64), repeats=200, seed=0)
    assert float(report.bias[0]) == pytest.approx(inside - 2 * density, abs=5 * float(report.bias_error[0]))
    # the square of a sign is constant: the truth is zero, and the surrogate has a slope
    flat = bias_and_variance(surrogate(lambda s: s**2), torch.zeros((), dtype=F64), repeats=200, seed=0)
    assert float(flat.bias_squared.interval(0.999)[0]) > 0


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [0.0, 0.3, 3.0])
def test_the_error_bars_of_the_report_cover(bias):
    d, m, level, held = 6, 25, 0.95, [0, 0]
    for trial in range(200):
        noise = drawn(m, d, seed=trial)
        run = lambda s, noise=noise: bias / math.sqrt(d) + noise[s]  # noqa: E731
        report = bias_and_variance(run, torch.zeros(d), repeats=m, seed=0)
        for i, (estimate, truth) in enumerate(((report.bias_squared, bias**2), (report.variance, d))):
            low, high = estimate.interval(level)
            held[i] += int(low <= truth <= high)
    assert all(count / 200 > bounds_of_coverage(200)[0] for count in held), held


def test_a_biased_estimator_fails_the_test_of_bias():
    run = lambda s: forward_gradient(linear(G), torch.zeros(D, dtype=F64), probes=4, seed=s).value * 3.0  # noqa: E731
    report = bias_and_variance(run, G, repeats=400, seed=0)
    assert abs(float(report.bias_squared)) > 3 * float(report.bias_squared.standard_error)
    assert report.coverage is None
    assert "variance" in repr(report)


def test_estimates_show_themselves_and_wrong_arguments_are_named():
    x = torch.zeros(3, dtype=F64)
    found = forward_gradient(linear(G[:3]), x, probes=2, seed=0)
    assert isinstance(found, GradientEstimate)
    assert "unbiased" in repr(found)
    with pytest.raises(ValueError, match="level must lie"):
        found.interval(1.0)
    with pytest.raises(ValueError, match="probes must be an integer >= 2"):
        forward_gradient(linear(G[:3]), x, probes=1, seed=0)
    with pytest.raises(ValueError, match="scalar tensor"):
        forward_gradient(lambda x: x, x, probes=2, seed=0)
    with pytest.raises(ValueError, match="needs guesses"):
        forward_gradient(linear(G[:3]), x, probes=2, seed=0, complement=False)
    with pytest.raises(ValueError, match="width must be positive"):
        zeroth_order_gradient(linear(G[:3]), x, probes=2, width=0.0, seed=0)
    with pytest.raises(ValueError, match="one number"):
        zeroth_order_gradient(lambda x: x, x, probes=2, width=0.1, seed=0)
    with pytest.raises(ValueError, match="repeats must be"):
        bias_and_variance(lambda s: x, x, repeats=2, seed=0)
    with pytest.raises(ValueError, match="surrogate must be"):
        signs(x, "steep")
    with pytest.raises(ValueError, match="shape of hard"):
        straight_through(torch.round, lambda x: x.sum())(x)
    with pytest.raises(ValueError, match="contributors must be bool"):
        local_perturbation_gradient(lambda x: x, x, torch.ones(3, 3), probes=2, width=0.1, seed=0)
