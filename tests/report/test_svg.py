from xml.etree import ElementTree

from matplotlib.figure import Figure

from frechet.report._svg import inline_svg, style


def drawn(name):
    with style(name):
        figure = Figure(figsize=(3, 2))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1])
        axes.set_xlabel("<x> & y")
        return inline_svg(figure, name, 'a "line" & more')


def test_two_figures_on_one_page_share_no_identifier():
    ids = [{e.attrib["id"] for e in ElementTree.fromstring(drawn(n)).iter() if "id" in e.attrib} for n in ("a", "b")]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_every_reference_has_its_target_and_text_is_escaped():
    svg = drawn("a")
    root = ElementTree.fromstring(svg)
    ids = {e.attrib["id"] for e in root.iter() if "id" in e.attrib}
    for element in root.iter():
        if "href" in element.attrib:
            assert element.attrib["href"].removeprefix("#") in ids
        for value in element.attrib.values():
            if "url(#" in value:
                assert value.split("url(#")[1].split(")")[0] in ids
    assert root.attrib["aria-label"] == 'a "line" & more'
    assert "http" not in svg
