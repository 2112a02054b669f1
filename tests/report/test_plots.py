"""The plots: what they show in words and in both schemes, and reports at the edge of what can be drawn."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import sample_report
from PIL import Image

from quantkit.report import Report, read_report
from quantkit.report import heat as heat_module
from quantkit.report.canvas import COLOURS, Plot
from quantkit.report.heat import heat
from quantkit.report.plots import plots

SCHEMES = {"light": 0, "dark": 1}
# what is written, and on what; the least contrast is that of WCAG 2.2, 1.4.3 for text, 1.4.11 for marks
WRITTEN = [("ink", "paper"), ("muted", "paper"), ("pick", "paper"), ("budget", "paper"), ("ink", "beyond")]
WRITTEN += [("on-few", f"bits-{step}") for step in range(5)] + [("on-many", f"bits-{step}") for step in (5, 6)]
MARKED = [("point", "paper"), ("pick", "beyond"), ("budget", "beyond")]


def read(folder: Path, *edits: sample_report.Edit) -> Report:
    return read_report(sample_report.write(folder, *edits))


def by_name(report: Report) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots(report)}


def texts(svg: str) -> list[str]:
    """What is written in a plot."""
    return [
        text for element in ET.fromstring(svg).iter() if element.tag.endswith("text") for text in element.itertext()
    ]


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21 (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_can_be_read(scheme: str) -> None:
    for pairs, least in ((WRITTEN, 4.5), (MARKED, 3.0)):
        for above, below in pairs:
            found = contrast(*(COLOURS[role][SCHEMES[scheme]] for role in (above, below)))
            assert found >= least, f"{above} on {below}: {found:.2f}"


def test_a_colour_tells_its_role() -> None:
    light = [light for light, _ in COLOURS.values()]
    assert len({*light}) == len(light)


def test_plots_of_a_sweep(tmp_path: Path) -> None:
    drawn = by_name(read(tmp_path / "out"))
    assert list(drawn) == ["pareto", "memory", "types", "windows"]
    assert {*sample_report.TYPES, "12.00 GiB card"} <= {*texts(drawn["pareto"].wide)}
    assert {*sample_report.TYPES, "weights", "KV cache", "compute", "overhead"} <= {*texts(drawn["memory"].wide)}
    matrices = texts(drawn["types"].wide)
    assert matrices.count("Q6_K") == sample_report.LAYERS * len(sample_report.MATRICES) + 2
    assert {"attn", "qkv", "output", "ffn", "up", "down", "0", "1", "2", "token_embd"} <= {*matrices}
    assert "output_norm" not in matrices
    assert "Q6_K is picked: 11.75 GiB of 12.00 GiB, 0.02000 nats" in drawn["pareto"].alt
    assert "in 3 of them" in drawn["windows"].alt
    for plot in drawn.values():
        assert Image.open(io.BytesIO(plot.png)).format == "PNG"
        assert (plot.wide == plot.narrow) == (plot.name == "types")


def test_plots_of_an_optimized_sweep(tmp_path: Path) -> None:
    drawn = by_name(read(tmp_path / "out", sample_report.optimized))
    assert list(drawn) == ["pareto", "memory", "types", "types-1", "windows"]
    assert drawn["types"].title == "Types of OPT-Q6_K" and drawn["types-1"].title == "Types of OPT-Q4_K_M"
    assert "Diamonds are mixes" in drawn["pareto"].note


def test_on_a_page_no_colour_is_of_one_scheme(tmp_path: Path) -> None:
    for plot in plots(read(tmp_path / "out", sample_report.optimized)):
        for narrow in (False, True):
            part = plot.inline(narrow=narrow)
            assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?!-)", re.sub(r'(href="|url\()#[^")]*', "", part)), plot.name
            assert "<style" not in part and "var(--" in part


def test_the_heat_is_of_the_bits(tmp_path: Path) -> None:
    """A matrix of its own type has a colour of its own, and the network's order is kept."""

    def mixed(content: dict[str, Any]) -> None:
        types = content["candidates"][0]["tensor_types"]
        types["blk.1.ffn_down.weight"] = "Q8_0"
        types["blk.10.ffn_down.weight"] = "Q2_K"

    plot = heat(read(tmp_path / "out", mixed).candidates[0], "types")
    part = plot.inline(narrow=True)
    assert part.count("var(--bits-5)") == 1 and part.count("var(--on-many)") == 1
    written = texts(plot.wide)
    assert written[:8] == [part for name in sample_report.MATRICES for part in name.split("_")]
    assert [text for text in written if text.isdecimal()] == ["0", "1", "2", "10"]


def alone(content: dict[str, Any]) -> None:
    """One candidate, one window."""
    content["candidates"] = [one for one in content["candidates"] if one["type"] == "Q6_K"]
    content["windows"] = 1
    for one in (content["base"], *content["candidates"]):
        for key in {"nll_by_window", "kld_by_window"} & one.keys():
            one[key] = one[key][:1]


def exact(content: dict[str, Any]) -> None:
    """Less than nothing is lost, by rounding, and the card is much too large."""
    content["candidates"][-1]["kld"] |= {"mean": -1e-12, "stderr": 0.0}
    content["vram_bytes"] = 80 << 30


def hopeless(content: dict[str, Any]) -> None:
    """Everything is lost, and the name is a trap."""
    for one in content["candidates"]:
        one["kld"] |= {"mean": 1e38, "stderr": 0.0}
    content["candidates"][4]["type"] = content["pick"]["type"] = r"$\frac{1}{0}$ 漢<b>&amp;" + "x" * 500


def same(content: dict[str, Any]) -> None:
    """Nothing is lost by any, and there is no layer."""
    for one in content["candidates"]:
        one["kld"] |= {"mean": 0.0, "stderr": 0.0}
        one["kld_by_window"] = [0.0] * sample_report.WINDOWS
        one["nll_by_window"] = content["base"]["nll_by_window"]
        one["tensor_types"] = {"output.weight": "F32"}


EDGES = (alone, exact, hopeless, same)


@pytest.mark.parametrize("edit", EDGES)
def test_edges_are_drawn(tmp_path: Path, edit: sample_report.Edit) -> None:
    """Warnings are errors here: of an empty axis, a letter that no font has, a formula that is none."""
    drawn = by_name(read(tmp_path / "out", edit))
    written = texts(drawn["pareto"].wide)
    match edit.__name__:
        case "exact":
            assert {"Q8_0 ≈ 0", "80.00 GiB card →"} <= {*written}
        case "hopeless":
            assert any(text.startswith(r"$\frac{1}{0}$ 漢") and text.endswith("…") for text in written)
            assert "&lt;" in drawn["pareto"].inline(narrow=True)
    for plot in drawn.values():
        ET.fromstring(plot.narrow)
        assert len(Image.open(io.BytesIO(plot.png)).getbands()) == 4


def test_many_layers_share_the_height_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(content: dict[str, Any]) -> None:
        content["candidates"][4]["tensor_types"] = {f"blk.{i}.ffn_up.weight": "Q6_K" for i in range(40)}

    monkeypatch.setattr(heat_module, "_MOST_INCHES", 3.0)
    image = Image.open(io.BytesIO(heat(read(tmp_path / "out", deep).picked, "types").png))
    assert image.height == 3 * 160
