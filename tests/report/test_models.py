"""Models as people bring them: each has a complete page."""

import re
import warnings

import pytest

from frechet.report._assemble import assemble
from frechet.report._measure import WEIGHTS, measure
from frechet.report._page import render
from frechet.report._run import Run
from frechet.report._settings import Settings
from report_models import KINDS

# a loss whose terms read the whole batch has no single examples, and the page says so
UNDEFINED = {"InfoNCE": ["gradient noise", "learning rate"]}
FEW = Settings(top=2, probes=4, steps=8, batch_sizes=(1, 8), points=5)  # every section, by as few products as it takes


def measured(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        o = KINDS[kind]()
        run = Run(o.space.device, WEIGHTS, space=o.space)
        measure(o, FEW, run)
    return assemble(o, FEW, run, (kind, kind, "2026-01-01 00:00", "frechet report", "none"), "0"), set(run.results)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_complete(kind):
    report, sections = measured(kind)
    undefined = UNDEFINED.get(kind, [])
    left = {x.what: x.why for x in report.left_out if x.what in WEIGHTS}
    assert list(left) == undefined, left
    assert all("no example" in why for why in left.values())
    assert sections == set(WEIGHTS) - set(undefined)
    for curvature in (report.hessian, report.gauss_newton):
        assert None not in (curvature.eigenvalues, curvature.density, curvature.trace, curvature.frobenius_norm)
    assert all(x.hessian_trace is not None for x in report.layers.layers)
    assert report.learning_rate.gradient_descent is not None
    if not undefined:
        assert report.learning_rate.sgd
        assert report.noise.gradient_variance.value >= 0
    page = render(report)
    assert page.count("Not measured") == (1 if undefined else 0)
    assert not re.search(r"\binf\b|\bnan\b|[-−]∞", page.split("<footer>")[0])
    for c in (report.hessian, report.gauss_newton):  # a number that is not told says what it takes
        wide = [(m.upper - m.lower) / 2 > 0.15 * abs(m.value) for m in (c.trace, c.frobenius_norm)]
        assert any(wide) == (c.wanted is not None)
    assert report.hessian.wanted is None or "random products" in page
