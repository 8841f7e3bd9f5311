import pytest

from frechet.solve.least_squares import least_squares
from nist import MODELS, load

F64_DIGITS = 10.0


@pytest.mark.parametrize("name", MODELS)
def test_certified_values_from_both_starts(name):
    regression = load(name)
    for start in regression.starts:
        s = least_squares(regression.residual, start)
        assert s.converged, s.reason
        assert regression.digits(s.x) > F64_DIGITS
        if name != "Lanczos1":  # the certified sum of squares is below the rounding of float64
            assert 2 * s.cost == pytest.approx(regression.sum_of_squares, rel=1e-9)
            assert s.standard_errors is not None
            assert s.standard_errors.tolist() == pytest.approx(regression.deviations.tolist(), rel=1e-6)
