import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from frechet.compress import as_torch_prune, keep_zeros


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def masks(model):
    g = torch.Generator().manual_seed(1)
    return {n: torch.rand(p.shape, generator=g) > 0.5 for n, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("made", [torch.optim.SGD, torch.optim.AdamW])
def test_fine_tuning_keeps_the_zeros_and_moves_the_rest(made):
    model = net()
    kept = masks(model)
    options = {"momentum": 0.9} if made is torch.optim.SGD else {}
    optimizer = made(model.parameters(), lr=0.1, **options)
    X, y = torch.randn(30, 4), torch.randint(0, 2, (30,))
    zeros = sum(int((~m).sum()) for m in kept.values())
    assert keep_zeros(model, kept) == zeros
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), y)
        loss.backward()
        optimizer.step()
        keep_zeros(model, kept)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for n, p in model.named_parameters():
        if n in kept:
            assert not bool(p[~kept[n]].any())
            assert bool((p[kept[n]] != before[n][kept[n]]).any())


def test_masks_of_torch_are_the_same_and_can_be_made_plain():
    ours, theirs = net(), net()
    kept = masks(ours)
    keep_zeros(ours, kept)
    places = as_torch_prune(theirs, kept)
    X = torch.randn(5, 4)
    torch.testing.assert_close(ours(X), theirs(X))
    assert [name for _, name in places] == ["weight", "weight"]
    for module, name in places:
        assert torch_prune.is_pruned(module)
        torch_prune.remove(module, name)
    for (n, p), q in zip(
        theirs.named_parameters(), (dict(ours.named_parameters())[m] for m, _ in theirs.named_parameters()), strict=True
    ):
        torch.testing.assert_close(p, q, msg=n)


def test_wrong_masks_are_named():
    model = net()
    for given, sentence in (
        ({"9.weight": torch.ones(2)}, "masks must name parameters of the model, got '9.weight'"),
        (
            {"0.weight": torch.ones(8, 4)},
            r"'0.weight' must be torch.bool of shape \(8, 4\), got torch.float32",
        ),
        ({"0.weight": torch.ones(4, 8) > 0}, r"must be torch.bool of shape \(8, 4\), got torch.bool of shape \(4, 8\)"),
    ):
        for function in (keep_zeros, as_torch_prune):
            with pytest.raises(ValueError, match=sentence):
                function(model, given)


def test_a_shared_weight_is_masked_in_all_its_modules_and_stays_shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    kept = {"0.weight": torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) > 0.5}
    assert len(as_torch_prune(model, kept)) == 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    model(torch.ones(2, 4))
    assert torch.equal(model[0].weight, model[2].weight)
    assert bool((model[2].weight[~kept["0.weight"]] == 0).all())
