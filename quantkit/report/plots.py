"""All plots of a report, in the order of the page."""

from __future__ import annotations

from quantkit.report.by_window import by_window
from quantkit.report.canvas import Plot
from quantkit.report.heat import heat
from quantkit.report.pareto import pareto
from quantkit.report.record import Candidate, Report
from quantkit.report.stack import stack


def mapped(report: Report) -> list[Candidate]:
    """The candidates whose types are shown layer by layer: the pick, and all mixes that were reckoned out."""
    return [report.picked, *(mix for mix in report.mixes if mix.name != report.pick.name)]


def plots(report: Report) -> list[Plot]:
    maps = [heat(one, f"types-{number}" if number else "types") for number, one in enumerate(mapped(report))]
    return [pareto(report), stack(report), *maps, by_window(report)]
