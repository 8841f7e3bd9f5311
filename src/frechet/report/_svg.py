"""A matplotlib figure as an inline SVG element that lives inside any page.

Colors are written as CSS variables of the page, so that dark mode needs no second figure. Text takes the page's font.
Identifiers carry the figure's name, since several figures share one document. Everything that names an outside address
is left out. matplotlib's global state is not touched: figures are made without pyplot, under default settings.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

# stand-ins that matplotlib accepts as colors; each becomes the CSS variable beside it
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
BLUE, ORANGE, GREEN = "#010203", "#020304", "#030405"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    PAPER: "var(--paper)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
}
STYLE: dict[Any, Any] = {  # matplotlib types its keys as a literal of every name
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def style(name: str) -> Iterator[None]:
    """Figures made and drawn inside look as ours do, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name
        yield


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """`figure` as one ``<svg>`` element, its identifiers prefixed by `name`, described to screen readers by `label`.

    Call it inside `style(name)`.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}metadata" or child.tag == f"{SVG}style":
                parent.remove(child)
    used = _references(root)
    for element in root.iter():
        element.tag = str(element.tag).removeprefix(SVG)
        element.attrib = dict(_rewritten(element.attrib, name, used))
        if element.tag != "text" and element.tag != "tspan":
            element.text = element.text and element.text.strip()
        element.tail = element.tail and element.tail.strip()
    root.attrib = {
        "class": "figure",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": label,
        "preserveAspectRatio": "xMidYMid meet",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _references(root: ElementTree.Element) -> set[str]:
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used.update(re.findall(r"url\(#([^)]+)\)", value))
        if HREF in element.attrib:
            used.add(element.attrib[HREF].removeprefix("#"))
    return used


def _rewritten(attributes: dict[str, str], name: str, used: set[str]) -> Iterator[tuple[str, str]]:
    for key, value in attributes.items():
        if key == "id":
            if value in used:
                yield key, f"{name}-{value}"
        elif key == HREF:
            yield "href", f"#{name}-{value.removeprefix('#')}"
        elif key == "style":
            text = re.sub(r"font-family:[^;]*(;|$)", "", value)
            yield key, re.sub(r"#[0-9a-f]{6}\b", lambda m: VARIABLES.get(m[0], m[0]), text).strip(" ;")
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        else:
            yield key, re.sub(r"url\(#", f"url(#{name}-", re.sub(r"\s+", " ", value).strip())
