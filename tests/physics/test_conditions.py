"""Arguments of `collocation`: each sentence."""

import pytest
import torch

from frechet.physics import collocation, conflict
from pinns import F64

X = torch.rand(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
P = torch.ones(2, dtype=F64)


def at(p, x):
    return (p * x).sum() ** 2


@pytest.mark.parametrize(
    ("error", "text", "arguments", "options"),
    [
        (ValueError, "at least one condition", (at, {}), {}),
        (ValueError, "must have the names of points", ({"a": at}, {"b": X}), {}),
        (TypeError, "must be a function of parameters and a point", ({"a": 3.0}, {"a": X}), {}),
        (TypeError, "one point in each row", (at, {"a": 3.0}), {}),
        (TypeError, "one point in each row", (at, {"a": torch.tensor(1.0)}), {}),
        (ValueError, "equally many rows", (at, {"a": (X, X[:3])}), {}),
        (ValueError, "at least one", (at, {"a": X[:0]}), {}),
        (ValueError, "'a' must be finite", (at, {"a": torch.full((2, 2), float("nan"))}), {}),
        (ValueError, "must not require grad", (at, {"a": X.clone().requires_grad_()}), {}),
        (TypeError, "one dtype and one device", (at, {"a": X, "b": X.float()}), {}),
        (ValueError, "weights must have the names", (at, {"a": X}), {"weights": {"b": 1.0}}),
        (ValueError, "weights of 'a' must be a finite number >= 0", (at, {"a": X}), {"weights": {"a": -1.0}}),
        (ValueError, "weights of 'a' must be a finite number >= 0", (at, {"a": X}), {"weights": {"a": X}}),
        (ValueError, "chunk must be an integer", (at, {"a": X}), {"chunk": 0}),
        (ValueError, r"'a' must lie in the domain, got \d of 6 outside", (at, {"a": X}), {"domain": (0.0, 0.4)}),
        (
            ValueError,
            "must lie in the domain",
            (at, {"a": X}),
            {"domain": (torch.zeros(2), torch.tensor([1.0, 0.1]))},
        ),
        (ValueError, "must lie in the domain", (at, {"a": X}), {"domain": lambda x: x.sum(1) < 0.5}),
        (TypeError, "domain must return booleans", (at, {"a": X}), {"domain": lambda x: x.sum(1)}),
        (TypeError, "domain must be a pair", (at, {"a": X}), {"domain": 3.0}),
    ],
)
def test_each_sentence(error, text, arguments, options):
    with pytest.raises(error, match=text):
        collocation(*arguments, **options)


def test_points_that_come_later_lie_in_the_domain_too():
    residual = collocation(at, {"a": X}, domain=(0.0, 1.0))
    with pytest.raises(ValueError, match="'a' must lie in the domain"):
        residual.at({"a": X + 1})


@pytest.mark.parametrize("call", [lambda r: r.at({"b": X}), lambda r: r.weighted({"b": 1.0}), lambda r: r.gram(P, "b")])
def test_unknown_names(call):
    with pytest.raises(ValueError, match=r"conditions are \['a'\]"):
        call(collocation(at, {"a": X}))


def test_counts_of_a_sample():
    with pytest.raises(ValueError, match="count of 'a' must be at least 1"):
        collocation(at, {"a": X}).sample(0, seed=0)


def test_conflict_takes_two_conditions():
    with pytest.raises(ValueError, match="two conditions or more"):
        conflict(collocation(at, {"a": X}), P)


def test_one_function_serves_all_conditions_and_one_tensor_is_a_condition():
    residual = collocation(at, {"a": X, "b": X[:2]})
    assert {name: tuple(r.shape) for name, r in residual(P).items()} == {"a": (6, 1), "b": (2, 1)}
    assert collocation(at, X).names == ("points",)
    assert repr(residual) == "Collocation(a: 6 points, b: 2 points)"
