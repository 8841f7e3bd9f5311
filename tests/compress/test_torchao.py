import builtins
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy
from frechet.compress import allocate_bits, module_bits, quantized, sensitivity, torchao_config, torchao_rounding


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


def data():
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(50, 64, generator=g), torch.randint(0, 4, (50,), generator=g))]


def rounded_by_hand(weight, bits, group):
    """Integers from -2^(b-1) to 2^(b-1) - 1 with the scale max |w| / (2^(b-1) - 1/2), number by number."""
    found = weight.clone()
    for i, row in enumerate(weight.tolist()):
        size = len(row) if group is None else group
        for a in range(0, len(row), size):
            part = row[a : a + size]
            scale = max(map(abs, part)) / (2 ** (bits - 1) - 0.5)
            for j, w in enumerate(part):
                level = min(max(round(w / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
                found[i, a + j] = level * scale
    return found


@dataclass(frozen=True)
class Granularity:
    """`PerAxis` and `PerGroup` of the stand-in."""

    size: int


@dataclass(frozen=True)
class WeightOnly:
    """`IntxWeightOnlyConfig` of the stand-in."""

    weight_dtype: torch.dtype
    granularity: Granularity | None


@dataclass(frozen=True)
class ByName:
    """`FqnToConfig` of the stand-in."""

    config: dict[str, WeightOnly]


class Stored(nn.Parameter):
    """A weight that was rounded."""


def stand_in():
    """A module with the five names of torchao that are used, which rounds number by number."""
    ao: Any = ModuleType("torchao.quantization")
    ao.PerAxis, ao.PerGroup = lambda axis: None if axis == 0 else 1 / 0, Granularity
    ao.IntxWeightOnlyConfig, ao.FqnToConfig = WeightOnly, ByName

    def quantize_(model, config, filter_fn=None):
        pairs = {"": config} if isinstance(config, WeightOnly) else config.config
        for name, c in pairs.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            bits = int(str(c.weight_dtype).removeprefix("torch.int"))
            group = None if c.granularity is None else c.granularity.size
            layer.weight = Stored(rounded_by_hand(layer.weight.detach(), bits, group), requires_grad=False)

    ao.quantize_ = quantize_
    return ao


@pytest.fixture(params=["torchao", "stand-in"])
def ao(request, monkeypatch):
    """torchao where it is installed, and everywhere a stand-in that shares no code with it or with the library."""
    if request.param == "torchao":
        return pytest.importorskip("torchao.quantization")
    made = stand_in()
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", made)
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_its_rounding_is_that_by_hand(ao, bits, group):
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(bits))
    size = 32 if group is None else group
    step = weight.view(5, -1, size).abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 0.5)
    found, by_hand = torchao_rounding(weight, bits, group=group), rounded_by_hand(weight, bits, group)
    off = (found - by_hand).abs().view(5, -1, size)
    ties = ((weight.view(5, -1, size) / step).frac().abs() - 0.5).abs() < 1e-4  # either neighbour is right
    assert bool((off <= torch.where(ties, 1.001 * step, 1e-4 * step)).all())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("group", [None, 16])
def test_the_loss_of_the_plan_is_that_of_the_model_that_torchao_quantizes(ao, group):
    model = net()
    objective = Objective(model, cross_entropy(), data())

    def rounding(weight, bits):
        return torchao_rounding(weight, bits, group=group)

    table = sensitivity(objective, (2, 3, 4, 8), quantizer=rounding, measured=True)
    plan = allocate_bits(table, 500)
    predicted = float(objective.value(quantized(objective, plan.bits, quantizer=rounding)))
    ao.quantize_(model, torchao_config(model, plan.bits, group=group), filter_fn=None)
    (X, y), *_ = data()
    with torch.no_grad():
        assert float(nn.functional.cross_entropy(model(X), y)) == pytest.approx(predicted, rel=1e-5)
    assert type(model[0].weight).__name__ != "Parameter"
    assert len(set(plan.bits.values())) == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_rounded_row_has_as_many_values_as_the_bits_can_tell(ao, bits):
    weight = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torchao_rounding(weight, bits)
    assert found.dtype == torch.float64
    for row in found:
        assert 2 ** (bits - 1) < len(row.unique()) <= 2**bits
    worst = weight.abs().amax(1) / (2 ** (bits - 1) - 0.5)
    assert bool(((found - weight).abs().amax(1) <= worst * 1.01).all())


def test_the_plan_is_a_plain_dictionary_without_torchao(monkeypatch):
    assert module_bits({"0.weight": 4, "weight": 2}) == {"0": 4, "": 2}
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("torchao"):
            raise ImportError(name)
        return real(name, *rest)

    for name in [n for n in sys.modules if n.startswith("torchao")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"torchao_config: torchao must be installed.*module_bits\(plan.bits\)"):
        torchao_config(net(), {"0.weight": 4})
    with pytest.raises(ImportError, match="torchao_rounding: torchao must be installed"):
        torchao_rounding(torch.ones(2, 2), 4)


def test_wrong_arguments_are_named():
    for call, sentence in (
        (lambda: module_bits({"0.bias": 4}), "module_bits: bits must be of weights of modules, got '0.bias'"),
        (lambda: torchao_config(net(), {"1.weight": 4}), r"bits must be of Linear layers, got '1' \(ReLU\)"),
        (lambda: torchao_config(net(), {"0.weight": 9}), "bits must lie between 1 and 8, got 9 for '0'"),
        (lambda: torchao_rounding(torch.ones(3), 4), r"weight must be a matrix, got shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
