import math

import pytest
import torch

from frechet.recording._proof import difference, finite, goes_in_blocks, probe
from frechet.recording._replay import record
from frechet.space import Space
from recordings import vector

EPS = 2.0**-52


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_a_small_block_may_not_be_wrong_beside_a_large_one(scale):
    large, small = scale * vector(100), scale * 1e-6 * vector(5, seed=1)
    assert difference([large, small], [large.clone(), small.clone()], EPS) == ""
    assert "differs from a plain product" in difference([large, small], [large, -small], EPS)
    assert "differs from a plain product" in difference([large, small], [large, small * (1 + 1e-4)], EPS)
    assert difference([large, small], [large * (1 + 1e-12), small * (1 + 1e-12)], EPS) == ""


def test_rounding_in_a_block_that_cancels_is_no_difference():
    assert difference([vector(100), torch.zeros(5)], [vector(100), 1e-15 * vector(5)], EPS) == ""


def test_other_shapes_and_what_is_not_finite_differ():
    assert "another shape" in difference([vector(3)], [vector(4)], EPS)
    assert difference([vector(3)], [vector(3) * math.nan], EPS)
    assert not finite([vector(3), torch.tensor([math.inf])])
    assert finite([vector(3), torch.zeros(0)])


def test_a_probe_is_gaussian_and_the_same_each_time():
    space = Space.of({"a": torch.zeros(300, 10), "b": torch.zeros(7)})
    v = torch.cat([b.reshape(-1) for b in probe(space, 0)])
    assert torch.equal(v, torch.cat([b.reshape(-1) for b in probe(space, 0)]))
    assert len(v.unique()) > 3000
    assert abs(float(v.square().mean()) - 1) < 0.1


def test_blocks_are_refused_where_they_are_not_their_columns():
    space = Space.of({"": torch.zeros(4, dtype=torch.float64)})
    M = vector(4, 4, seed=3)
    good = record(lambda v: [M @ v[0]], [vector(4)])
    assert goes_in_blocks(good, space)
    bad = record(lambda v: [M @ v[0]], [vector(4)])
    object.__setattr__(bad, "block", lambda vectors: (vectors[0] @ M,))  # the transposed map
    assert not goes_in_blocks(bad, space)
    by_loop = record(lambda v: [torch.ops.aten.copy.default(M[0], v[0])], [vector(4)])  # vmap has no rule
    assert not goes_in_blocks(by_loop, space)
