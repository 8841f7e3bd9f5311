"""Where a velocity or a distance is small, a series stands for a quotient: values and two derivatives, by mpmath."""

import mpmath
import pytest
import torch

from frechet.optimize._means import geometry

F64 = torch.float64
CLOSE = [0.0, 1e-12, 1e-6, 1e-4, 9e-4, 1.1e-3, 0.3, 2.0]  # on both sides of where the series ends


def root(q):
    return mpmath.sqrt(mpmath.mpc(q))


# name -> (ours, the closed form in the square q, signs of q)
FUNCTIONS = {
    "cosine": (geometry._cosine, lambda q: mpmath.cos(root(q)), (1, -1)),
    "sine over angle": (geometry._sine_over, lambda q: mpmath.sin(root(q)) / root(q), (1, -1)),
    "angle over sine": (
        lambda q: geometry._angle_over(q, torch.full_like(q, 0.7)),
        lambda q: mpmath.atan(root(q) / mpmath.mpf(0.7)) / root(q),
        (1,),
    ),
    "distance over its sine": (
        geometry._distance_over,
        lambda q: mpmath.asinh(root(q) / 2) / (root(q) / 2 * mpmath.sqrt(1 + q / 4)),
        (1,),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_series_and_closed_forms_meet(name):
    ours, exact, signs = FUNCTIONS[name]
    for value in (sign * q for q in CLOSE for sign in signs):
        q = torch.tensor(value, dtype=F64, requires_grad=True)
        found = ours(q)
        (first,) = torch.autograd.grad(found, q, create_graph=True)
        (second,) = torch.autograd.grad(first, q)
        with mpmath.workdps(60):
            at, h = mpmath.mpf(value) + (mpmath.mpf(10) ** -30 if not value else 0), mpmath.mpf(10) ** -18
            right = [float(mpmath.re(mpmath.diff(exact, at, n, h=h))) for n in range(3)]
        for a, b, rtol in zip((found, first, second), right, (1e-14, 1e-11, 1e-7), strict=True):
            assert a.item() == pytest.approx(b, rel=rtol), value
