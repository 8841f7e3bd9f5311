"""What a product over few trainable parameters costs: operations counted, and entries saved for a backward pass."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian
from laws import block
from objective_cases import randn, seeded

WIDTH, DEPTH, RANK, EXAMPLES = 32, 6, 2, 16


class Adapted(nn.Module):
    """A frozen layer and a trainable low-rank update."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)

    def forward(self, x):
        return (self.base(x) + self.up(self.down(x))).tanh()


ADAPTERS = [f"{DEPTH - 2}.down.*", f"{DEPTH - 2}.up.*"]  # two layers of the base lie above, four below and beside


def made(frozen):
    model = seeded(lambda: nn.Sequential(*(Adapted() for _ in range(DEPTH))))
    if frozen:
        for name, p in model.named_parameters():
            p.requires_grad_(name.startswith((f"{DEPTH - 2}.down", f"{DEPTH - 2}.up")))
    return Objective(model, squared_error(), [(randn(EXAMPLES, WIDTH), randn(EXAMPLES, WIDTH, seed=1))])


def operations(f):
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()


def saved_entries(f):
    """Entries of the different activations that are saved for a backward pass."""
    kept = {}

    def pack(t):
        if t.shape[:1] == (EXAMPLES,):
            kept[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f()
    return sum(kept.values())


def product(make, frozen, route, restricted=None):
    A = make(made(frozen), route=route, restrict=restricted)
    v = block(A.domain, 1, 1)
    return lambda: A @ v


FORWARD = 2 * EXAMPLES * DEPTH * (WIDTH * WIDTH + 2 * WIDTH * RANK)
LAYER = FORWARD // DEPTH
# beyond the forward pass, in forward passes of one layer; a derivative of the adapters goes through two layers
ALLOWED = {
    (hessian, "reverse"): 3.7,
    (hessian, "forward"): 5.8,
    (gauss_newton, "reverse"): 3.6,
    (gauss_newton, "forward"): 3.5,
    (jacobian, "reverse"): 2.4,
    (jacobian, "forward"): 2.3,
}


@pytest.mark.parametrize(("make", "route"), list(ALLOWED), ids=lambda p: getattr(p, "__name__", p))
def test_a_product_over_adapters_pays_a_forward_pass_and_the_layers_above(make, route):
    assert operations(lambda: made(True).value()) == FORWARD
    frozen, restricted = product(make, True, route), product(make, False, route, ADAPTERS)
    cost = operations(frozen)
    assert cost == operations(restricted)
    assert cost <= FORWARD + ALLOWED[make, route] * LAYER
    everything = operations(product(make, False, route))
    assert everything > 2 * cost


@pytest.mark.parametrize("make", [hessian, gauss_newton])
def test_nothing_is_kept_of_the_layers_below_and_beside(make):
    frozen = saved_entries(product(make, True, "reverse"))
    assert frozen == saved_entries(product(make, False, "reverse", ADAPTERS))
    assert frozen < 0.4 * saved_entries(product(make, False, "reverse"))


def test_the_gradient_of_adapters_costs_no_more():
    assert operations(made(True).gradient) <= FORWARD + 1.2 * LAYER
    assert operations(made(False).gradient) > 2.5 * FORWARD
