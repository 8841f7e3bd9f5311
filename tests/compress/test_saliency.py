import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy, hessian
from frechet.compress import groups_along, inverse_curvature, prune, saliency
from frechet.space import Space

F64 = torch.float64


def objective():
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(40, 2, 4, 4, generator=g, dtype=F64), torch.randint(0, 3, (40,), generator=g)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    return Objective(model, cross_entropy(), [(X, y)])


OBJECTIVE = objective()
CHANNELS = groups_along(OBJECTIVE.space, {"0.weight": 0, "0.bias": 0, "3.weight": 1}, 4)


def test_groups_are_slices_of_the_parameters():
    marks = {n: torch.zeros(s) for n, s in zip(OBJECTIVE.space.names, OBJECTIVE.space.shapes, strict=True)}
    for i in range(4):
        marks["0.weight"][i] = marks["0.bias"][i] = marks["3.weight"][:, 4 * i : 4 * i + 4] = i + 1
    flat = torch.cat([m.reshape(-1) for m in marks.values()])
    for i, c in enumerate(CHANNELS):
        assert torch.equal(c.sort().values, (flat == i + 1).nonzero()[:, 0])


def test_heads_are_stretches_of_rows_and_of_columns():
    attention = nn.MultiheadAttention(8, 4)
    space = Space.of({n: p for n, p in attention.named_parameters() if p.ndim > 1 and n.startswith("out")})
    heads = groups_along(space, {"out_proj.weight": 1}, 4)
    assert [len(h) for h in heads] == [16] * 4
    assert torch.equal(heads[1].sort().values, torch.arange(64).view(8, 8)[:, 2:4].reshape(-1))


@pytest.mark.parametrize("groups", [None, CHANNELS])
def test_measures_are_those_of_dense_matrices(groups):
    w, g, H = OBJECTIVE.point, OBJECTIVE.gradient(), hessian(OBJECTIVE).dense()
    B = inverse_curvature(OBJECTIVE, damping=0.1)
    F, M = B.gradients.T @ B.gradients / 40, B.dense()
    units = [torch.tensor([i]) for i in range(len(w))] if groups is None else groups
    expected = {
        "magnitude": [w[c].square().sum() for c in units],
        "obd": [(w[c].square() * F.diagonal()[c]).sum() / 2 for c in units],
        "obs": [w[c] @ torch.linalg.solve(M[c][:, c], w[c]) / 2 for c in units],
        "apoptosis": [(w[c] * (H @ w)[c]).sum().abs() for c in units],
    }
    if groups is not None:
        expected["quadratic"] = [-g[c] @ w[c] + w[c] @ H[c][:, c] @ w[c] / 2 for c in units]
    for ranking, values in expected.items():
        found = saliency(OBJECTIVE, ranking, inverse=B, groups=groups)
        torch.testing.assert_close(found, torch.stack(values), rtol=1e-8, atol=1e-12, msg=ranking)


def test_inter_layer_products_are_what_lies_between_parameters():
    w, g, H = OBJECTIVE.point, OBJECTIVE.gradient(), hessian(OBJECTIVE).dense()
    space = OBJECTIVE.space
    block = torch.cat([torch.full((s,), float(i)) for i, s in enumerate(space.sizes)])
    within = H * (block[:, None] == block)
    expected = torch.stack([-g[c] @ w[c] + w[c] @ within[c][:, c] @ w[c] / 2 for c in CHANNELS])
    found = saliency(OBJECTIVE, "quadratic", groups=CHANNELS, across=False)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    whole = saliency(OBJECTIVE, "quadratic", groups=CHANNELS)
    assert float((whole - found).abs().max()) > 0.1 * float(found.abs().max())


def test_the_quadratic_is_the_second_order_of_the_loss_when_a_channel_fades():
    w, c = OBJECTIVE.point, CHANNELS[2]

    def faded(t):
        x = w.clone()
        x[c] *= 1 - t
        return float(OBJECTIVE.value(x))

    h = 1e-3
    slope, curved = (faded(h) - faded(-h)) / (2 * h), (faded(h) - 2 * faded(0) + faded(-h)) / h**2
    assert float(saliency(OBJECTIVE, "quadratic", groups=CHANNELS)[2]) == pytest.approx(slope + curved / 2, rel=1e-4)


def test_wrong_arguments_are_named():
    space = OBJECTIVE.space
    for call, sentence in (
        (lambda: groups_along(space, {"7.weight": 0}, 2), "axes must name trainable parameters, got '7.weight'"),
        (lambda: groups_along(space, {"0.bias": 1}, 2), "the axis of '0.bias' must be one of 1, got 1"),
        (lambda: groups_along(space, {"0.bias": 0}, 3), r"number must divide axis 0 of '0.bias' \(4,\), got 3"),
        (lambda: groups_along(space, {}, 3), "groups_along: axes must name a parameter, got none"),
        (lambda: saliency(OBJECTIVE, "loss"), "saliency: ranking must be one of magnitude, obd, obs, apoptosis"),
        (lambda: saliency(OBJECTIVE, "obs"), "saliency: inverse must be given for ranking='obs'"),
        (lambda: saliency(OBJECTIVE, "quadratic"), "saliency: groups must be given for ranking='quadratic', got None"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.mark.parametrize(
    "group",
    [
        torch.tensor([1, 1]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([-1, 2]),
        torch.tensor([10_000]),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(0, dtype=torch.long),
        torch.tensor([[0, 1]]),
    ],
)
@pytest.mark.parametrize("ranking", ["magnitude", "quadratic"])
def test_groups_that_name_a_weight_twice_or_none_are_refused(group, ranking):
    o = objective()
    with pytest.raises(ValueError, match="saliency: each group must be indices from 0 to"):
        saliency(o, ranking, groups=[group])
    with pytest.raises(ValueError, match="prune: each group must be indices from 0 to"):
        prune(o, 0.5, ranking=ranking, groups=[group])


def test_masks_are_groups_too():
    o = objective()
    mask = torch.arange(o.space.dim) % 3 == 0
    both = [mask, ~mask]
    for ranking in ("magnitude", "obd", "quadratic"):
        found = saliency(o, ranking, groups=both)
        torch.testing.assert_close(found, saliency(o, ranking, groups=[m.nonzero()[:, 0] for m in both]))
    assert float((prune(o, 0.5, ranking="magnitude", groups=both).x != 0).double().mean()) < 1
