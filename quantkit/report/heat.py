"""Where the bits went: the type of every matrix, layer by layer."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from quantkit.qtypes import by_name
from quantkit.report.canvas import LIGHT, NARROW, Plot, plot
from quantkit.report.record import Candidate

_OF_LAYER = re.compile(r"blk\.([0-9]{1,6})\.(\w+)\.weight")
_KINDS = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")  # in a network
_SMALL = re.compile(r"norm|rope_freqs|rope_factors")  # vectors: F32 in every file
_STEPS = (3.0, 4.0, 5.0, 6.0, 8.0, 12.0)  # bits of a weight at which the next colour begins
_MANY = 4  # colours from here on are dark in light, and bright in dark
_MOST_INCHES = 60.0
_FONT = 7.5  # points


def heat(candidate: Candidate, name: str) -> Plot:
    """The plot of one candidate, for files of that name."""
    counts = ", ".join(f"{count} {qtype}" for qtype, count in candidate.types.items())
    return plot(
        lambda width: _draw(candidate, width),
        name,
        title=f"Types of {candidate.name}",
        alt=f"The type of every matrix of {candidate.name}, layer by layer. In all: {counts}.",
        note="A row for each layer; the stronger the colour, the more bits.",
        wide=NARROW,
    )


def _draw(candidate: Candidate, width: float) -> Figure:
    layers, kinds, others = _arranged(candidate.tensor_types)
    n_rows = len(layers) + len(others)
    figure = Figure(figsize=(width, min(0.7 + 0.165 * n_rows, _MOST_INCHES)))
    axes = figure.subplots()
    axes.set(xlim=(0, max(len(kinds), 1)), ylim=(n_rows + 0.5 * bool(others), 0))
    axes.grid(False)
    axes.tick_params(length=0, pad=2, labelsize=_FONT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    below = len(layers) + 0.5
    for row, types in enumerate(layers.values()):
        for kind, qtype in types.items():
            _cell(axes, kinds.index(kind), row, 1, qtype)
    for row, (_, qtype) in enumerate(others):
        _cell(axes, 0, below + row, max(len(kinds), 1), qtype)
    axes.xaxis.tick_top()
    axes.set_xticks([column + 0.5 for column in range(len(kinds))], [kind.replace("_", "\n", 1) for kind in kinds])
    ticks = [(row + 0.5, str(layer)) for row, layer in enumerate(layers)]
    ticks += [(below + row + 0.5, name) for row, (name, _) in enumerate(others)]
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    return figure


def _arranged(tensor_types: Mapping[str, str]) -> tuple[dict[int, dict[str, str]], list[str], list[tuple[str, str]]]:
    """Types by layer and kind; the kinds, in the network's order; and the matrices of no layer with their types."""
    layers: dict[int, dict[str, str]] = {}
    others = []
    for name, qtype in tensor_types.items():
        of_layer = _OF_LAYER.fullmatch(name)
        if _SMALL.search(name):
            continue
        if of_layer:
            layers.setdefault(int(of_layer[1]), {})[of_layer[2]] = qtype
        else:
            others.append((name.removesuffix(".weight"), qtype))
    kinds = sorted({kind for types in layers.values() for kind in types}, key=_place)
    return dict(sorted(layers.items())), kinds, others


def _place(kind: str) -> tuple[int, str]:
    return (_KINDS.index(kind), "") if kind in _KINDS else (len(_KINDS), kind)


def _cell(axes: Axes, column: float, row: float, wide: float, qtype: str) -> None:
    step = bisect_right(_STEPS, by_name(qtype).bits_per_weight)
    colour, ink = LIGHT[f"bits-{step}"], LIGHT["on-many" if step > _MANY else "on-few"]
    axes.add_patch(Rectangle((column, row), wide, 1, facecolor=colour, edgecolor=LIGHT["paper"], linewidth=1))
    axes.text(column + wide / 2, row + 0.5, qtype, ha="center", va="center_baseline", fontsize=_FONT, color=ink)
