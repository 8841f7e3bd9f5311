import json
import math
from dataclasses import replace

import pytest

from frechet.report._schema import SCHEMA, Cost, Measured
from frechet.report._serialize import dumps, from_json, to_json
from report_sample import empty, hostile, report

FREE = Cost(0, 0, 0.0)


@pytest.mark.parametrize("make", [report, hostile, empty])
def test_a_report_survives_its_json(make):
    original = make()
    assert from_json(json.loads(dumps(original))) == original


def test_json_has_no_infinities_and_gives_them_back():
    r = report()
    bound = Measured(math.inf, 1.0, math.inf, 1.0, False, FREE, "m")
    r = replace(r, learning_rate=replace(r.learning_rate, gradient_descent=bound))
    text = dumps(r)
    assert "Infinity" not in text
    assert from_json(json.loads(text)).learning_rate.gradient_descent == bound
    assert to_json(r)["learning_rate"]["gradient_descent"]["upper"] == "inf"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.update(schema="frechet.report/0"), f"schema must be '{SCHEMA}', got 'frechet.report/0'"),
        (lambda t: t.pop("schema"), "got None"),
        (lambda t: t["header"].pop("seed"), r"report.header must have the keys .* missing \['seed'\]"),
        (lambda t: t["header"].update(extra=1), r"unknown \['extra'\]"),
        (lambda t: t["header"].update(seed="zero"), "report.header.seed must be of type int, got 'zero'"),
        (lambda t: t["hessian"].update(operator="fisher"), "report.hessian.operator must be one of hessian"),
        (lambda t: t["hessian"]["trace"].update(value=True), "report.hessian.trace.value must be a number, got True"),
        (lambda t: t.update(costs={}), "report.costs must be an array"),
    ],
)
def test_another_tree_is_refused_and_the_place_is_named(change, sentence):
    tree = json.loads(dumps(report()))
    change(tree)
    with pytest.raises(ValueError, match=sentence):
        from_json(tree)


def test_what_is_not_json_is_refused_when_written():
    with pytest.raises(TypeError, match="values must be plain bool, int, float, str, tuple or None, got list"):
        to_json(replace(report(), costs=[1]))
