"""Frozen parts that are run once: fewer runs, the same numbers, and left alone where outputs hang on more."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy
from frechet.analyze import loss_slices
from frechet.objective._remembered import MISSES, Remembered
from frechet.operators._proof import check


class Runs:
    """A number that passes do not put back."""

    number = 0


class Cache:
    """What transformers return beside their hidden states: an object that holds tensors in lists of objects."""

    def __init__(self, *keys):
        self.layers = [Cache(key[None]) for key in keys] if keys[0].ndim == 2 else []
        self.keys, self.kind = keys[0], type(keys[0])


class Body(nn.Module):
    """A frozen layer that counts its runs; `kind` is what its output hangs on beside its input."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.runs, self.scale = kind, Runs(), 1.0
        self.layer = nn.Linear(4, 6).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.outside: list[torch.Tensor] = []
        if kind == "hook":
            self.layer.register_forward_hook(lambda m, given, out: self.outside.append(out))

    def forward(self, x):
        self.runs.number += 1
        y = self.layer(x).tanh()
        if self.kind == "closure":
            return y * self.outside[0].sum()
        if self.kind == "grad mode" and not torch.is_grad_enabled():
            return 2 * y
        if self.kind == "attribute left":
            self.hidden = y * 1.0
        if self.kind == "attribute read":
            y = y * self.scale
        if self.kind == "random":
            y = y + 0.1 * torch.rand(())
        if self.kind == "python's random":
            y = y + 0.1 * random.random()
        if self.kind == "buffer":
            self.seen += 1
            y = y * self.seen
        if self.kind == "input":
            x += 1
        if self.kind == "the input itself":
            return x
        if self.kind in ("object", "object changed", "object written"):
            return y, Cache(y * 2, y * 3)
        return {"hidden": y, "none": None} if self.kind == "dict" else y


class Net(nn.Module):
    """A trainable head on a frozen body, joined in the ways in which `kind` says."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.body = kind, Body(kind)
        self.first = nn.Linear(4, 4) if kind == "moving input" else nn.Identity()
        self.head = nn.Linear(4 if kind == "the input itself" else 6, 3)
        if kind == "closure":
            self.body.outside.append(self.head.weight)

    def forward(self, x):
        if self.kind == "attribute read":
            self.body.scale = self.head.bias.sum() + 2
        y = self.body(self.first(x))
        if self.kind == "hook":
            y = y + self.body.outside[-1]
            self.body.outside.clear()
        if self.kind == "attribute left":
            y = y + self.body.hidden
        if self.kind == "twice":
            y = y + self.body(x.flip(0))
        if self.kind == "dict":
            y = y["hidden"]
        if self.kind.startswith("object"):
            y, cache = y
            y = y + cache.layers[1].keys[0]
            if self.kind == "object changed":
                cache.layers[1].keys = self.head.weight[None, :, :].sum(1)
            if self.kind == "object written":
                cache.layers[1].keys += self.head.bias.detach().sum()
        if self.kind == "input":
            y = y + x.sum()
        if self.kind == "written":
            y += self.head.weight.sum(0)
        return self.head(y)


KINDS = (
    "plain", "dict", "object", "twice", "object changed", "object written",
    "moving input", "closure", "hook", "attribute left", "attribute read", "buffer", "input",
    "written", "the input itself",
)  # fmt: skip


def problem(kind: str) -> tuple[Net, Objective]:
    torch.manual_seed(0)
    net = Net(kind).double()
    data = [(torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))) for n in (5, 5, 3)]
    return net, Objective(net, cross_entropy(), data)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_model_wherever_the_parameters_are(kind):
    net, objective = problem(kind)
    d = torch.randn(objective.space.dim, 1, dtype=torch.float64)
    steps = torch.linspace(-1, 1, 7, dtype=torch.float64)
    found = loss_slices(objective, d, radius=1.0, points=7).losses[0]
    plain = torch.stack([objective.value(objective.point + a * d[:, 0]) for a in steps])
    torch.testing.assert_close(found, plain, rtol=1e-14, atol=0)
    assert "forward" not in net.body.__dict__


@pytest.mark.parametrize("kind", [*KINDS, "grad mode"])
def test_two_runs_at_one_point_prove_nothing_about_another(kind):
    _, objective = problem(kind)
    d = torch.randn(objective.space.dim, dtype=torch.float64)
    places = [objective.point, objective.point, objective.point + d, objective.point - d]
    with Remembered(objective.snapshot()):
        found = [(objective.value(x), objective.gradient(x)) for x in places]
    for x, (value, gradient) in zip(places, found, strict=True):
        assert torch.equal(value, objective.value(x))
        assert torch.equal(gradient, objective.gradient(x))


@pytest.mark.parametrize("kind", KINDS)
def test_values_alone_at_one_point_prove_nothing_about_another(kind):
    _, objective = problem(kind)
    d = torch.randn(objective.space.dim, dtype=torch.float64)
    places = [objective.point, objective.point, objective.point, objective.point + d]
    with Remembered(objective.snapshot()):
        found = [objective.value(x) for x in places]
    assert [float(v) for v in found] == [float(objective.value(x)) for x in places]


def test_inputs_that_look_alike_are_compared_whole():
    net, objective = problem("plain")
    x = torch.zeros(10, 4, dtype=torch.float64)
    other = x.clone()
    other.view(-1)[1], other.view(-1)[3] = 1.0, -1.0  # between the numbers by which an input is looked up
    with Remembered(objective.snapshot()):
        y = [net.body(x) for _ in range(3)][-1]
        z = net.body(other)
    assert torch.equal(z, net.body(other))
    assert not torch.equal(z, y)


@pytest.mark.parametrize(("kind", "calls"), [("plain", 1), ("dict", 1), ("object", 1), ("twice", 2)])
def test_a_frozen_body_runs_twice_for_each_of_its_inputs(kind, calls):
    net, objective = problem(kind)
    remembered = Remembered(objective.snapshot())
    d = torch.randn(objective.space.dim, dtype=torch.float64)
    with remembered:
        values = [objective.value(objective.point + a * d) for a in (0.1, 0.2, 0.3, 0.4)]
        gradients = [objective.gradient(objective.point + a * d) for a in (0.1, 0.2)]
    assert net.body.runs.number == 2 * 2 * 3 * calls  # three batches, with gradients and without
    with remembered:  # entered anew it still knows
        objective.value()
    assert net.body.runs.number == 2 * 2 * 3 * calls
    assert [float(v) for v in values] == [float(objective.value(objective.point + a * d)) for a in (0.1, 0.2, 0.3, 0.4)]
    for a, g in zip((0.1, 0.2), gradients, strict=True):
        assert torch.equal(g, objective.gradient(objective.point + a * d))


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("plain", "dict", "object", "twice")])
def test_what_hangs_on_more_than_its_input_runs_each_time(kind):
    net, objective = problem(kind)
    d = torch.randn(objective.space.dim, dtype=torch.float64)
    with Remembered(objective.snapshot()):
        for a in range(5):
            objective.value(objective.point + 0.1 * a * d)
    assert net.body.runs.number - 5 * 3 in (0, 1)  # one more where the run with moved parameters told


@pytest.mark.parametrize("kind", ["random", "python's random"])
def test_random_parts_draw_each_time(kind):
    net, objective = problem("plain")
    with Remembered(objective.snapshot()):
        net.body.kind = kind
        x = torch.ones(2, 4, dtype=torch.float64)
        assert not torch.equal(net.body(x), net.body(x))
        assert not torch.equal(net.body(x), net.body(x))


@pytest.mark.parametrize("kind", ["plain", "dict", "twice"])
def test_check_proves_the_head_with_a_body_that_runs_six_times_for_each_batch(kind):
    net, objective = problem(kind)
    found = check(objective)
    assert all(p.proved for p in found.proved)
    # the passes over the data that must repeat come first: six or less, and the last example alone; then the proof,
    # the model's own passes, and ours with gradients and without
    assert net.body.runs.number <= ((6 + 6) * 3 + 1) * (2 if kind == "twice" else 1)


def test_other_inputs_and_modes_are_told_apart():
    net, objective = problem("plain")
    x = torch.randn(3, 4, dtype=torch.float64)
    other = x.flip(0)  # the same sum
    with Remembered(objective.snapshot()):
        y = [net.body(x) for _ in range(3)][-1]
        assert torch.equal(net.body(other), y.flip(0))
        assert net.body(x.float().double()).shape == y.shape
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            assert net.body(leaf).requires_grad
        batched = torch.func.vmap(net.body)(x)
    torch.testing.assert_close(batched, y)


def test_a_part_that_never_meets_an_input_again_holds_nothing():
    net, objective = problem("plain")
    remembered = Remembered(objective.snapshot())
    with remembered:
        for i in range(MISSES + 2):
            net.body(torch.full((1, 4), float(i), dtype=torch.float64))
    assert remembered.parts is not None
    assert all(part.alone and not part.entries and part.held.bytes == 0 for part in remembered.parts)


def test_the_model_is_as_it_was_after_an_error():
    net, objective = problem("plain")
    with pytest.raises(RuntimeError, match="shapes"), Remembered(objective.snapshot()):
        net.body(torch.ones(2, 5, dtype=torch.float64))
    assert "forward" not in net.body.__dict__
