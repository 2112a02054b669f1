"""What the plots have in common: their style, their colours in light and in dark, and how they become SVG and PNG."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantkit.report.record import Report

WIDE, NARROW = 7.2, 3.6  # inches: of a plot on a page, and on a phone's
NAME = "name"  # how the ids begin of what is written across lines: the page keeps them off it
_PNG_DPI = 160

# role: its colour in light and in dark.  Plots are drawn in light; on the page each becomes a variable of that name.
COLOURS: Mapping[str, tuple[str, str]] = {
    "ink": ("#1c2330", "#e8ebf1"),
    "muted": ("#5d6778", "#9aa5b8"),
    "rule": ("#dde2ea", "#2b3444"),
    "paper": ("#fefefe", "#11151c"),
    "beyond": ("#f3eeea", "#1d1a1b"),  # what does not fit the card
    "budget": ("#b3452c", "#f08a6c"),
    "pick": ("#0f6fce", "#5cb0ff"),
    "point": ("#8793a6", "#7d899c"),
    # terms of memory, told apart by the colour-blind too (Okabe and Ito 2008)
    "term-0": ("#0072b2", "#4aa3dc"),
    "term-1": ("#009e73", "#2fc09a"),
    "term-2": ("#e69f00", "#f0b73d"),
    "term-3": ("#b8c0cc", "#566174"),
    # bits of a weight, few to many
    "bits-0": ("#fbe3d6", "#3b2a26"),
    "bits-1": ("#f6efe6", "#35322e"),
    "bits-2": ("#e2ecf5", "#22303f"),
    "bits-3": ("#b9d5ec", "#24476a"),
    "bits-4": ("#7fb2dd", "#2f6aa3"),
    "bits-5": ("#2f72b0", "#5b9fd8"),
    "bits-6": ("#0b4a85", "#a9d2f7"),
    "on-few": ("#1c2331", "#e8ebf2"),
    "on-many": ("#ffffff", "#0c1118"),
}
LIGHT = {role: light for role, (light, _) in COLOURS.items()}

_STYLE: Mapping[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["rule"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": LIGHT["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": LIGHT["muted"],
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "figure.constrained_layout.use": True,
    "figure.facecolor": LIGHT["paper"],
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout everywhere
    "font.size": 8.5,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "quantkit",
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a name may hold a $
    "xtick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.color": LIGHT["rule"],
    "ytick.labelcolor": LIGHT["muted"],
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of its cache, once a machine


@dataclass(frozen=True)
class Plot:
    """A plot, drawn.

    name    of its files
    title   what is to be seen, in a few words
    alt     the same for those who do not see it
    note    how to read it
    wide    SVG of its own, WIDE inches or less; narrow: the same for a phone
    png     as wide
    """

    name: str
    title: str
    alt: str
    note: str
    wide: str
    narrow: str
    png: bytes

    @property
    def is_wide(self) -> bool:
        """Whether it makes a difference where it is shown."""
        return self.wide != self.narrow

    def inline(self, *, narrow: bool) -> str:
        """The plot as part of a page that gives each role's colour as a variable, --ink and so on."""
        return _as_part(self.narrow if narrow else self.wide, f"{self.name}-{'narrow' if narrow else 'wide'}", self.alt)


def plot(draw: Callable[[float], Figure], name: str, *, title: str, alt: str, note: str, wide: float = WIDE) -> Plot:
    """Draw a plot in both widths.

    draw  makes the figure in so many inches
    wide  inches of the wider one
    """
    with _style():
        figure = _laid_out(draw(wide))
        large, png = _svg(figure), _png(figure)
        small = large if wide == NARROW else _svg(_laid_out(draw(NARROW)))
    return Plot(name, title, alt, note, large, small, png)


@contextmanager
def _style() -> Iterator[None]:
    """Our style on top of matplotlib's own, whatever the user's is.  A name's letters may be in no font of ours."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _laid_out(figure: Figure) -> Figure:
    """A figure whose parts stay where they are now: finding their places is most of the work."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=_NO_METADATA)
    return re.sub(r"[ \t]+$", "", out.getvalue(), flags=re.MULTILINE)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return out.getvalue()


def _as_part(svg: str, name: str, alt: str) -> str:
    """An SVG file as an element of a page: colours as variables, ids that no other has, no style for the whole page."""
    root = re.search(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', svg)
    assert root is not None, "matplotlib's SVG has a viewBox"
    body = svg[root.end() :]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(rf'<g id="{NAME}-[^"]*">', '<g class="name">', body)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)  # nothing refers to groups
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", body)
    roles = {light: role for role, light in LIGHT.items()}
    body = re.sub(r"#[0-9a-f]{6}", lambda hit: f"var(--{roles[hit[0]]})" if hit[0] in roles else hit[0], body)
    return f'<svg viewBox="{root[1]}" role="img" aria-label="{escape(alt)}">{body}'


def quiet_axes(axes: Axes, grid: str) -> None:
    """Lines across one axis only, "x" or "y", and no ticks."""
    axes.tick_params(length=0)
    axes.grid(False, axis="x" if grid == "y" else "y")


def unit_of(report: Report) -> tuple[int, str]:
    """Bytes of the unit that memory is drawn in, and its name."""
    return (2**30, "GiB") if report.vram_bytes >= 2 * 2**30 else (2**20, "MiB")


def clipped(name: str, most: int = 16) -> str:
    """A name that leaves room for the plot."""
    return name if len(name) <= most else name[: most - 1] + "…"
