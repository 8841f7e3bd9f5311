import json
import re
from dataclasses import replace

import pytest

from frechet.report._compare import Compared, compared, headlines, layers, remarks
from frechet.report._schema import Eigenvalue
from frechet.report._serialize import dumps
from report_sample import empty, hostile, report


def changed():
    r = report()
    e, h = r.hessian.eigenvalues, r.hessian
    largest = (Eigenvalue(2 * e.largest[0].value, 1e-4, True), *e.largest[1:])
    return replace(r, hessian=replace(h, eigenvalues=replace(e, largest=largest)))


def pair(first, second):
    return Compared(first, second, ("a/report.json", "b/report.json"))


def test_each_number_stands_beside_the_other_with_what_became_of_it():
    rows = {row.name: row for row in headlines(pair(report(), changed()))}
    assert (rows["Largest Hessian eigenvalue"].first, rows["Largest Hessian eigenvalue"].second) == ("9.71", "19.42")
    assert rows["Largest Hessian eigenvalue"].change == "× 2.00"
    assert rows["Hessian trace"].change == "not told apart"
    assert all(row.change == "not told apart" for row in layers(pair(report(), changed())))


def test_a_number_that_is_zero_within_its_error_has_no_multiple():
    r, e = report(), report().hessian.eigenvalues
    zero = (Eigenvalue(-1e-9, 1e-6, True), *e.smallest[1:])
    flat = replace(r, hessian=replace(r.hessian, eigenvalues=replace(e, smallest=zero)))
    told = [{row.name: row for row in headlines(pair(*both))}["Most negative"] for both in ((flat, r), (r, flat))]
    assert [row.change for row in told] == ["fell", "rose"]


def test_what_was_measured_in_one_alone_is_said():
    rows = {row.name: row for row in headlines(pair(report(), empty()))}
    assert (rows["Hessian trace"].second, rows["Hessian trace"].change) == ("not measured", "")
    assert layers(pair(report(), empty())) == []


def test_reports_of_different_things_are_told():
    other = report()
    other = replace(other, header=replace(other.header, criterion="squared_error"))
    assert remarks(pair(report(), report())) == []
    assert remarks(pair(report(), other)) == ["The losses differ: cross_entropy() and squared_error."]


@pytest.mark.parametrize("make", [report, hostile, empty])
def test_the_page_stands_and_needs_nothing_from_outside(make):
    page = compared(pair(report(), make()))
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']http""", page)
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_files_are_read_and_bad_ones_are_named(tmp_path):
    (tmp_path / "a.json").write_text(dumps(report()))
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text(json.dumps({"schema": "frechet.report/1"}))
    assert Compared.read(tmp_path / "a.json", tmp_path / "a.json").first == report()
    for name, said in (("b.json", "is not JSON"), ("c.json", "read it with the version"), ("d.json", "does not exist")):
        with pytest.raises(ValueError, match=rf"compare: .*{name}.*{said}"):
            Compared.read(tmp_path / "a.json", tmp_path / name)
