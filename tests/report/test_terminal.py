import io
from dataclasses import replace

from rich.console import Console

from frechet.report._schema import LeftOut
from frechet.report._terminal import show
from report_sample import report as sample


def printed(report, **options):
    out = io.StringIO()
    show(report, Console(file=out, width=100, **options))
    return out.getvalue()


def test_a_terminal_gets_a_table_and_a_pipe_gets_the_same_facts_in_lines():
    report = sample()
    table, lines = printed(report, force_terminal=True, color_system=None), printed(report)
    for fact in ("Largest Hessian eigenvalue", "Hessian trace", "products", "passes over the data"):
        assert fact in table
        assert fact in lines
    assert "\x1b" not in lines
    assert any(line.startswith("Hessian trace: ") for line in lines.splitlines())


def test_what_was_left_out_is_said_and_names_are_not_markup():
    report = sample()
    report = replace(
        report,
        header=replace(report.header, title="[red]mine[/red]"),
        left_out=(LeftOut("layers", "the budget [b]left[/b] 3 products"),),
    )
    for text in (printed(report), printed(report, force_terminal=True, color_system=None)):
        assert "[red]mine[/red]" in text
        assert "left out: layers: the budget [b]left[/b] 3 products" in text
