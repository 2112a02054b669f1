"""The pick, window by window of the text: where it differs from the base."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quantkit.report.canvas import LIGHT, Plot, plot, quiet_axes
from quantkit.report.record import Report


def by_window(report: Report) -> Plot:
    """The plot of a report."""
    klds, changes = report.picked.kld_by_window, _changes(report)
    worse = sum(change > 0 for change in changes)
    return plot(
        lambda width: _draw(klds, changes, width),
        "windows",
        title=f"{report.pick.name}, window by window",
        alt=f"{report.pick.name} against the base in each of {report.windows} windows. Mean KL divergence from "
        f"{min(klds):.5f} to {max(klds):.5f} nats; the text is less likely than to the base in {worse} of them.",
        note=f"Dashed lines are means. In {worse} of {report.windows} windows the text is less likely to "
        f"{report.pick.name} than to the base.",
    )


def _changes(report: Report) -> list[float]:
    """The change of the mean NLL of each window, nats."""
    pairs = zip(report.picked.nll_by_window, report.base.nll_by_window, strict=True)
    return [quantized - base for quantized, base in pairs]


def _draw(klds: Sequence[float], changes: Sequence[float], width: float) -> Figure:
    figure = Figure(figsize=(width, 3.0))
    above, below = figure.subplots(2, sharex=True)
    _bars(above, klds, "pick")
    _bars(below, changes, "term-2")
    above.set_title("mean KL divergence, nats")
    below.set_title("change of NLL, nats a token: above 0 is worse")
    below.axhline(0, color=LIGHT["muted"], linewidth=0.8)
    below.set_xlabel("window of the text")
    below.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    below.set_xlim(0.5, len(klds) + 0.5)
    return figure


def _bars(axes: Axes, values: Sequence[float], role: str) -> None:
    """A bar for each window, all in one path: there may be thousands."""
    quiet_axes(axes, "y")
    width = 0.8 if len(values) <= 100 else 1.0
    edges, heights = [0.5], []
    for number, value in enumerate(values, 1):
        edges += [number - width / 2, number + width / 2]
        heights += [0.0, value]
    axes.stairs([*heights, 0.0], [*edges, len(values) + 0.5], fill=True, color=LIGHT[role], linewidth=0)
    axes.axhline(sum(values) / len(values), color=LIGHT["ink"], linewidth=1, linestyle=(0, (3, 2)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
