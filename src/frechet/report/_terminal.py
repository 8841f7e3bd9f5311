"""The headline numbers of a report on the terminal: a table there, plain lines where the output is piped."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from frechet.report import _numbers as numbers
from frechet.report._page import summary
from frechet.report._schema import Report


def show(report: Report, console: Console) -> None:
    """Print the summary of `report`: what was measured, what it cost, what was left out."""
    header, total = report.header, report.total
    rows = [(row.name, row.value, row.note) for row in summary(report)]
    made = [
        f"{numbers.count(total.products)} products",
        f"{numbers.count(total.data_passes)} passes over the data",
        numbers.seconds(total.seconds),
    ]
    if total.peak_bytes is not None:
        made.append(f"peak {numbers.size(total.peak_bytes)}")
    lines = [f"cost: {', '.join(made)}"]
    lines += [f"left out: {entry.what}: {entry.why}" for entry in report.left_out]
    title = f"{header.title}: {header.model.name}, {numbers.count(header.model.trainable)} parameters, loss "
    title += numbers.number(header.loss)
    if not console.is_terminal:
        facts = [f"{name}: {value}" + (f" ({note})" if note else "") for name, value, note in rows]
        for line in (title, *facts, *lines):
            console.print(Text(line), soft_wrap=True, highlight=False)
        return
    # names come from the user's model: Text, so that brackets are not read as markup
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2))
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for line in lines:
        console.print(Text(line), highlight=False)
