"""M. Huot, S. Staton, M. Vákár (2020), Correctness of automatic differentiation via diffeologies, arXiv 2001.02209.

Claim: forward and reverse derivatives of higher-order programs are right, branches and closures included. Here: a
corpus of such programs, both modes and one-sided derivatives at points off the branches' borders.
"""

from __future__ import annotations

import functools

import torch
from claim import Claim

from frechet.calculus.kinks import one_sided_derivative


def twice(f):
    return lambda x: f(f(x))


def folded(x):
    return functools.reduce(lambda acc, t: acc * torch.cos(t) + t, x.unbind(), x.new_ones(()))


def branched(x):
    return torch.sin(x).sum() if float(x.detach().sum()) > 0 else x.exp().prod()


def closures(x):
    table = {k: (lambda y, k=k: y**k) for k in range(1, 4)}
    return sum(f(x).sum() / k for k, f in table.items())


def loop(x):
    y, n = x, 0
    while float(y.square().sum().detach()) < 50 and n < 30:
        y, n = 1.3 * y + 0.1 * torch.sin(y), n + 1
    return y.sum()


def recursive(x):
    return x.sum() if len(x) == 1 else recursive(torch.tanh(x[:-1] + x[1:])) + x[0]


CORPUS = {
    "map of a function applied twice": lambda x: twice(lambda y: torch.tanh(y) + y * y)(x).sum(),
    "fold": folded, "branch": branched, "closures": closures, "loop": loop, "recursion": recursive,
    "where": lambda x: torch.where(x > 0, x.square(), -3 * x).sum(),
}  # fmt: skip


def measure() -> Claim:
    """The largest disagreement of three derivatives over the corpus at ten points each."""
    modes, sides = 0.0, 0.0
    for f in CORPUS.values():
        for seed in range(10):
            draw = torch.Generator().manual_seed(seed)
            x, v = (torch.randn(4, generator=draw).double() for _ in range(2))
            leaf, dual = x.clone().requires_grad_(), torch.autograd.forward_ad
            reverse = torch.autograd.grad(f(leaf), leaf)[0] @ v
            with dual.dual_level():
                forward = dual.unpack_dual(f(dual.make_dual(x, v))).tangent
            step = 1e-5
            difference = (f(x + step * v) - f(x - step * v)) / (2 * step)
            modes = max(modes, float((forward - reverse).abs() / (1 + reverse.abs())))
            sides = max(sides, float((difference - reverse).abs() / (1 + reverse.abs())))
    kink = one_sided_derivative(CORPUS["where"], torch.zeros(4).double(), torch.ones(4).double())
    return Claim(
        paper="Huot, Staton, Vákár 2020, arXiv 2001.02209",
        claim="forward and reverse derivatives of programs with closures and branches are right",
        theirs="a proof by logical relations",
        ours=f"{len(CORPUS)} programs: modes agree to {modes:.0e}, with differences to {sides:.0e}; on a border "
        f"autograd's derivative is {'between' if bool(kink.agrees) else 'outside'} the sides",
        verdict="holds" if modes < 1e-12 and sides < 1e-6 and bool(kink.agrees) else "does not hold here",
        why="a program's derivative is that of the piece it takes",
        name="one_sided_derivative",
    )
