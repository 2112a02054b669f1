"""report.md: the report as a page for a repository or a model card, without plots or with links to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain

from quantkit.report.commands import commands
from quantkit.report.record import Report
from quantkit.report.table import measured, table
from quantkit.units import size

_NUMBERS_FROM = 1  # column; those from here on are set flush right


def markdown(report: Report, plots: Mapping[str, str]) -> str:
    """The text of report.md.

    plots  title of each plot: where its file lies, from report.md
    """
    headings, *rows = table(report)
    right = ["---", *["---:"] * (len(headings) - 2), "---"]
    card = [[term.name, size(term.nbytes), term.formula] for term in report.picked.memory.card]
    parts = [
        f"# {_plain(report.source)} on a card of {size(report.vram_bytes)}",
        _plain(report.pick.sentence),
        *(f"![{_plain(title)}]({place})" for title, place in plots.items()),
        _table([headings, right, *rows]),
        _plain(measured(report)) + ".",
        f"## Memory of {_plain(report.pick.name)} on the card",
        _table([["term", "bytes", "formula"], ["---", "---:", "---"], *card]),
        "## Commands",
        *chain.from_iterable((f"{what}:", f"    {command}") for what, command in commands(report).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in rows)


def _plain(text: str) -> str:
    """Text that no Markdown reader takes for anything else; names of types and figures stay as they are."""
    escaped = re.sub(r"([\\`*\[\]<>|~&#!$])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", escaped)
