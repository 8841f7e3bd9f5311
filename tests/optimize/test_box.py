import math

import numpy as np
import pytest
import torch

from frechet.optimize._box import box
from frechet.space import Space, euclidean

SPACE = euclidean(3, torch.float64)


def test_numbers_tensors_and_dicts_become_sides():
    b = box("minimize", SPACE, (-1.0, torch.tensor([1.0, 2.0, math.inf])))
    assert b.lower.tolist() == [-1, -1, -1]
    assert b.upper.tolist() == [1, 2, math.inf]
    blocks = Space.of({"a": torch.zeros(2), "b": torch.zeros(())})
    c = box("minimize", blocks, ({"b": 0.0}, {"a": torch.ones(2)}))
    assert c.lower.tolist() == [-math.inf, -math.inf, 0]
    assert c.upper.tolist() == [1, 1, math.inf]
    assert c.lower.dtype == torch.float32


@pytest.mark.parametrize("sides", [(0.1, 0.3), (0.7, 0.9)])  # float32 rounds 0.1 and 0.3 up, 0.7 and 0.9 down
def test_a_side_that_the_dtype_cannot_hold_is_rounded_inwards(sides):
    b = box("minimize", euclidean(1), sides)
    assert sides[0] <= float(b.lower.double()) <= sides[0] + 1e-7
    assert sides[1] - 1e-7 <= float(b.upper.double()) <= sides[1]


@pytest.mark.parametrize(
    "bounds", [[0, 1], (np.zeros(3), 1), (torch.tensor([0, 0, 0]), np.float32(1)), (False, torch.ones(3).half())]
)
def test_lists_integers_arrays_and_other_dtypes_are_converted(bounds):
    b = box("minimize", SPACE, bounds)
    assert (b.lower.tolist(), b.upper.tolist()) == ([0, 0, 0], [1, 1, 1])
    assert b.lower.dtype == SPACE.dtype


def test_projection_and_held_variables():
    b = box("minimize", SPACE, (0.0, 1.0))
    assert b.project(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)).tolist() == [0, 0.5, 1]
    x = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert b.held(x, torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)).tolist() == [-1, 1, 0]
    assert b.held(torch.full_like(x, 0.5), torch.zeros_like(x)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("bounds", "error", "sentence"),
    [
        ([(0, 1)] * 3, TypeError, r"minimize: bounds must be a pair \(lower, upper\), each a number.*, got list of 3"),
        ([(0, 1)] * 2, TypeError, r"got a tuple in the pair; write \(torch\.tensor"),
        (
            ([0, 0], [1, 1]),
            TypeError,
            r"got a list in the pair; write \(torch\.tensor",
        ),
        ({"a": (0, 1)}, TypeError, "each a number, a tensor or a dict, got dict"),
        (
            (None, 1.0),
            TypeError,
            "lower bounds must be real numbers.*, got NoneType; leave a side open",
        ),
        (
            (0.0, "1"),
            TypeError,
            "upper bounds must be real numbers.*, got str; leave a side open with inf",
        ),
        (
            (torch.zeros(3) * 1j, 1.0),
            TypeError,
            r"lower bounds must be real numbers.*, got torch\.complex64",
        ),
        ((2.0, 1.0), ValueError, "bounds must leave a point between them, got lower 2 > upper 1 in entry 0"),
        ((math.nan, 1.0), ValueError, "lower bounds must be numbers, got NaN"),
        ((torch.zeros(2), 1.0), ValueError, r"lower bounds must be numbers or have the shape of x0 \(3,\), got \(2,\)"),
        (({"x": 0.0}, 1.0), ValueError, r"lower bounds must name blocks of x0, got \['x'\]"),
    ],
)
def test_what_is_no_box_is_refused(bounds, error, sentence):
    with pytest.raises(error, match=sentence):
        box("minimize", SPACE, bounds)
