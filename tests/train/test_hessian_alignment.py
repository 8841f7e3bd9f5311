import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from frechet.train import hessian_alignment

F64 = torch.float64


def environments(sizes=(7, 5, 6), width=4, classes=3):
    g = torch.Generator().manual_seed(0)
    features = [torch.randn(m, width, generator=g, dtype=F64) * (1 + e) for e, m in enumerate(sizes)]
    return features, [torch.randint(0, classes, (m,), generator=g) for m in sizes]


def linear(bias=True):
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias=bias).double()


def dense(head, h, y):
    """Gradient and Hessian of the mean cross entropy in the head's parameters, side by side as (weight | bias)."""
    names = [n for n, _ in head.named_parameters()]
    shapes = [p.shape for p in head.parameters()]

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes])
        blocks = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(head, blocks, (h,)), y)

    x = torch.cat([p.detach().reshape(-1) for p in head.parameters()])
    return torch.func.grad(loss)(x), torch.func.hessian(loss)(x)


def spread(vectors):
    V = torch.stack([v.reshape(-1) for v in vectors])
    return float((V - V.mean(0)).square().sum(1).mean())


def compared(by, g, H):
    return {"product": lambda: H @ g, "diagonal": lambda: H.diagonal(), "matrix": lambda: H}[by]()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("by", ["product", "diagonal", "matrix"])
def test_the_closed_forms_of_a_linear_head_are_the_dense_ones(by, bias):
    head = linear(bias)
    features, targets = environments()
    pairs = [dense(head, h, y) for h, y in zip(features, targets, strict=True)]
    expected = 0.7 * spread([g for g, _ in pairs]) + 0.3 * spread([compared(by, g, H) for g, H in pairs])
    found = hessian_alignment(head, features, targets, by=by, gradient=0.7, hessian=0.3)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("by", ["product", "diagonal", "matrix"])
def test_its_gradient_holds_with_the_mean_as_a_constant(by):
    """Differences of the penalty in the head and the features, where the mean is that of the unmoved environments."""
    head = linear()
    features, targets = environments()
    features = [h.requires_grad_() for h in features]
    penalty = hessian_alignment(head, features, targets, by=by, gradient=0.7, hessian=0.3)
    slopes = torch.autograd.grad(penalty, [head.weight, features[1]])

    def parts(weight, second):
        moved = linear()
        with torch.no_grad():
            moved.weight.copy_(weight)
        pairs = [dense(moved, h.detach(), y) for h, y in zip([features[0], second, features[2]], targets, strict=True)]
        return torch.stack([torch.cat([0.7**0.5 * g, 0.3**0.5 * compared(by, g, H).reshape(-1)]) for g, H in pairs])

    center = parts(head.weight.detach(), features[1].detach()).mean(0)

    def value(weight, second):
        return float((parts(weight, second) - center).square().sum(1).mean())

    h, v, u = 1e-5, torch.randn_like(head.weight), torch.randn_like(features[1])
    at = head.weight.detach(), features[1].detach()
    for slope, (dw, du) in ((slopes[0] * v, (v, 0 * u)), (slopes[1] * u, (0 * v, u))):
        up, down = (value(at[0] + s * h * dw, at[1] + s * h * du) for s in (1, -1))
        assert float(slope.sum()) == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_a_deep_head_goes_by_double_backward():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    features, targets = environments()
    pairs = [dense(head, h, y) for h, y in zip(features, targets, strict=True)]
    expected = 0.7 * spread([g for g, _ in pairs]) + 0.3 * spread([H @ g for g, H in pairs])
    found = hessian_alignment(head, features, targets, gradient=0.7, hessian=0.3)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-10)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found, list(head.parameters())))


def test_both_ways_agree_for_a_linear_head():
    head, (features, targets) = linear(), environments()
    wrapped = nn.Sequential(head)  # the same function, not seen to be linear
    found = [hessian_alignment(m, features, targets) for m in (head, wrapped)]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*(torch.autograd.grad(f, [head.weight, head.bias]) for f in found))


def test_without_gradients_it_is_a_number():
    head, (features, targets) = nn.Sequential(linear()), environments()
    with torch.no_grad():
        found = hessian_alignment(head, features, targets)
    assert not found.requires_grad
    torch.testing.assert_close(found, hessian_alignment(head, features, targets).detach())


def test_saturated_probabilities_stay_finite():
    head, (features, targets) = linear().float(), environments()
    features = [1e4 * h.float() for h in features]
    found = hessian_alignment(head, features, targets)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found, list(head.parameters())))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda h, y: (linear(), h[:1], y[:1]), "at least two environments"),
        (lambda h, y: (linear(), h, y[:2]), "each with features and targets"),
        (lambda h, y: (linear(), h, [t.double() for t in y]), "class indices"),
        (lambda h, y: (nn.Linear(5, 3), h, y), r"\(examples, 5\)"),
        (lambda h, y: (nn.Flatten(), h, y), "trainable parameters"),
    ],
)
def test_what_does_not_fit_is_said(given, said):
    with pytest.raises(ValueError, match=said):
        hessian_alignment(*given(*environments()))


def test_other_heads_have_no_closed_form():
    features, targets = environments()
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear, got Sequential"):
        hessian_alignment(nn.Sequential(linear()), features, targets, by="matrix")
    with pytest.raises(ValueError, match="by must be"):
        hessian_alignment(linear(), features, targets, by="trace")


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_frozen_parameters_of_the_head_are_not_aligned(frozen):
    g = torch.Generator().manual_seed(0)
    head = nn.Linear(4, 3).double()
    getattr(head, frozen).requires_grad_(False)
    features = [torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (5, 9)]
    targets = [torch.randint(0, 3, (len(h),), generator=g) for h in features]
    found = hessian_alignment(head, features, targets, hessian=0.7, gradient=0.3)
    expected = hessian_alignment(nn.Sequential(head), features, targets, hessian=0.7, gradient=0.3)  # by autograd
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


@pytest.mark.parametrize("made", [lambda: nn.Linear(4, 3), lambda: nn.Sequential(nn.Linear(4, 3))])
def test_examples_without_a_label_and_frozen_heads_are_refused(made):
    features, targets = [torch.randn(5, 4)] * 2, [torch.zeros(5, dtype=torch.long), torch.tensor([0, 1, -100, 2, 0])]
    with pytest.raises(ValueError, match="targets must be class indices from 0 on, got -100"):
        hessian_alignment(made(), features, targets)
    with pytest.raises(ValueError, match="the head must have trainable parameters, got none"):
        hessian_alignment(made().requires_grad_(False), features, [targets[0]] * 2)
