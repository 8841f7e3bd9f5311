from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import pytest

from frechet.report import _plots as plots
from report_sample import report

DRAWN = {
    "density": lambda r: plots.density(r.hessian, "d", "label"),
    "layers": lambda r: plots.layers(r.layers, "l", "label"),
    "sgd": lambda r: plots.sgd(r.learning_rate, "s", "label"),
    "slice": lambda r: plots.loss_slice(r.slices.slices[0], "c", "label"),
}


@pytest.mark.parametrize("name", list(DRAWN))
def test_a_picture_is_one_svg_element_the_same_each_time_and_leaves_matplotlib_alone(name):
    before = dict(matplotlib.rcParams)
    svg = DRAWN[name](report())
    assert DRAWN[name](report()) == svg
    assert dict(matplotlib.rcParams) == before
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.attrib["aria-label"] == "label"
    assert "metadata" not in {element.tag for element in root.iter()}


def test_colors_follow_the_page_so_that_dark_mode_works():
    svg = DRAWN["density"](report())
    assert "var(--" in svg
    assert "#000000" not in svg


def test_where_nothing_can_be_drawn_there_is_no_picture():
    r = report()
    assert plots.density(replace(r.hessian, density=None), "d", "label") is None
    assert plots.sgd(replace(r.learning_rate, sgd=()), "s", "label") is None
    assert plots.layers(replace(r.layers, layers=()), "l", "label") is None
