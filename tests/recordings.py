"""Recordings of products, for tests: made with one vector and played back with another."""

import torch

from frechet.recording._replay import record


def vector(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def played_back(product, *shapes):
    """What a recording of `product` gives for a vector that it was not made with, and what it should give."""
    replay = record(product, [vector(*s) for s in shapes])
    other = [vector(*s, seed=1) for s in shapes]
    return replay, replay(other), product([v.clone() for v in other])


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
