"""report.html: one file with everything in it, that asks no network and runs no script."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from quantkit.qtypes import by_name
from quantkit.report.canvas import COLOURS, Plot
from quantkit.report.commands import commands
from quantkit.report.plots import mapped
from quantkit.report.record import Candidate, Report
from quantkit.report.table import table
from quantkit.units import size


def page(report: Report, plots: Sequence[Plot]) -> str:
    """The text of report.html, with these plots."""
    environment = Environment(
        loader=PackageLoader("quantkit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["size"] = size
    maps = zip(mapped(report), (plot for plot in plots if plot.name.startswith("types")), strict=True)
    return environment.get_template("page.html").render(
        report=report,
        table=table(report),
        commands=commands(report),
        plots={plot.name: plot for plot in plots},
        maps=maps,
        types_of=_types_of,
        colours=COLOURS,
    )


def _types_of(candidate: Candidate) -> list[tuple[str, float, int]]:
    """Each type in it, its bits a weight, and how many tensors have it; the smallest first."""
    rows = [(name, by_name(name).bits_per_weight, count) for name, count in candidate.types.items()]
    return sorted(rows, key=lambda row: row[1])
