import torch

from frechet.optimize._smooth.negative_curvature import downward_curvature, escaped
from smooth_problems import begun

SADDLE = torch.zeros(3, dtype=torch.float64)


def saddle(x):
    return x[0] ** 2 + 4 * x[1] ** 2 - 2 * x[2] ** 2 + x[2] ** 4


def test_a_direction_of_negative_curvature_is_found_at_a_saddle_and_none_at_a_minimum():
    function, point, _ = begun(saddle, SADDLE)
    v, curvature = downward_curvature(function, point, 0)
    assert curvature == torch.tensor(-4.0) or abs(curvature + 4) < 1e-12
    torch.testing.assert_close(v.abs(), torch.tensor([0.0, 0, 1]).double(), rtol=0, atol=1e-12)
    function, point, _ = begun(lambda x: (x * x).sum(), SADDLE)
    assert downward_curvature(function, point, 0) is None
    function, point, _ = begun(lambda x: (x[:1] ** 2).sum(), SADDLE)  # singular, but not negative
    assert downward_curvature(function, point, 0) is None


def test_the_way_out_leads_below_and_downhill_where_there_is_a_slope():
    function, point, rules = begun(saddle, SADDLE)
    v, curvature = downward_curvature(function, point, 0)
    below = escaped(function, point, v, curvature, rules.lowest)
    assert below.value < point.value - 0.1
    tilted, start, rules = begun(lambda x: saddle(x) + 1e-6 * x[2], SADDLE)
    assert float(escaped(tilted, start, v, curvature, rules.lowest).x[2]) < 0


def test_a_direction_along_which_nothing_is_below_leads_nowhere():
    function, point, rules = begun(lambda x: (x * x).sum(), SADDLE)
    assert escaped(function, point, torch.tensor([1.0, 0, 0]).double(), -1.0, rules.lowest) is None


def test_products_that_are_not_finite_show_nothing():
    function, point, _ = begun(lambda x: (x.abs() ** 1.5).sum(), SADDLE)
    assert downward_curvature(function, point, 0) is None
