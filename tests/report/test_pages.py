"""report.html and report.md: the same bytes for the same report, nothing from elsewhere, and no name that is obeyed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import sample_report

from quantkit import report as module
from quantkit.report import read_report, write_pages
from quantkit.report.commands import commands, memory_option

FILES = {"report.html", "report.md"} | {
    f"plots/{name}.{kind}" for name in ("pareto", "memory", "types", "types-1", "windows") for kind in ("svg", "png")
}
VOID = {"meta", "link", "br", "path", "use"}
HOSTILE = '<script>alert("1")</script> & \'"><img src=x onerror=alert(2)> | `x` [a](b) *c*'


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Parsed(HTMLParser):
    """The elements of a page, and the text outside of plots."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if {"svg", "style"} & {*self.open} else data


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of a report with mixes."""
    folder = sample_report.write(tmp_path_factory.mktemp("pages") / "out", sample_report.optimized)
    names = write_pages(read_report(folder), folder)
    assert names[0] == folder / "report.html" and {name.relative_to(folder).as_posix() for name in names} == FILES
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> Parsed:
    return Parsed((out / "report.html").read_text())


def test_the_same_report_gives_the_same_bytes(out: Path, tmp_path: Path) -> None:
    """In another process, another hour, another order of sets, and under a matplotlibrc of the user's own."""
    folder = sample_report.write(tmp_path / "out", sample_report.optimized)
    (tmp_path / "matplotlibrc").write_text("axes.linewidth: 9\nxtick.labelsize: 30\nsavefig.dpi: 10\n")
    code = (
        "import sys; from pathlib import Path; from quantkit.report import *; folder = Path(sys.argv[1])\n"
        "write_pages(read_report(folder), folder)"
    )
    other = {"MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=os.environ | other, timeout=120)
    assert written(folder) == written(out)


def test_the_page_is_of_one_piece(page: Parsed) -> None:
    assert page.open == []
    ids = Counter(attributes["id"] for _, attributes in page.elements if attributes.get("id"))
    assert ids and max(ids.values()) == 1
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "img", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert value == "data:," or (value or "").removeprefix("#") in ids, (tag, name, value)
    assert not re.search(r"https?://|@import|url\((?!#)", (page.rawdata or ""))


def test_the_page_is_for_all(page: Parsed) -> None:
    """What a screen reader goes by: one title, a heading for each section, words for each plot, heads of rows."""
    tags = Counter(tag for tag, _ in page.elements)
    assert (tags["h1"], tags["h2"], tags["main"], tags["title"]) == (1, 6, 1, 1)
    assert {"lang": "en"} in [attributes for tag, attributes in page.elements if tag == "html"]
    plots = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(plots) == 2 * 3 + 2
    assert all(plot["role"] == "img" and len(plot["aria-label"] or "") > 40 for plot in plots)
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    assert tags["table"] == 2 + 2
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert all(attributes.get("aria-labelledby", "candidates") in ids for _, attributes in page.elements)


def test_the_page_says_what_the_report_does(out: Path, page: Parsed) -> None:
    report = read_report(out)
    for one in report.candidates:
        for figure in (one.name, f"{one.kld.mean:.5f} ± {one.kld.stderr:.5f}", f"{one.ppl:.4f}"):
            assert figure in page.text
    for fact in (
        "1" * 64,
        "2" * 64,
        "3" * 64,
        "eval.txt",
        "4 of 512 tokens",
        "float32 on cpu",
        "quantkit 0.1.0",
        "a x b",
    ):
        assert fact in page.text
    for fact in ("8 of 12 matrices", "on 5 windows of calibration.txt", "6" * 64, "optimality gap 0.00 %"):
        assert fact in page.text
    assert "output.weight=Q6_K, at least Q3_K, blk.*.ffn_up.weight" in page.text
    for command in commands(report).values():
        assert command in page.text


def test_names_are_not_obeyed(tmp_path: Path) -> None:
    def hostile(content: dict[str, Any]) -> None:
        content["source"] = content["text"][0] = content["recipe"] = content["pick"]["sentence"] = HOSTILE
        content["candidates"][4]["type"] = content["pick"]["type"] = HOSTILE

    folder = sample_report.write(tmp_path / "out", hostile)
    write_pages(read_report(folder), folder)
    page = Parsed((folder / "report.html").read_text())
    assert page.open == [] and page.text.count(HOSTILE) >= 5
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    markdown = (folder / "report.md").read_text()
    lines = [line for line in markdown.splitlines() if not line.startswith("    ")]  # what is indented is code
    assert all("<" not in re.sub(r"\\.", "", line) and "[a]" not in re.sub(r"\\.", "", line) for line in lines)
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(re.sub(r"\\.", "", row).split("|")) for row in rows[:9]}) == 1


def test_the_markdown_has_table_and_plots(out: Path) -> None:
    text = (out / "report.md").read_text()
    assert text.startswith("# my-phi-4 on a card of 12.00 GiB\n\nQ6_K is the best that fits.\n\n![")
    for place in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (out / place).is_file()
    figures = "10.29 GiB | 6.14 | 11.75 GiB | 9.6188 | 0.01250 ± 0.00063 | 0.01150 | 0.0500 | 99.38 %"
    assert f"| OPT-Q6_K | {figures} | picked |" in text.splitlines()


def test_without_the_extra_there_is_the_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    folder = sample_report.write(tmp_path / "out")
    assert module.missing() == ["jinja2", "matplotlib"]
    assert write_pages(read_report(folder), folder) == [folder / "report.md"]
    assert written(folder).keys() == {"report.json", "report.md"}
    assert "![" not in (folder / "report.md").read_text()


def other_run(content: dict[str, Any]) -> None:
    content["run"] |= {"kv_type": "q8_0", "parallel": 2, "gpu_layers": 30, "overhead_bytes": 10**9, "ubatch": 64}
    content |= {"imatrix_sha256": "5" * 64, "recipe": "classic", "source": "my phi", "text": ["a.txt", "b.txt"]}


def of_a_file(content: dict[str, Any]) -> None:
    content["candidates"] = [content["candidates"][4] | {"type": "mine"}]
    content |= {"recipe": "mine"}
    content["pick"]["type"] = "mine"


def for_the_card(content: dict[str, Any]) -> None:
    del content["candidates"][-2]
    content["candidates"][-1]["type"] = content["pick"]["type"] = "OPT-12GiB"
    content["optimized"] |= {"keep": [], "min_type": None, "same_type": [], "mixes": []}
    for matrix in content["optimized"]["matrices"].values():
        matrix["interpolated"] = False


def merged(report: dict[str, Any]) -> None:
    lora = [{"name": name, "sha256": "3" * 64, "scale": scale} for name, scale in (("a", 1.0), ("b", 0.5))]
    report["merged"] = {"base": "phi-4", "lora": lora}


COMMANDS = {
    "usual": (
        [],
        "sweep my-phi-4 --vram 12GiB --ctx 16384 -t Q2_K -t Q4_0 -t Q4_K_M -t Q5_0 -t Q6_K -t Q8_0 --windows 4 -o out/",
        "convert my-phi-4 -t Q6_K -o my-phi-4-Q6_K.gguf",
        "-m my-phi-4-Q6_K.gguf -c 16384",
    ),
    "other run": (
        [other_run],
        "sweep 'my phi' --vram 12GiB --ctx 16384 -t Q2_K -t Q4_0 -t Q4_K_M -t Q5_0 -t Q6_K -t Q8_0 --recipe classic "
        "--imatrix imatrix.gguf --kv-type q8_0 --parallel 2 --ubatch 64 --gpu-layers 30 --overhead 1GB --text a.txt "
        "--text b.txt --windows 4 -o out/",
        "convert 'my phi' -t Q6_K --recipe classic --imatrix imatrix.gguf -o 'my phi-Q6_K.gguf'",
        "-m 'my phi-Q6_K.gguf' -c 32768 -np 2 -ub 64 -ngl 30 -ctk q8_0 -ctv q8_0 -fa on",
    ),
    "mixes of the presets' sizes": (
        [sample_report.optimized],
        "sweep my-phi-4 --vram 12GiB --ctx 16384 -t Q2_K -t Q4_0 -t Q4_K_M -t Q5_0 -t Q6_K -t Q8_0 --optimize "
        "--keep output.weight=Q6_K --min-type Q3_K --same-type 'blk.*.ffn_up.weight' --probes 8 --windows 4 -o out/",
        "convert my-phi-4 --recipe OPT-Q6_K.toml -o my-phi-4-OPT-Q6_K.gguf",
        "-m my-phi-4-OPT-Q6_K.gguf -c 16384",
    ),
    "a mix for the card": (
        [sample_report.optimized, for_the_card],
        "sweep my-phi-4 --vram 12GiB --ctx 16384 --optimize --windows 4 -o out/",
        "convert my-phi-4 --recipe OPT-12GiB.toml -o my-phi-4-OPT-12GiB.gguf",
        "-m my-phi-4-OPT-12GiB.gguf -c 16384",
    ),
    "adapters": (
        [merged],
        "sweep phi-4 --lora a --lora b:0.5 --vram 12GiB --ctx 16384 -t Q2_K -t Q4_0 -t Q4_K_M -t Q5_0 -t Q6_K -t Q8_0 "
        "--windows 4 -o out/",
        "convert phi-4 --lora a --lora b:0.5 -t Q6_K -o my-phi-4-Q6_K.gguf",
        "-m my-phi-4-Q6_K.gguf -c 16384",
    ),
    "a recipe of one's own": (
        [of_a_file],
        "sweep my-phi-4 --vram 12GiB --ctx 16384 --recipe mine.toml --windows 4 -o out/",
        "convert my-phi-4 --recipe mine.toml -o my-phi-4-mine.gguf",
        "-m my-phi-4-mine.gguf -c 16384",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(tmp_path: Path, case: str) -> None:
    edits, sweep, convert, run = COMMANDS[case]
    found = commands(read_report(sample_report.write(tmp_path / "out", *edits)))
    assert [*found.values()] == [f"quantkit {sweep}", f"quantkit {convert}", f"llama-server {run}"]
    for line in (sweep, convert):
        name, *arguments = shlex.split(line)
        import_module(f"quantkit.cli.{name}").command.make_context(name, arguments)  # raises for one that is no option


@pytest.mark.parametrize("text", ["12GiB", "12GB", "850MiB", "12.5GiB", "24.75GB", "1MB", "0.0005GiB", "12345.67MB"])
def test_sizes_are_options_again(text: str) -> None:
    from quantkit.cli.sizes import MEMORY

    nbytes = MEMORY.convert(text, None, None)
    assert abs(MEMORY.convert(memory_option(nbytes), None, None) - nbytes) <= 1
