from dataclasses import replace

from frechet.report import _schema as s
from frechet.report._assemble import DAMPINGS, unresolved
from report_sample import report

FREE = s.Cost(0, 0, 0.0)


def dimension(value, error):
    return s.EffectiveDimension(0.1, s.Measured(value, value - error, value + error, 0.95, False, FREE, "m"))


def test_an_effective_dimension_that_is_not_resolved_is_left_out_and_why():
    c = report().gauss_newton
    assert unresolved(None) == []
    assert unresolved(replace(c, density=None)) == []
    assert unresolved(replace(c, effective_dimensions=tuple(dimension(5.0, 1.0) for _ in DAMPINGS))) == []
    [entry] = unresolved(replace(c, effective_dimensions=(dimension(5.0, 1.0),)))
    assert entry.what == "effective dimension of the Gauss-Newton"
    told = f"{c.density.steps} Lanczos steps resolve the eigenvalues near zero for 1 of 2 dampings; "
    assert entry.why == told + "more come with --steps"
    [entry] = unresolved(replace(c, effective_dimensions=(dimension(5.0, 1.0),)), bounded=True)
    assert entry.why == told + "a larger budget allows more"  # the steps that were given had been cut
    assert unresolved(report().hessian) == []  # an indefinite matrix is not asked for one
    nothing = replace(c.frobenius_norm, value=0.0, lower=0.0, upper=0.0)
    assert unresolved(replace(c, frobenius_norm=nothing, effective_dimensions=())) == []
