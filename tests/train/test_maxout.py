import math

import pytest
import torch
from torch import nn

from frechet.train import Maxout, initialize_maxout, maxout_variance

F64 = torch.float64


@pytest.mark.parametrize(
    ("rank", "moment"),
    [(1, 1.0), (2, 1.0), (3, 1 + math.sqrt(3) / (2 * math.pi)), (4, 1 + math.sqrt(3) / math.pi)],
)
def test_the_moments_of_the_largest_normal_have_their_closed_forms(rank, moment):
    assert maxout_variance(rank) == pytest.approx(1 / moment, rel=1e-12)


def test_the_moments_of_many_are_those_of_draws():
    z = torch.randn(200_000, 10, generator=torch.Generator().manual_seed(0)).amax(1).square()
    assert abs(float(z.mean()) - 1 / maxout_variance(10)) < 4 * float(z.std()) / math.sqrt(200_000)


def test_a_unit_is_the_maximum_of_its_linear_functions():
    layer = Maxout(3, 2, 4, seed=0).double()
    with torch.no_grad():
        layer.linear.bias.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 3, dtype=F64)
    rows = layer.linear(x).view(5, 2, 4)
    torch.testing.assert_close(layer(x), rows.max(2).values)
    assert layer(x[None]).shape == (1, 5, 2)


@pytest.mark.parametrize("layer", [nn.Linear(50, 400), nn.Conv2d(5, 400, 3)])
def test_the_initialization_has_its_variance_and_seed(layer):
    initialize_maxout(layer, 3, seed=0)
    first, fan_in = layer.weight.detach().clone(), layer.weight[0].numel()
    variance = maxout_variance(3) / fan_in
    n = first.numel()
    assert abs(float(first.var()) - variance) < 4 * variance * math.sqrt(2 / n)
    assert not bool(layer.bias.any())
    initialize_maxout(layer, 3, seed=0)
    assert torch.equal(first, layer.weight)
    initialize_maxout(layer, 3, seed=1)
    assert not torch.equal(first, layer.weight)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="rank must be a positive int"):
        maxout_variance(0)
    with pytest.raises(ValueError, match="must be linear or convolutional, got ReLU"):
        initialize_maxout(nn.ReLU(), 2, seed=0)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: nn.Conv2d(8, 120, 3, groups=2), 36),
        (lambda: nn.ConvTranspose2d(8, 120, 3), 72),
        (lambda: nn.ConvTranspose2d(8, 120, 4, stride=2, groups=2), 16),
        (lambda: nn.ConvTranspose1d(8, 400, 4, stride=2), 16),
    ],
)
def test_the_fan_in_is_what_an_output_sums_over(layer, fan_in):
    made = layer()
    initialize_maxout(made, 2, seed=0)
    x = torch.randn(1, 8, *[40] * (made.weight.ndim - 2), generator=torch.Generator().manual_seed(1))
    inner = (slice(None), slice(None), *[slice(4, -4)] * (made.weight.ndim - 2))
    with torch.no_grad():
        assert float(made(x)[inner].var()) == pytest.approx(1.0, abs=0.1)
        assert float(made.weight.var()) * fan_in == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.Embedding(5, 4), nn.Bilinear(2, 3, 4), nn.ReLU()])
def test_layers_of_other_kinds_are_refused(layer):
    with pytest.raises(ValueError, match="initialize_maxout: layer must be linear or convolutional, got"):
        initialize_maxout(layer, 2, seed=0)


def test_the_layer_of_gpt2_sums_over_its_first_axis():
    transformers = pytest.importorskip("transformers")
    layer = transformers.pytorch_utils.Conv1D(400, 50)
    initialize_maxout(layer, 2, seed=0)
    assert float(layer.weight.detach().var()) * 50 == pytest.approx(1.0, abs=0.05)
