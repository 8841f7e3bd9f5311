import math

import pytest
import torch

from frechet.optimize._least_squares.affine_scaling import SCALINGS, affine_scaling
from spectra import F64

ALL = (*SCALINGS, "combined")
below = torch.tensor([0.2, 0.2, 0.2, math.inf, math.inf, 1e-9, 1e-9], dtype=F64)
above = torch.tensor([0.5, 0.5, math.inf, 0.5, math.inf, 0.5, 0.5], dtype=F64)
g = torch.tensor([0.3, -0.3, -0.3, 0.3, 0.3, 0.4, -0.4], dtype=F64)


@pytest.mark.parametrize("kind", ALL)
def test_positive_inside_and_bounded(kind):
    d, bend = affine_scaling(kind, below, above, g)
    assert bool((d > 0).all())
    assert bool((d <= 1.0).all())
    assert bool((bend >= 0).all())


@pytest.mark.parametrize("kind", ALL)
def test_vanishes_only_where_the_gradient_pushes_to_a_near_side(kind):
    d, _ = affine_scaling(kind, below, above, g)
    assert float(d[5]) < 1e-8
    assert float(d[6]) > 1e-3 * (kind != "heinkenschloss-ulbrich")
    assert bool((d[:5] > 0.1).all())
    assert float(d[4]) == 1.0  # no bound


@pytest.mark.parametrize("kind", ALL)
def test_scaled_gradient_vanishes_at_the_conditions_of_first_order_only(kind):
    low = torch.tensor([0.0, 0.0, 0.4], dtype=F64)
    d, _ = affine_scaling(kind, low, 1 - low, torch.tensor([0.7, -0.7, 0.0], dtype=F64))
    scaled = d * torch.tensor([0.7, -0.7, 0.0], dtype=F64)
    assert float(scaled[0]) == 0  # held by the lower side
    assert abs(float(scaled[1])) > 0.1  # pushed inwards
    assert float(scaled[2]) == 0


@pytest.mark.parametrize("kind", ["coleman-li", "kanzow-klug", "hager-mair-zhang"])
def test_bend_is_the_derivative_along_the_gradient(kind):
    h, g1 = 1e-6, torch.tensor([0.3, -0.3], dtype=F64)
    low, high = torch.tensor([0.2, 0.7], dtype=F64), torch.tensor([0.8, 0.3], dtype=F64)
    ahead, _ = affine_scaling(kind, low + h, high - h, g1)
    behind, _ = affine_scaling(kind, low - h, high + h, g1)
    _, bend = affine_scaling(kind, low, high, g1)
    assert torch.allclose(bend, (g1 * (ahead - behind) / (2 * h)).clamp(min=0), atol=1e-6)


def test_combined_is_the_mean_and_the_first_jumps_where_the_gradient_changes_sign():
    parts = torch.stack([affine_scaling(kind, below, above, g)[0] for kind in SCALINGS])
    assert torch.equal(affine_scaling("combined", below, above, g)[0], parts.mean(0))
    tiny = torch.tensor([1e-12], dtype=F64)
    near, far = torch.tensor([1e-3], dtype=F64), torch.tensor([0.999], dtype=F64)

    def jump(kind):
        return abs(float(affine_scaling(kind, near, far, tiny)[0] - affine_scaling(kind, near, far, -tiny)[0]))

    assert jump("coleman-li") > 0.9
    assert jump("hager-mair-zhang") < 1e-6
    assert jump("kanzow-klug") < 1e-6
