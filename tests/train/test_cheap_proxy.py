import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, hessian, l2, squared_error
from frechet.train import ProxyState, hessian_similarity, proxy_step

F64 = torch.float64


def pair(name="squared_error", classes=2, linear=True):
    torch.manual_seed(0)
    model = nn.Linear(3, classes) if linear else nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, classes))
    model = model.double()
    X = torch.randn(24, 3, dtype=F64)
    y = torch.randint(0, classes, (24,)) if name == "cross_entropy" else torch.randn(24, classes, dtype=F64)
    criterion = cross_entropy() if name == "cross_entropy" else squared_error()
    dear = Objective(model, criterion, [(X, y)], penalty=l2(0.05))
    return dear, Objective(model, criterion, [(X[:8], y[:8])], penalty=l2(0.05))


def test_with_squares_a_step_is_that_of_newton_with_the_hessian_of_the_proxy():
    dear, cheap = pair()
    x, eta = dear.point, 0.7
    moved, _, info = proxy_step(dear, cheap, x, ProxyState(), eta=eta, steps=150)
    H = hessian(cheap).dense() + torch.eye(len(x), dtype=F64) / eta
    torch.testing.assert_close(moved, x - torch.linalg.solve(H, dear.gradient(x)), rtol=1e-9, atol=1e-10)
    assert info.residual < 1e-9
    assert info.gradient_norm == pytest.approx(float(dear.gradient(x).norm()))


@pytest.mark.parametrize("linear", [True, False])
def test_the_end_of_a_step_is_stationary_for_the_corrected_proxy(linear):
    dear, cheap = pair("cross_entropy", 3, linear)
    x, eta = dear.point, 0.5
    moved, _, _ = proxy_step(dear, cheap, x, ProxyState(), eta=eta, steps=150)
    left = cheap.gradient(moved) + dear.gradient(x) - cheap.gradient(x) + (moved - x) / eta
    assert float(left.norm()) < 1e-8


def test_with_itself_as_the_proxy_it_is_the_proximal_point():
    dear, _ = pair("cross_entropy", 3)
    x = dear.point
    moved, _, _ = proxy_step(dear, dear, x, ProxyState(), eta=2.0, steps=150)
    assert float((dear.gradient(moved) + (moved - x) / 2.0).norm()) < 1e-9


def test_the_minimum_of_the_dear_objective_is_a_fixed_point_and_steps_go_there():
    dear, cheap = pair()
    H = hessian(dear).dense()
    least = dear.point - torch.linalg.solve(H, dear.gradient())
    stayed, _, _ = proxy_step(dear, cheap, least, ProxyState(), eta=1.0)
    torch.testing.assert_close(stayed, least, rtol=1e-10, atol=1e-12)
    delta = float(hessian_similarity(dear, cheap, seed=0).values.abs().max())
    x, state = dear.point, ProxyState()
    away = [float((x - least).norm())]
    for _ in range(12):
        x, state, _ = proxy_step(dear, cheap, x, state, eta=0.5 / delta, steps=30)
        away.append(float((x - least).norm()))
    assert away == sorted(away, reverse=True)
    assert away[-1] < 0.1 * away[0]


@pytest.mark.parametrize("linear", [True, False])
def test_the_similarity_is_the_norm_of_the_difference_of_hessians(linear):
    dear, cheap = pair("cross_entropy", 3, linear)
    x = dear.point + 0.1
    exact = torch.linalg.eigvalsh(hessian(dear, x=x).dense() - hessian(cheap, x=x).dense())
    found = hessian_similarity(dear, cheap, x, seed=1, rtol=1e-8)
    torch.testing.assert_close(found.values.min(), exact.min(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.values.max(), exact.max(), rtol=1e-6, atol=1e-9)


def test_a_run_that_resumes_goes_on_to_the_last_bit():
    dear, cheap = pair("cross_entropy", 3, linear=False)
    x, state = dear.point, ProxyState()
    for step in range(6):
        if step == 3:
            again, other = x.clone(), state
        x, state, _ = proxy_step(dear, cheap, x, state, eta=1.0, steps=5)
    for _ in range(3):
        again, other, _ = proxy_step(dear, cheap, again, other, eta=1.0, steps=5)
    assert torch.equal(x, again)
    assert state == other


def test_wrong_arguments_are_named():
    dear, cheap = pair()
    x = dear.point
    with pytest.raises(ValueError, match=r"proxy_step: eta must be a number > 0, got -1.0"):
        proxy_step(dear, cheap, x, ProxyState(), eta=-1.0)
    for steps in (0, True, 1.5):
        with pytest.raises(ValueError, match="proxy_step: steps must be an int >= 1"):
            proxy_step(dear, cheap, x, ProxyState(), eta=1.0, steps=steps)
    with pytest.raises(TypeError, match="proxy_step: proxy must be an Objective, got Linear"):
        proxy_step(dear, dear.model, x, ProxyState(), eta=1.0)
    data = [(torch.ones(2, 2, dtype=F64), torch.ones(2, 1, dtype=F64))]
    other = Objective(nn.Linear(2, 1).double(), squared_error(), data)
    with pytest.raises(ValueError, match="proxy_step: objective and proxy must have the same parameters"):
        proxy_step(dear, other, x, ProxyState(), eta=1.0)
    with pytest.raises(ValueError, match="hessian_similarity: objective and proxy must have the same parameters"):
        hessian_similarity(dear, other, seed=0)


def test_the_next_step_begins_with_twice_the_length_that_was_taken():
    dear, cheap = pair("cross_entropy", 3)
    x, g = dear.point, dear.gradient()
    moved, state, _ = proxy_step(dear, cheap, x, ProxyState(length=64.0), eta=1.0, steps=1)
    assert state.length < 128
    torch.testing.assert_close(moved, x - state.length / 2 * g)
