"""Memory on the card against what is lost: every candidate, those that no other beats, the budget and the pick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from matplotlib.transforms import Bbox

from quantkit.report.canvas import LIGHT, NAME, WIDE, Plot, clipped, plot, quiet_axes, unit_of
from quantkit.report.record import Candidate, Report
from quantkit.units import size

LEAST_KLD = 1e-6  # nats: what is below is drawn there, as a logarithm has no place for it
_ROOM = 0.6  # the budget's line is drawn where that widens the picture by this share at most
_FONT = 8.0  # points
_GAP = 5.0  # points between a mark and its name

# Where a name stands beside its mark: which part of it is at the mark, across and up.  Of those that no other beats
# nothing lies below and to the left.
_LOW_LEFT = (("right", "top"), ("right", "center"), ("center", "top"))
_UP_RIGHT = (("left", "bottom"), ("left", "center"), ("center", "bottom"))
_PART = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
_AWAY = {"left": 1.0, "bottom": 1.0, "center": 0.0, "right": -1.0, "top": -1.0}


@dataclass(frozen=True)
class _Spot:
    """A place for a name: which part of it is at its mark, how far from it, and what it covers, in points."""

    across: str
    up: str
    away: tuple[float, float]
    box: Bbox


def pareto(report: Report) -> Plot:
    """The plot of a report."""
    pick = report.picked
    frontier = (f"{one.name} {size(one.memory.card_bytes)} {one.kld.mean:.5f}" for one in report.frontier)
    return plot(
        lambda width: _draw(report, width),
        "pareto",
        title="Memory against loss",
        alt=f"Mean KL divergence against memory on the card. {pick.name} is picked: {size(pick.memory.card_bytes)} of "
        f"{size(report.vram_bytes)}, {pick.kld.mean:.5f} nats. Beaten by no other on both: {', '.join(frontier)}.",
        note="Further left is smaller, further down is nearer to the original; bars are standard errors. The line "
        "joins those that no other beats on both."
        + (" Diamonds are mixes, hollow ones where they were predicted." if report.mixes else ""),
    )


def _draw(report: Report, width: float) -> Figure:
    figure = Figure(figsize=(width, 4.1 if width == WIDE else 3.7))
    axes = figure.subplots()
    unit, in_unit = unit_of(report)
    quiet_axes(axes, "y")
    axes.set_title("mean KL divergence, nats")
    axes.set_xlabel(f"memory on the card, {in_unit}")
    _scale(axes, report, unit)
    _budget(axes, report.vram_bytes, unit)
    line = [(_x(one, unit), _y(one)) for one in report.frontier]
    axes.plot(*zip(*line, strict=True), color=LIGHT["pick"], zorder=2)
    _mark(axes, report, unit)
    _name(figure, axes, report, unit)
    return figure


def _scale(axes: Axes, report: Report, unit: int) -> None:
    """Room for every candidate, and for the budget where it is not far beyond them."""
    xs = [_x(one, unit) for one in report.candidates]
    ys = [_y(one) for one in report.candidates]
    spread = max(xs) - min(xs) or 0.1 * max(xs) or 1.0
    budget = report.vram_bytes / unit
    most = max(xs) if budget > max(xs) + _ROOM * spread else max(*xs, budget)
    axes.set_xlim(min(xs) - 0.15 * spread, most + 0.09 * spread)
    axes.set_yscale("log")
    axes.set_ylim(min(ys) / 2, max(ys) * 2)
    decades = axes.get_ylim()[1] / axes.get_ylim()[0]
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1e3 else (1,)))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _budget(axes: Axes, vram_bytes: int, unit: int) -> None:
    """The card's line, what is beyond it, and its name on the side that has more room."""
    budget, (left, right) = vram_bytes / unit, axes.get_xlim()
    inside = budget < right
    if inside:
        axes.axvspan(max(budget, left), right, color=LIGHT["beyond"], zorder=0)
        axes.axvline(budget, color=LIGHT["budget"], linewidth=1.2)
    from_right = budget > left + 0.5 * (right - left)
    axes.annotate(
        f"{size(vram_bytes)} card" + ("" if inside else " →"),
        (min(budget, right), 1),
        xycoords=("data", "axes fraction"),
        xytext=(-_GAP if from_right else _GAP, -2),
        textcoords="offset points",
        ha="right" if from_right else "left",
        va="top",
        color=LIGHT["budget"],
        gid=f"{NAME}-card",
    )


def _mark(axes: Axes, report: Report, unit: int) -> None:
    frontier = {one.name for one in report.frontier}
    for one in report.candidates:
        x, y = _x(one, unit), _y(one)
        colour = LIGHT["pick"] if one.name in frontier else LIGHT["point"]
        low = max(one.kld.mean - one.kld.stderr, LEAST_KLD / 2)
        axes.plot([x, x], [min(low, y), y + one.kld.stderr], color=colour, linewidth=1, zorder=3)
        axes.plot(x, y, "o" if one.predicted_kld is None else "D", color=colour, markersize=5, zorder=4)
        if one.name == report.pick.name:
            axes.plot(x, y, "o", mfc="none", mec=LIGHT["pick"], markersize=12, markeredgewidth=1.6, zorder=4)
        if one.predicted_kld is not None:
            predicted = max(one.predicted_kld, LEAST_KLD)
            axes.plot(x, predicted, "D", mfc=LIGHT["paper"], mec=LIGHT["point"], markersize=4, zorder=3)


def _name(figure: Figure, axes: Axes, report: Report, unit: int) -> None:
    """Write names beside the marks: of the pick first, then of the frontier; of others where there is room."""
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    frame = Bbox(axes.get_window_extent().get_points() * points)
    marks = axes.transData.transform([(_x(one, unit), _y(one)) for one in report.candidates]) * points
    places = {one.name: (float(x), float(y)) for one, (x, y) in zip(report.candidates, marks, strict=True)}
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places.values()]
    ranks = {one.name: 1 for one in report.frontier} | {report.pick.name: 0}
    for one in sorted(report.candidates, key=lambda one: ranks.get(one.name, 2)):
        rank = ranks.get(one.name, 2)
        text = clipped(one.name) + (" ≈ 0" if one.kld.mean <= LEAST_KLD else "")
        sides = (*_LOW_LEFT, *_UP_RIGHT) if rank < 2 else (*_UP_RIGHT, *_LOW_LEFT)
        spots = _spots(places[one.name], len(text), sides, _GAP if rank else 1.8 * _GAP)
        spot = next((spot for spot in spots if _is_free(spot.box, taken, frame)), None)
        if spot:
            taken.append(spot.box)
            axes.annotate(
                text,
                (_x(one, unit), _y(one)),
                xytext=spot.away,
                textcoords="offset points",
                ha=spot.across,
                va=spot.up,
                fontsize=_FONT if rank else _FONT + 1,
                fontweight="normal" if rank else "bold",
                color=LIGHT[("pick", "ink", "muted")[rank]],
                in_layout=False,
                gid=f"{NAME}-{len(taken)}",
            )


def _spots(at: tuple[float, float], n_letters: int, sides: Sequence[tuple[str, str]], gap: float) -> Iterator[_Spot]:
    """Where a name may stand beside the mark at a point."""
    wide, high = 0.66 * _FONT * n_letters, 1.1 * _FONT
    for across, up in sides:
        away = _AWAY[across] * gap, _AWAY[up] * gap * (1 if across == "center" else 0.4)
        corner = at[0] + away[0] - _PART[across] * wide, at[1] + away[1] - _PART[up] * high
        yield _Spot(across, up, away, Bbox.from_bounds(*corner, wide, high))


def _is_free(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> bool:
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return inside and not any(box.overlaps(other) for other in taken)


def _x(candidate: Candidate, unit: int) -> float:
    return candidate.memory.card_bytes / unit


def _y(candidate: Candidate) -> float:
    return max(candidate.kld.mean, LEAST_KLD)
