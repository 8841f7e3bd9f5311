"""Lean graphs: the same values and derivatives as torch's, with fewer bytes kept."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from frechet import Objective, cross_entropy, gauss_newton, hessian
from frechet.calculus.memory import memory_lean, saved_bytes
from frechet.calculus.memory._functions import packed, unpacked

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.n = (
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
        )

    def forward(self, x):
        y = torch.relu(self.a(x))
        y = y + F.leaky_relu(self.n(self.b(y)), 0.2)
        y = F.max_pool2d(y, 3, stride=2, padding=1)
        return F.hardtanh(F.avg_pool2d(y, 2)).flatten(1).relu()


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.block, self.reentrant = nn.Conv2d(3, 4, 3), blocks(4), reentrant

    def forward(self, x):
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant).flatten(1)


def blocks(channels, *, inplace=False):
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1, groups=1), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, dilation=2, padding=2, bias=False), nn.BatchNorm2d(6, affine=False), nn.ReLU6(),
        nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Dropout(0.3), nn.AvgPool2d(2, ceil_mode=True),
    )  # fmt: skip


def line():
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.LeakyReLU(), nn.Conv1d(4, 2, 2), nn.Flatten())


def dense():
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.Hardtanh(), nn.Linear(16, 3)
    )


MODELS = {
    "functional": (Functional, (2, 3, 12, 12)),
    "blocks": (lambda: nn.Sequential(blocks(3), nn.Flatten()), (2, 3, 8, 8)),
    "in place": (lambda: nn.Sequential(blocks(3, inplace=True), nn.Flatten()), (2, 3, 8, 8)),
    "checkpoint": (lambda: Checkpointed(False), (2, 3, 10, 10)),
    "reentrant checkpoint": (lambda: Checkpointed(True), (2, 3, 10, 10)),
    "one dimension": (line, (2, 3, 9)),
    "dense": (dense, (5, 8)),
}
FROZEN = {
    "all trainable": lambda name: False,
    "all frozen": lambda name: True,
    "weights frozen": lambda name: name.endswith("weight"),
    "biases frozen": lambda name: name.endswith("bias"),
    "half frozen": lambda name: hash(len(name)) % 2 == 0,
}


def built(name, frozen, training):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().double().train(training)
    for key, p in model.named_parameters():
        p.requires_grad_(not FROZEN[frozen](key))
    for b in model.modules():
        if isinstance(b, nn.BatchNorm2d | nn.BatchNorm1d):
            b.running_mean.normal_(), b.running_var.uniform_(0.5, 2)
    return model, drawn(*shape, seed=1)


def derivatives(model, x, second=False):
    """Values, gradients in all that is wanted, and a Hessian product, from one state of the generator."""
    torch.manual_seed(5)
    x = x.clone().requires_grad_()
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    y = model(x)
    loss = (y * drawn(*y.shape, seed=2)).sum() + y.square().sum()
    if not second:  # by backward: reentrant checkpoints take nothing else
        for t in wanted:
            t.grad = None
        loss.backward()
        return [y.detach(), *(t.grad.clone() for t in wanted)]
    grads = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True, materialize_grads=True)
    along = sum((g * drawn(*g.shape, seed=i)).sum() for i, g in enumerate(grads))
    return list(torch.autograd.grad(along, wanted, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("name", MODELS)
def test_values_gradients_and_buffers_are_those_of_torch(name, frozen, training):
    plain, x = built(name, frozen, training)
    lean = memory_lean(copy.deepcopy(plain))
    ours, theirs = derivatives(lean, x), derivatives(plain, x)
    assert torch.equal(ours[0], theirs[0])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for (key, a), b in zip(lean.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("name", [n for n in MODELS if n != "reentrant checkpoint"])  # torch has no second derivative
def test_hessian_products_are_those_of_torch(name, frozen):
    plain, x = built(name, frozen, False)
    for a, b in zip(derivatives(memory_lean(plain), x, True), derivatives(plain, x, True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# --- what is kept -----------------------------------------------------------------------------------------------------


def count(model, x):
    return saved_bytes(memory_lean(model), x) / saved_bytes(model, x)


def frozen(*layers):
    return nn.Sequential(*layers).requires_grad_(False).eval()


LEAN = {
    # what torch keeps, and the share of it that is left
    "convolutions": (frozen(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)), 0.01),
    "rectified convolutions": (frozen(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()), 1 / 16),
    "normalized": (frozen(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)), 1 / 16),
    "pooled": (frozen(nn.MaxPool2d(2), nn.AvgPool2d(2)), 0.084),
    "hard activations": (frozen(nn.LeakyReLU(), nn.Hardtanh(), nn.ReLU6()), 1 / 16),
}


@pytest.mark.parametrize("name", LEAN)
def test_frozen_layers_keep_nearly_nothing(name):
    model, share = LEAN[name]
    x = drawn(4, 3, 32, 32).float().requires_grad_()
    assert count(model, x) < share


def test_dropout_keeps_bits_and_trainable_layers_their_inputs():
    x = drawn(4, 3, 32, 32).float().requires_grad_()
    assert count(nn.Dropout(0.5), x) < 1 / 16
    layer = nn.Conv2d(3, 8, 3)
    assert saved_bytes(memory_lean(layer), x) == saved_bytes(layer, x)
    y = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    y[1].requires_grad_(False)
    z = x.detach()  # one input is kept, of the layer whose weight is wanted
    assert saved_bytes(memory_lean(y), z) < saved_bytes(y, z)


def test_one_trainable_layer_keeps_what_lies_behind_it_alone():
    def kept(layer):
        torch.manual_seed(0)
        net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))).requires_grad_(False)
        net[layer].requires_grad_(True)
        return saved_bytes(memory_lean(net), drawn(2, 4, 16, 16).float())

    assert len({kept(layer) for layer in (1, 3, 5)}) == 1  # its input, whichever it is


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 5), (2, 3, 11)])
def test_masks_are_packed_without_loss(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.4
    bits = packed(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpacked(bits, mask.shape), mask)


def test_a_mask_that_is_read_wrongly_fails(monkeypatch):
    from frechet.calculus.memory import _functions as functions

    plain, x = built("dense", "all trainable", False)
    monkeypatch.setattr(functions, "unpacked", lambda bits, shape: unpacked(bits, shape).roll(1))
    ours, theirs = derivatives(memory_lean(plain), x), derivatives(plain, x)
    assert not all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


# --- together with the rest -------------------------------------------------------------------------------------------


def test_parameters_are_shared_and_training_changes_both():
    plain, x = built("functional", "all trainable", True)
    lean = memory_lean(plain)
    assert all(a is b for a, b in zip(lean.parameters(), plain.parameters(), strict=True))
    assert list(lean.state_dict()) == list(plain.state_dict())
    optimizer = torch.optim.SGD(lean.parameters(), 0.1)
    lean(x).square().sum().backward()
    before = plain.a.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, plain.a.weight)
    assert type(copy.deepcopy(lean)) is Functional
    assert not lean.eval().training


def test_transforms_and_forward_mode_and_compile_see_torchs_functions():
    plain, x = built("functional", "all trainable", False)
    lean = memory_lean(plain)
    f = lambda m: lambda x: m(x).square().sum()  # noqa: E731
    for transform in (torch.func.grad, torch.func.jacfwd, lambda f: torch.func.jacrev(torch.func.grad(f))):
        torch.testing.assert_close(transform(f(lean))(x[:1]), transform(f(plain))(x[:1]))
    torch.testing.assert_close(torch.func.vmap(lean)(x[:, None]), torch.func.vmap(plain)(x[:, None]))
    compiled = torch.compile(lean, backend="eager")
    torch.testing.assert_close(derivatives(compiled, x)[1], derivatives(plain, x)[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(lean.float()(x.float()), plain.float()(x.float()))
        lean(x.float()).sum().backward()


def test_curvature_of_a_subset_keeps_less_and_is_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()
    data = [(drawn(6, 1, 8, 8), torch.arange(6) % 3)]
    for curvature in (hessian, gauss_newton):
        A = curvature(Objective(net, cross_entropy(), data), restrict="5.*")
        B = curvature(Objective(memory_lean(net), cross_entropy(), data), restrict="5.*")
        v = drawn(A.shape[1])
        torch.testing.assert_close(A @ v, B @ v)
        whole = curvature(Objective(memory_lean(net), cross_entropy(), data))
        w = drawn(whole.shape[1])
        torch.testing.assert_close(whole @ w, curvature(Objective(net, cross_entropy(), data)) @ w)


def test_a_replaced_forward_is_refused():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x
    with pytest.raises(TypeError, match="forward was replaced"):
        memory_lean(layer)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        memory_lean(torch.relu)
