"""What each candidate needs on the card, term by term."""

from __future__ import annotations

from matplotlib.figure import Figure

from quantkit.report.canvas import LIGHT, Plot, clipped, plot, quiet_axes, unit_of
from quantkit.report.record import Report
from quantkit.units import size

_INCHES_OF_BAR = 0.21
_N_COLOURS = 4
_ROOM = 1.5  # the budget's line is drawn where it is at most so many times the longest bar away


def stack(report: Report) -> Plot:
    """The plot of a report."""
    terms = ", ".join(f"{term.name} {size(term.nbytes)}" for term in report.picked.memory.card)
    return plot(
        lambda width: _draw(report, width),
        "memory",
        title="Memory on the card",
        alt=f"Memory on the card of {len(report.candidates)} candidates, stacked by term. {report.pick.name}: {terms}; "
        f"there are {size(report.vram_bytes)}.",
        note=f"With {report.run.context:,} tokens of context; only the weights differ from type to type.",
    )


def _draw(report: Report, width: float) -> Figure:
    figure = Figure(figsize=(width, 1.0 + _INCHES_OF_BAR * len(report.candidates)))
    axes = figure.subplots()
    quiet_axes(axes, "x")
    unit, in_unit = unit_of(report)
    rows = range(len(report.candidates))
    ends = [0.0] * len(rows)
    for number, term in enumerate(report.picked.memory.card):
        lengths = [one.memory.card[number].nbytes / unit for one in report.candidates]
        axes.barh(rows, lengths, 0.72, ends, color=LIGHT[f"term-{number % _N_COLOURS}"], label=term.name)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    budget = report.vram_bytes / unit
    if budget < _ROOM * max(ends):
        axes.axvline(budget, color=LIGHT["budget"], linewidth=1.2)
        in_unit += f"; the line is the card's {size(report.vram_bytes)}"
        ends.append(budget)
    axes.set_xlim(0, 1.02 * max(ends) or 1)
    axes.set_xlabel(in_unit)
    axes.set_yticks(rows, [clipped(one.name) for one in report.candidates])
    for one, label in zip(report.candidates, axes.get_yticklabels(), strict=True):
        picked = one.name == report.pick.name
        label.set_color(LIGHT["pick" if picked else "ink" if one.memory.fits else "muted"])
        label.set_fontweight("bold" if picked else "normal")
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, handlelength=0.9, columnspacing=1.2, handletextpad=0.5)
    return figure
