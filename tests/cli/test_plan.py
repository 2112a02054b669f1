"""`quantkit plan`: what fits a card, on the terminal and as JSON, and the table in README.md that it printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from published import PHI4, PHI4_MINI, write_config

from quantkit.cli.memory import describe, needs_of
from quantkit.cli.plan import command
from quantkit.cli.sizes import MEMORY, OVERHEAD, SPLIT, Size
from quantkit.memory import KV_TYPES, Run
from quantkit.outline import outlines
from quantkit.recipe import preset

ROOT = Path(__file__).parents[2]
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds phi-4, of which there is nothing but a config.json."""
    folder = tmp_path_factory.mktemp("plan")
    write_config(folder / "phi-4", **PHI4)
    return folder


def run(folder: Path, *arguments: str, source: str = "phi-4") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "quantkit", "plan", source, *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True)


def as_json(folder: Path, *arguments: str, source: str = "phi-4") -> dict[str, Any]:
    return json.loads(run(folder, "--json", *arguments, source=source).stdout)  # type: ignore[no-any-return]


def test_the_readme_shows_what_the_command_prints(folder: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.partition("## What fits\n")[2].partition("\n## ")[0]
    blocks = [line[4:] for line in section.splitlines() if line.startswith("    ") or not line]
    shown = "\n".join(blocks)
    commands = [line for line in blocks if line.startswith("quantkit plan phi-4 ")]
    assert len(commands) == 1
    printed = run(folder, *commands[0].split()[3:]).stdout
    assert printed.count("Q4_K_M") == 2
    assert printed.strip() in shown


def test_json(folder: Path) -> None:
    report = as_json(folder, "-t", "Q4_K_M", "--vram", "10GiB", "--vram", "16GB", "--ctx", "4096", "--ctx", "16384")
    assert report["settings"] == {
        "kv_type": "f16",
        "parallel": 1,
        "ubatch": 512,
        "gpu_layers": None,
        "overhead_bytes": 512 * 2**20,
    }
    (entry,) = report["types"]
    short, long = entry["memory"]
    assert (short["context"], long["context"]) == (4096, 16384)
    for memory in (short, long):
        for place in ("card", "host"):
            assert memory[f"{place}_bytes"] == sum(term["bytes"] for term in memory[place])
            assert all(term["formula"] for term in memory[place])
        assert [room["vram_bytes"] for room in memory["vram"]] == [10 * GIB, 16 * 10**9]
        for room in memory["vram"]:
            assert room["left_bytes"] == room["vram_bytes"] - memory["card_bytes"]
            assert room["fits"] == (room["left_bytes"] >= 0) == (room["longest_context"] == memory["context"])
    assert [room["fits"] for room in short["vram"]] == [True, True]
    assert [room["fits"] for room in long["vram"]] == [False, True]
    weights, cache = long["card"][:2]
    assert weights == {
        "name": "weights",
        "bytes": 9_055_703_040 - 100352 * 5120 * 144 // 256,
        "formula": "the head and 40 of 40 blocks",
    }
    assert cache["bytes"] == 16384 * 204_800


def test_json_has_memory_without_being_asked(folder: Path, tmp_path: Path) -> None:
    """For the context that the model is made for, but no more than 16384."""
    entries = as_json(folder)["types"]
    assert all(entry["memory"][0]["context"] == 16384 and not entry["memory"][0]["vram"] for entry in entries)
    for made_for, planned in ((2048, 2048), (131072, 16384)):
        config = PHI4_MINI | {"max_position_embeddings": made_for, "original_max_position_embeddings": made_for}
        source = write_config(tmp_path / str(made_for), **config)
        (entry,) = as_json(folder, "-t", "Q8_0", source=str(source))["types"]
        assert entry["memory"][0]["context"] == planned


def test_options_reach_the_formulas(folder: Path) -> None:
    printed = run(
        folder, "-t", "Q4_K_M", "--ctx", "5000", "--kv-type", "q8_0", "--parallel", "3", "--ubatch", "96",
        "--gpu-layers", "11", "--overhead", "1GB",
    ).stdout  # fmt: skip
    for text in (
        "5,000 tokens of context: llama-server -c 15000 -np 3 -ngl 11 -ub 96 -ctk q8_0 -ctv q8_0 -fa on",
        "10 blocks x 2 x 10 heads x 128 values x 34/32 bytes x 5,120 tokens x 3 sequences",
        "4 x 96 x 5,120 x 5",
        "the head and 10 of 40 blocks",
        "token_embd.weight and 30 of 40 blocks",
        "953.7 MiB",
    ):
        assert text in printed


def test_without_a_card(folder: Path) -> None:
    printed = run(folder, "-t", "Q4_K_M", "--ctx", "4096", "--gpu-layers", "0").stdout
    assert "on the card" not in printed
    assert "overhead" not in printed
    assert "all tensors" in printed


def test_any_option_of_the_run_asks_for_memory(folder: Path) -> None:
    for arguments in (("--kv-type", "q4_0"), ("--parallel", "2"), ("--gpu-layers", "9"), ("--overhead", "1GiB")):
        assert "16,384 tokens of context" in run(folder, "-t", "Q4_K_M", *arguments).stdout
    assert "tokens of context" not in run(folder, "-t", "Q4_K_M").stdout


def test_types_that_need_an_importance_matrix_are_marked(folder: Path) -> None:
    (outline,) = outlines(folder / "phi-4", [preset("Q2_K_S")], None, pytest.fail)
    needs = needs_of(outline, [Run(4096)], [])
    assert "needs --imatrix" in describe(needs, imatrix=False)
    assert "needs --imatrix" not in describe(needs, imatrix=True)


def test_more_context_than_the_model_is_made_for(folder: Path) -> None:
    done = run(folder, "-t", "Q4_K_M", "--ctx", "20000")
    assert done.returncode == 0
    assert "made for 16,384 tokens" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--vram", "12"),
        ("--vram", "0GiB"),
        ("--vram", "12TiB"),
        ("--overhead", "512"),
        ("--ctx", "0"),
        ("--ctx", "many"),
        ("--parallel", "257"),
        ("--ubatch", "0"),
        ("--gpu-layers", "-1"),
        ("--kv-type", "q5_1"),
        ("--vram", "12GiB", "--gpu-layers", "0"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense(folder: Path, arguments: tuple[str, ...]) -> None:
    done = run(folder, "-t", "Q4_K_M", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_the_options_are_the_models() -> None:
    """The command line is read before the model is imported, so it states these again."""
    options = {parameter.name: parameter for parameter in command.params}
    context = click.Context(command)
    assert isinstance(options["kv_type"].type, click.Choice)
    assert list(options["kv_type"].type.choices) == list(KV_TYPES)
    default = Run(1)
    for name in ("kv_type", "parallel", "ubatch"):
        assert options[name].get_default(context) == getattr(default, name), name
    assert OVERHEAD.convert(options["overhead"].get_default(context), None, None) == default.overhead_bytes


@pytest.mark.parametrize(
    ("kind", "text", "nbytes"),
    [
        (MEMORY, "12GiB", 12 * GIB),
        (MEMORY, "12gib", 12 * GIB),
        (MEMORY, "12 GB", 12 * 10**9),
        (MEMORY, "7.5GiB", 15 * GIB // 2),
        (MEMORY, "500MB", 500 * 10**6),
        (OVERHEAD, "0MiB", 0),
        (SPLIT, "4G", 4 * 10**9),
        (SPLIT, "500m", 500 * 10**6),
    ],
)
def test_sizes(kind: Size, text: str, nbytes: int) -> None:
    assert kind.convert(text, None, None) == nbytes


@pytest.mark.parametrize(
    ("kind", "text"),
    [(MEMORY, "12"), (MEMORY, "12G"), (MEMORY, "0GiB"), (MEMORY, "-1GiB"), (MEMORY, "1e3MB"), (MEMORY, "\u0661GiB"),
     (SPLIT, "4GiB"), (SPLIT, "4"), (SPLIT, "0G"), (SPLIT, "G"), (OVERHEAD, "")],
)  # fmt: skip
def test_no_sizes(kind: Size, text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size such as"):
        kind.convert(text, None, None)
