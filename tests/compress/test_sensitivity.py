import math

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, gauss_newton, hessian, squared_error
from frechet.compress import quantized, sensitivity, uniform
from frechet.errors import NonFinite

F64 = torch.float64


def linear_objective():
    """A quadratic: the loss is its own second-order model."""
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(40, 5, generator=g, dtype=F64), torch.randn(40, 3, generator=g, dtype=F64)
    torch.manual_seed(0)
    return Objective(nn.Linear(5, 3).double(), squared_error(), [(X, y)])


def net_objective():
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(40, 6, generator=g, dtype=F64), torch.randint(0, 3, (40,), generator=g)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return Objective(model, cross_entropy(), [(X, y)])


def test_of_a_quadratic_the_taylor_form_is_what_is_measured():
    table = sensitivity(linear_objective(), (2, 3, 8), method="taylor", measured=True)
    torch.testing.assert_close(table.predicted, table.measured, rtol=1e-9, atol=1e-12)
    assert torch.equal(table.lower, table.predicted)


@pytest.mark.parametrize(("curvature", "operator"), [("gauss_newton", gauss_newton), ("hessian", hessian)])
@pytest.mark.parametrize("method", ["quadratic", "taylor"])
def test_forms_are_those_of_the_dense_matrix(curvature, operator, method):
    objective = net_objective()
    table = sensitivity(objective, (2, 4), curvature=curvature, method=method)
    H, g, x = operator(objective).dense(), objective.gradient(), objective.point
    for i, name in enumerate(table.names):
        for j, b in enumerate(table.bits):
            e = quantized(objective, {name: b}) - x
            expected = 0.5 * e @ H @ e + (g @ e if method == "taylor" else 0.0)
            assert float(table.predicted[i, j]) == pytest.approx(float(expected), rel=1e-9)
    assert table.names == ("0.weight", "2.weight")
    assert table.sizes == (48, 24)


def test_the_interval_of_the_trace_covers():
    objective = net_objective()
    H = gauss_newton(objective).dense()
    space, hits, runs = objective.space, 0, 60
    truth = [float(H[space.block(n), space.block(n)].trace()) for n in ("0.weight", "2.weight")]
    for seed in range(runs):
        table = sensitivity(objective, (4,), method="trace", seed=seed, probes=24)
        for i, name in enumerate(table.names):
            e = quantized(objective, {name: 4}) - objective.point
            exact = truth[i] / table.sizes[i] * float(e @ e) / 2
            hits += float(table.lower[i, 0]) <= exact <= float(table.upper[i, 0])
    assert hits >= 2 * runs * 0.95 - 3 * math.sqrt(2 * runs * 0.95 * 0.05) - 1


def test_a_quantizer_of_ones_own_is_used():
    objective = net_objective()
    table = sensitivity(objective, (3,), quantizer=lambda w, b: torch.zeros_like(w), weights="2.*", method="taylor")
    assert table.names == ("2.weight", "2.bias")
    other = sensitivity(objective, (3,), quantizer=lambda w, b: uniform(w, b, scale="tensor"))
    assert not torch.equal(other.predicted, sensitivity(objective, (3,)).predicted)


def test_the_model_and_the_result_are_left_and_told():
    objective = net_objective()
    before = objective.point
    table = sensitivity(objective, (2, 4), measured=True)
    assert torch.equal(objective.point, before)
    assert "2 weights, bits (2, 4)" in repr(table)
    assert table.to_dict()["names"] == ["0.weight", "2.weight"]
    assert "0.weight" in table._repr_html_()


def test_wrong_arguments_are_named():
    objective = net_objective()
    for arguments, sentence in (
        ({"bits": ()}, "sensitivity: bits must have at least one number, got none"),
        ({"method": "hawq"}, "sensitivity: method must be 'quadratic', 'taylor' or 'trace', got 'hawq'"),
        ({"method": "trace"}, "sensitivity: seed must be given for method='trace', got None"),
        ({"weights": "7.*"}, r"sensitivity: weights must match a trainable parameter, got '7\.\*'"),
        ({"quantizer": lambda w, b: w[0]}, "sensitivity: quantizer must return shape"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sensitivity(objective, **arguments)
    with pytest.raises(NonFinite, match=r"quantizer must return finite numbers, got NaN or infinity for '0.weight'"):
        sensitivity(objective, quantizer=lambda w, b: w / 0)
    with pytest.raises(ValueError, match="quantized: bits must name trainable parameters, got 'no'"):
        quantized(objective, {"no": 2})


def test_a_quantizer_that_rounds_in_place_leaves_the_point():
    o = net_objective()

    def in_place(w, bits):
        return w.copy_(uniform(w, bits))

    found, expected = (sensitivity(o, (2, 4), quantizer=q, measured=True) for q in (in_place, uniform))
    assert torch.equal(found.predicted, expected.predicted)
    assert torch.equal(found.measured, expected.measured)
    assert float(found.predicted.abs().min()) > 0
