"""Spectral norms of weights and updates against sqrt(out / in): linear, convolution, embedding, fused, tied, large."""

import math

import pytest
import torch
from torch import nn

from frechet.analyze import spectral_check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.qkv = nn.Linear(8, 24)
        self.conv = nn.Conv2d(4, 6, 3)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.embed.weight  # tied: comes once


def test_norms_and_ratios():
    torch.manual_seed(0)
    model = Net()
    found = {m.name: m for m in spectral_check(model, fused={"qkv*": 3}).matrices}
    assert sorted(found) == ["conv.weight", "embed.weight", "qkv.weight[0]", "qkv.weight[1]", "qkv.weight[2]"]

    def top(W, order):
        return torch.linalg.matrix_norm(W.detach(), order)

    assert found["qkv.weight[1]"].norm == pytest.approx(float(top(model.qkv.weight[8:16], 2)), rel=1e-5)
    assert found["qkv.weight[1]"].ratio == pytest.approx(found["qkv.weight[1]"].norm)  # 8 x 8
    embed = found["embed.weight"]
    assert (embed.fan_out, embed.fan_in) == (8, 30)
    assert embed.ratio == pytest.approx(float(top(model.embed.weight, 2)) / math.sqrt(8 / 30), rel=1e-5)
    conv = found["conv.weight"]
    assert (conv.fan_out, conv.fan_in) == (6, 4)
    assert conv.ratio == pytest.approx(
        float(top(model.conv.weight.reshape(6, 36), 2)) / (math.sqrt(6 / 4) / 9), rel=1e-5
    )


def test_updates_and_the_factors_that_would_make_them_alike():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p, size in zip(model.parameters(), (0.1, 0.2, 0.4), strict=True):
            p += size * torch.eye(4)
    found = spectral_check(model, before)
    assert [m.update for m in found.matrices] == pytest.approx([0.1, 0.2, 0.4], rel=1e-5)
    assert list(found.rate_factors().values()) == pytest.approx([2.0, 1.0, 0.5], rel=1e-5)
    assert "update" in found._table()[0]
    with pytest.raises(ValueError, match="needs updates"):
        spectral_check(model).rate_factors()


def test_a_large_matrix_goes_by_products():
    model = nn.Linear(1100, 1050, bias=False)
    with torch.no_grad():
        model.weight.mul_(0.01)
        model.weight[0, 0] += 5.0
    found = spectral_check(model).matrices[0]
    assert found.norm == pytest.approx(float(torch.linalg.matrix_norm(model.weight.detach(), 2)), rel=2e-3)


def test_bad_arguments():
    model = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="got none called 'weight'"):
        spectral_check(model, {})
    with pytest.raises(ValueError, match="fused must divide the 4 rows of 'weight', got 3"):
        spectral_check(model, fused={"weight": 3})
