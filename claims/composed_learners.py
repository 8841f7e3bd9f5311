"""B. Fong, D. I. Spivak, R. Tuyéras (2017), Backprop as functor, arXiv 1711.10455.

Claim: learners compose: update and request of two learners in a row are those of the composed map. Here: random maps,
quadratic error, request a - dE/da; both sides to rounding.
"""

from __future__ import annotations

import torch
from claim import Claim

from frechet import jacobian

RATE = 0.1


def error_of(f):
    return lambda p, a, b: (f(p, a) - b).square().sum() / 2


def update(f, p, a, b):
    """p - rate J_p' (f - b), with the Jacobian as an operator."""
    return p - RATE * (jacobian(lambda p: f(p, a), p).T @ (f(p, a) - b))


def request(f, p, a, b):
    """The input that the learner asks for."""
    return a - jacobian(lambda a: f(p, a), a).T @ (f(p, a) - b)


def first(p, a):
    return torch.tanh(p.view(4, 3) @ a) + 0.1 * a.sum()


def second(q, a):
    return torch.sin(q.view(2, 4) @ a) * a[:2]


def both(pq, a):
    return second(pq[12:], first(pq[:12], a))


def measure() -> Claim:
    """The largest difference over twenty draws."""
    worst = 0.0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        p, q, a, b = (torch.randn(n, generator=draw).double() for n in (12, 8, 3, 2))
        middle = request(second, q, first(p, a), b)
        ours = torch.cat([update(first, p, a, middle), update(second, q, first(p, a), b)])
        asked = request(first, p, a, middle)
        pq = torch.cat([p, q])
        worst = max(worst, float((ours - update(both, pq, a, b)).abs().max()))
        worst = max(worst, float((asked - request(both, pq, a, b)).abs().max()))
    return Claim(
        paper="Fong, Spivak, Tuyéras 2017, arXiv 1711.10455",
        claim="update and request of composed learners are those of the composed map",
        theirs="a theorem: gradient descent is a functor",
        ours=f"largest difference over 20 random pairs of maps {worst:.0e}",
        verdict="holds" if worst < 1e-12 else "does not hold here",
        why="a request is the target moved by the cotangent, and cotangents compose by transposes",
        name="jacobian",
    )
