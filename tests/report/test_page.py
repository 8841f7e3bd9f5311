import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from frechet.report import _schema as s
from frechet.report._page import render, summary
from report_sample import about, cost, empty, hostile, report

VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}
SECTIONS = ("hessian", "gauss_newton", "layers", "learning_rate", "noise", "slices")


class Page(HTMLParser):
    """Checks that tags match, and collects ids, links, script elements and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.targets, self.scripts, self.words = [], [], [], 0, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag in ("script", "iframe", "object", "embed", "link")
        self.ids += [v for k, v in attrs if k == "id"]
        self.targets += [v for k, v in attrs if k in ("href", "src", "srcset", "action", "xlink:href")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("make", [report, hostile, empty])
def test_the_page_is_well_formed_and_asks_nothing_of_the_network(make):
    text = render(make())
    page = Page(text)
    assert page.scripts == 0
    assert len(page.ids) == len(set(page.ids))
    assert all(target.startswith("#") and target[1:] in page.ids for target in page.targets)
    assert not re.search(r"url\((?!['\"]?#)", text)
    assert "@import" not in text


def test_names_of_the_users_are_text_and_nothing_else():
    text = render(hostile())
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("name", SECTIONS)
def test_any_section_may_be_missing(name):
    text = render(replace(report(), **{name: None}, left_out=(s.LeftOut(name, "no products left for this"),)))
    Page(text)
    assert "no products left for this" in text


@pytest.mark.parametrize("field", ["eigenvalues", "density", "trace", "frobenius_norm", "stable_rank"])
def test_any_number_may_be_missing(field):
    r = report()
    Page(render(replace(r, hessian=replace(r.hessian, **{field: None}), gauss_newton=None)))


def test_pictures_are_well_formed_and_described():
    figures = re.findall(r"<svg.*?</svg>", render(report()), flags=re.DOTALL)
    assert len(figures) >= 6
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.attrib["role"] == "img"
        assert len(root.attrib["aria-label"]) > 20
        assert "viewBox" in root.attrib
        assert "width" not in root.attrib  # so that it shrinks with the page


def test_every_number_shows_what_it_cost():
    text = re.sub(r"[ \n]+", " ", "".join(Page(render(report())).words))
    for entry in report().costs:
        assert entry.section in text
        assert f"{entry.cost.products:,}".replace(",", "\u202f") in text
    for row in summary(report()):
        assert row.cost is not None


def test_the_summary_holds_the_headlines_that_were_measured():
    names = [row.name for row in summary(report())]
    assert names[0] == "Largest Hessian eigenvalue"
    assert 6 <= len(names) <= 9
    assert summary(empty()) == []


def test_extreme_reports_still_make_a_page():
    r, spent = report(), cost(1, 1, 0.1)
    zero = s.Eigenvalue(0.0, 0.0, True)
    flat = s.Density(
        (-1e-38, 0.0, 1e-38), (0.0, 1e38, 0.0), (0.0, 0.0, 0.0), (0.0, 1e38, 0.0), 0.95, 1e-38, 8, 1, 0, spent, "m"
    )
    dead = s.Curvature("hessian", 5, s.Eigenvalues((zero,), (zero,), spent, "m"), flat, about(0.0, 0.0, spent))
    Page(render(replace(r, hessian=dead)))
    spike = replace(r.hessian.density, grid=(1.0, 2.0), value=(0.0, 3.0), lower=(0.0, 2.0), upper=(0.0, 4.0))
    Page(render(replace(r, hessian=replace(r.hessian, density=spike))))
    many = tuple(replace(r.layers.layers[0], name=f"block.{i}." + "deep." * 20) for i in range(120))
    Page(render(replace(r, layers=replace(r.layers, layers=many))))
    Page(render(replace(r, layers=replace(r.layers, layers=many[:1]))))
    lost = replace(r.slices.slices[0], loss=tuple(math.nan for _ in r.slices.slices[0].loss))
    Page(render(replace(r, slices=replace(r.slices, slices=(lost,)))))
    none = s.Measured(math.inf, math.inf, math.inf, 1.0, False, spent, "no positive eigenvalue was found")
    noise = s.Measured(math.inf, 40.0, math.inf, 0.95, False, spent, "jackknife", "examples")
    text = render(
        replace(
            r,
            learning_rate=replace(r.learning_rate, gradient_descent=none, sgd=()),
            noise=replace(r.noise, noise_scale=noise),
        )
    )
    Page(text)
    assert "sets no limit" in text
