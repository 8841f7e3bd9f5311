import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from frechet import Objective, hessian
from frechet.errors import NotDifferentiable
from frechet.objective._functions import Functions
from frechet.objective._kernels import (
    has_weight_norm,
    ordinary,
    ordinary_mode,
    recurrence_without_cudnn,
    refuse_once_differentiable,
    refused_hooks,
    refused_reentrant_checkpoints,
    unfused_attention,
)
from frechet.objective._model import exact_math
from frechet.objective._torch_internals import nodes_of
from frechet.objective.criteria import custom
from laws import close
from objective_cases import randn

CPU = torch.device("cpu")
W = randn(3, 4)


def normalized(z):
    return (torch._weight_norm(z[3:].view(3, 4), z[:3].view(3, 1), 0) * W).square().sum()


def test_torchs_weight_norm_has_a_wrong_second_derivative_and_the_formula_a_right_one():
    z = torch.cat([torch.ones(3, dtype=W.dtype), randn(12, seed=1)])
    wrong = torch.autograd.functional.hessian(normalized, z)
    assert float((wrong - wrong.T).abs().max()) > 0.1  # once torch repairs this, the formula can go
    with Functions():
        H = torch.autograd.functional.hessian(normalized, z)

    def by_hand(z):
        return (z[:3, None] * F.normalize(z[3:].view(3, 4), dim=1) * W).square().sum()

    close(H, torch.autograd.functional.hessian(by_hand, z))


@pytest.mark.parametrize("dim", [0, 1, None])
def test_the_formula_gives_torchs_values(dim):
    layer = weight_norm(torch.nn.Linear(4, 3), dim=dim)
    expected = layer.weight.detach()
    with Functions():
        assert torch.allclose(layer.weight, expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weight_norm_is_recognized_in_both_its_forms():
    def linear():
        return torch.nn.Linear(2, 2)

    assert any(map(has_weight_norm, weight_norm(linear()).modules()))
    assert has_weight_norm(torch.nn.utils.weight_norm(linear()))
    assert not has_weight_norm(linear())


def test_attention_has_second_derivatives_inside_only():
    q = randn(1, 1, 2, 2).requires_grad_()

    def second():
        (g,) = torch.autograd.grad(F.scaled_dot_product_attention(q, q, q).sum(), q, create_graph=True)
        return torch.autograd.grad(g.square().sum(), q)[0]

    with unfused_attention():
        assert second().shape == q.shape
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="not implemented"):
        second()


def test_ordinary_mode_leaves_inference_mode_and_autocast_and_returns_to_them():
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        with ordinary_mode(CPU):
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    with ordinary_mode(CPU):
        assert torch.is_grad_enabled()


def test_tensors_of_inference_mode_are_copied_and_others_are_not():
    with torch.inference_mode():
        t = torch.ones(2)
        inside = ordinary(t)
    for copy in (inside, ordinary(t)):
        assert not copy.is_inference()
        assert torch.equal(copy, t.clone())
    assert ordinary(inside) is inside


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * 2


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class Wrapped(Once):
    backward = staticmethod(torch.amp.custom_bwd(Once.backward, device_type="cpu"))


def test_functions_marked_once_differentiable_are_found_anywhere_in_the_graph():
    x = torch.ones(2, requires_grad=True)
    for function in (Once, Wrapped):
        with pytest.raises(NotDifferentiable, match=f"the backward of {function.__name__} is marked once"):
            refuse_once_differentiable([x.sum(), (function.apply(x.sin()) ** 2).exp().sum()])
    refuse_once_differentiable([(Twice.apply(x.sin()) ** 2).sum(), torch.ones(1)])


def test_the_nodes_of_a_graph_are_each_met_once():
    x = torch.ones(2, requires_grad=True)
    y = x.sin()
    assert sorted(n.name() for n in nodes_of([y * y, y])) == [
        "MulBackward0",
        "SinBackward0",
        "torch::autograd::AccumulateGrad",
    ]
    assert nodes_of([torch.ones(1)]) == set()


# --- what is turned off or refused ------------------------------------------------------------------------------------


def test_recurrent_layers_run_without_cudnn_inside_only():
    model = torch.nn.Sequential(torch.nn.LSTM(1, 1))
    modules, flags = tuple(model.modules()), (True, True)
    assert torch.backends.cudnn.enabled
    with exact_math(modules, flags, CPU):
        assert not torch.backends.cudnn.enabled
    with recurrence_without_cudnn():
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled
    with exact_math(tuple(torch.nn.Linear(1, 1).modules()), (True,), CPU):
        assert torch.backends.cudnn.enabled


def test_reentrant_checkpoints_are_refused_inside_only():
    layer, x = torch.nn.Linear(2, 2).double(), randn(3, 2)
    with refused_reentrant_checkpoints(), pytest.raises(NotDifferentiable, match="pass use_reentrant=False to torch"):
        checkpoint(layer, x, use_reentrant=True)
    checkpoint(layer, x.requires_grad_(), use_reentrant=True).sum().backward()
    with refused_reentrant_checkpoints():
        checkpoint(layer, x, use_reentrant=False)


def test_hooks_on_saved_tensors_raise_the_given_sentence():
    layer, x = torch.nn.Linear(2, 2).double(), randn(3, 2).requires_grad_()
    with pytest.raises(NotDifferentiable, match="not here"), refused_hooks("not here"):
        checkpoint(layer, x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="another"), refused_hooks("not here"):
        raise RuntimeError("another")
    checkpoint(layer, x, use_reentrant=False)


def test_products_work_where_torchs_global_flags_are_frozen(monkeypatch):
    """As in a process that has imported torch's own test tools."""
    flags = torch.backends.flags_frozen.__globals__
    monkeypatch.setitem(flags, "__allow_nonbracketed_mutation_flag", False)
    with pytest.raises(RuntimeError, match="not allowed to set"):
        torch.backends.cudnn.enabled = False
    enabled = torch.backends.cudnn.enabled
    model = nn.LSTM(2, 3)
    objective = Objective(model, custom(lambda y, _: y[0].square().sum((1, 2))), [(torch.randn(4, 5, 2), None)])
    v = torch.ones(objective.space.dim)
    assert bool((hessian(objective) @ v).isfinite().all())
    assert torch.backends.cudnn.enabled == enabled
