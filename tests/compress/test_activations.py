import dataclasses

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, hessian, squared_error
from frechet.compress import (
    activation_sensitivity,
    allocate_bits,
    bit_operations,
    joined,
    quantized,
    sensitivity,
    with_quantized_activations,
)

F64 = torch.float64


def objective(called=1):
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(40, 2, 4, 4, generator=g, dtype=F64), torch.randint(0, 3, (40,), generator=g)
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)]
    if called == 2:
        layers[4:4] = [nn.Tanh(), layers[3]]
    return Objective(nn.Sequential(*layers).double(), cross_entropy(), [(X[:15], y[:15]), (X[15:], y[15:])])


def rounded(a, bits, low, high):
    low, high = torch.minimum(low, 0 * low), torch.maximum(high, 0 * high)
    s = (high - low) / (2**bits - 1)
    z = (-low / s).round()
    return ((a / s).round() + z).clamp(0, 2**bits - 1) * s - z * s


@pytest.mark.parametrize("ranges", ["tensor", "channel"])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_the_table_is_that_of_errors_written_out(ranges, curvature):
    o = objective()
    layers, X = list(o.model), torch.cat([b.inputs for b in o.batches()])
    y = torch.cat([b.targets for b in o.batches()])
    table = activation_sensitivity(o, (2, 5), ranges=ranges, curvature=curvature, measured=True)
    assert table.names == ("0", "3", "5")
    assert table.sizes == (32, 16, 16)
    for i, at in enumerate((0, 3, 5)):
        with torch.no_grad():
            a = nn.Sequential(*layers[:at])(X)
        axes = (
            list(range(a.ndim))
            if ranges == "tensor"
            else [k for k in range(a.ndim) if k != (1 if a.ndim == 4 else a.ndim - 1)]
        )
        for j, bits in enumerate((2, 5)):
            e = rounded(a, bits, a.amin(axes, keepdim=True), a.amax(axes, keepdim=True)) - a

            def loss(t, at=at, a=a, e=e):
                return nn.functional.cross_entropy(nn.Sequential(*layers[at:])(a + t * e), y)

            t = torch.zeros((), dtype=F64, requires_grad=True)
            (slope,) = torch.autograd.grad(loss(t), t, create_graph=True)
            (curved,) = torch.autograd.grad(slope, t)
            if curvature == "hessian":
                expected = float(slope.detach() + curved / 2)
                assert float(table.predicted[i, j]) == pytest.approx(expected, rel=1e-8, abs=1e-12)
            assert float(table.measured[i, j]) == pytest.approx(float((loss(1.0) - loss(0.0)).detach()), abs=1e-12)
    assert table.loss == pytest.approx(float(o.value()))


def test_of_a_linear_model_with_squared_errors_the_prediction_is_the_measurement():
    g = torch.Generator().manual_seed(1)
    X, Y = torch.randn(50, 6, generator=g, dtype=F64), torch.randn(50, 2, generator=g, dtype=F64)
    torch.manual_seed(0)
    o = 0.5 * Objective(nn.Linear(6, 2).double(), squared_error(), [(X, Y)])
    table = activation_sensitivity(o, (1, 2, 3, 4, 8, 16), measured=True)
    torch.testing.assert_close(table.predicted, table.measured, rtol=1e-9, atol=1e-13)
    assert table.names == ("",)


@pytest.mark.parametrize("called", [1, 2])
def test_the_objective_with_quantized_inputs_has_the_measured_loss(called):
    o = objective(called)
    table = activation_sensitivity(o, (3, 6), measured=True)
    for i, name in enumerate(table.names):
        for j, bits in enumerate(table.bits):
            value = float(with_quantized_activations(o, {name: bits}).value())
            assert value - table.loss == pytest.approx(float(table.measured[i, j]), abs=1e-12)
    plan = allocate_bits(table, 40)
    whole = with_quantized_activations(o, plan.bits)
    assert plan.bytes <= 40
    assert whole.space == o.space
    assert float(whole.value(quantized(o, {"0.weight": 4}))) != float(whole.value())
    assert bool(hessian(whole).dense().isfinite().all())


def test_the_model_is_left_and_modules_are_chosen():
    o = objective()
    state = {n: t.clone() for n, t in o.model.state_dict().items()}
    table = activation_sensitivity(o, (4,), modules=["3", "5"], method="quadratic")
    assert table.names == ("3", "5")
    assert bool((table.predicted >= 0).all())
    assert list(o.model.state_dict()) == list(state)
    assert all(torch.equal(t, state[n]) for n, t in o.model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in o.model.modules())
    assert all(p.requires_grad for p in o.model.parameters())


def test_wrong_arguments_are_named():
    o = objective()
    for call, sentence in (
        (lambda: activation_sensitivity(o, ()), r"activation_sensitivity: bits must be numbers from 1 to 16, got \(\)"),
        (lambda: activation_sensitivity(o, (17,)), r"bits must be numbers from 1 to 16, got \(17,\)"),
        (lambda: activation_sensitivity(o, method="trace"), "method must be 'quadratic' or 'taylor', got 'trace'"),
        (lambda: activation_sensitivity(o, ranges="row"), "ranges must be 'tensor' or 'channel', got 'row'"),
        (lambda: activation_sensitivity(o, modules="9"), "modules must match a module, got '9'"),
        (lambda: activation_sensitivity(o + o), "objective must have one data term, one process and no head="),
        (lambda: with_quantized_activations(o, {"9": 4}), "modules must be those of the model, got '9'"),
        (lambda: with_quantized_activations(o, {"0": 0}), r"bits must be numbers from 1 to 16, got \(0,\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


class Rows(nn.Module):
    """A linear layer that takes all positions of all examples as rows."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        m, t, _ = x.shape
        return self.last(self.first(x.reshape(m * t, -1)).tanh().view(m, t, -1).mean(1))


def test_sizes_are_of_one_example_whatever_the_axes_are():
    torch.manual_seed(0)
    X, y = torch.randn(14, 5, 4, dtype=F64), torch.randint(0, 3, (14,))
    o = Objective(Rows().double(), cross_entropy(), [(X[:5], y[:5]), (X[5:, :3], y[5:])])
    table = activation_sensitivity(o, (4,))
    assert (table.names, table.sizes) == (("first", "last"), (-(-(5 * 5 + 9 * 3) * 4 // 14), 6))
    assert activation_sensitivity(objective(called=2), (4,)).sizes == (32, 32, 16)  # of both calls


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (lambda: nn.Conv1d(3, 2, 3, padding=1), (3, 9), 1),
        (lambda: nn.Conv2d(3, 2, 3, padding=1), (3, 5, 4), 1),
        (lambda: nn.Conv3d(3, 2, 3, padding=1), (3, 4, 3, 5), 1),
        (lambda: nn.Linear(3, 2), (3,), 1),
        (lambda: nn.Linear(3, 2), (5, 3), 2),
        (lambda: nn.Linear(3, 2), (4, 5, 3), 3),
    ],
)
def test_channels_are_what_the_layer_sums_over(layer, shape, axis):
    torch.manual_seed(0)
    net = nn.Sequential(layer(), nn.Flatten(1)).double()
    X = torch.randn(6, *shape, dtype=F64)
    scales = torch.tensor([1.0, 100.0, 1e4], dtype=F64)
    X = X * scales.view([3 if i == axis else 1 for i in range(X.ndim)])
    target = torch.zeros_like(net(X).detach())
    o = Objective(net, squared_error(), [(X, target)])
    others = [i for i in range(X.ndim) if i != axis]
    with torch.no_grad():
        q = rounded(X, 4, X.amin(others, keepdim=True), X.amax(others, keepdim=True))
        expected = float((net(q) - target).square().mean())
    found = with_quantized_activations(o, {"0": 4}, ranges="channel")
    assert float(found.value()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ranges", ["tensor", "channel"])
def test_batches_of_other_lengths_share_their_ranges(ranges):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    batches = [(torch.randn(6, 3, n, dtype=F64), torch.randint(0, 5, (6,))) for n in (9, 7)]
    o = Objective(net, cross_entropy(), batches)
    table = activation_sensitivity(o, (12,), ranges=ranges, measured=True, curvature="hessian")
    assert table.sizes == (24,)
    planned = float(with_quantized_activations(o, {"0": 12}, ranges=ranges).value()) - table.loss
    assert float(table.measured) == pytest.approx(planned, abs=1e-12)
    assert float(table.predicted) == pytest.approx(planned, rel=0.01)


def test_the_layers_of_gpt2_are_found():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = transformers.pytorch_utils.Conv1D(3, 4).double()  # a weight (in, out)
    net = nn.Sequential(net, nn.Tanh(), nn.Linear(3, 2).double())
    o = Objective(net, squared_error(), [(torch.randn(6, 4, dtype=F64), torch.zeros(6, 2, dtype=F64))])
    assert activation_sensitivity(o, (4,)).names == ("0", "2")
    assert bit_operations(o, sensitivity(o, (2,)), activation_bits=1)[:, 0].tolist() == [24.0, 12.0]


def test_weights_and_inputs_are_planned_together():
    o = objective()
    weights = sensitivity(o, (4, 6, 8), method="taylor", curvature="hessian", measured=True)
    inputs = activation_sensitivity(o, (4, 6, 8), curvature="hessian", measured=True)
    table = joined(weights, inputs)
    assert table.names == weights.names + inputs.names
    assert torch.equal(table.measured, torch.cat([weights.measured, inputs.measured]))
    budget = 0.7 * sum(table.sizes)
    plan = allocate_bits(table, budget)
    assert plan.bytes <= budget
    both = {n: {k: plan.bits[k] for k in t.names} for n, t in (("w", weights), ("a", inputs))}
    loss = float(with_quantized_activations(o, both["a"]).value(quantized(o, both["w"])))
    assert loss - table.loss == pytest.approx(plan.predicted, abs=0.5 * abs(plan.predicted) + 1e-4)
    apart = min(  # the best plan for any share of the budget
        allocate_bits(weights, share).predicted + allocate_bits(inputs, budget - share).predicted
        for share in torch.linspace(0.5 * sum(weights.sizes), budget - 0.5 * sum(inputs.sizes), 9).tolist()
    )
    assert plan.predicted <= apart + 1e-12
    assert joined(weights, dataclasses.replace(inputs, measured=None)).measured is None
    for other, sentence in (
        (weights, "names must be different, got '0.weight' in both tables"),
        (dataclasses.replace(inputs, bits=(2, 3, 4)), "both tables must have the same bits"),
        (dataclasses.replace(inputs, loss=9.0), "both tables must be of one objective, got losses"),
    ):
        with pytest.raises(ValueError, match=sentence):
            joined(weights, other)
