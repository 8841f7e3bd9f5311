"""The loop that all products over data share, by an operator that adds its vectors once for each example."""

from dataclasses import dataclass

import pytest
import torch

from frechet.objective import Objective, Penalty, l2
from frechet.objective.criteria import squared_error
from frechet.operators._operator import SYMMETRIC
from frechet.operators.derivatives._sum_over_data import SumOverData
from objective_cases import mlp, ragged
from objective_models import randn


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Examples(SumOverData):
    """(sum of w_j s_j n_j) I, of n_j examples each."""

    def adding(self):
        def add(leaves, part, batch, vectors, sums):
            for i, v in enumerate(vectors):
                sums.add(i, [batch.examples * b for b in v])

        return add


CUBES = Penalty(lambda p: torch.stack([(b**3).sum() for b in p.values()]).sum())


def objective():
    model = mlp(torch.nn.Tanh())
    first = Objective(model, squared_error(), ragged(randn(5, 2), randn(5, 2, seed=1)), penalty=l2(0.5))
    second = Objective(model, squared_error(), ragged(randn(3, 2), randn(3, 2, seed=2), sizes=(2, 1)), penalty=CUBES)
    return first + 0.5 * second


def times(V, **fields):
    s = objective().snapshot()
    return Examples(name="examples", snapshot=s, domain=s.space, facts=SYMMETRIC, **fields) @ V


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 5 / 10 + 0.5 * 3 / 6),  # two terms of each example
        ({"squared": True}, 5 / 10 + 0.25 * 3 / 6),
        ({"scale": lambda count, examples: examples / count**2}, 25 / 100 + 0.5 * 9 / 36),
        ({"penalties": "convex"}, 5 / 10 + 0.5 * 3 / 6 + 0.5),
    ],
    ids=["mean", "squared", "scaled", "convex penalties"],
)
def test_parts_are_weighed_and_batches_added(k, fields, expected):
    V = objective().space.random(range(k), 0, "gaussian")
    torch.testing.assert_close(times(V, **fields), expected * V, rtol=1e-14, atol=1e-14)


def test_all_penalties_are_added_with_their_hessian():
    o = objective()
    V = o.space.random(range(2), 0, "gaussian")
    expected = (5 / 10 + 0.5 * 3 / 6 + 0.5) * V + 0.5 * 6 * o.point[:, None] * V
    torch.testing.assert_close(times(V, penalties="all"), expected, rtol=1e-13, atol=1e-13)
