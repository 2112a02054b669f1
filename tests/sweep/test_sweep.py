"""What is measured is measured once; and whatever happens in between, the report is the same to the byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from quantkit.checkpoint.weights import Weights
from quantkit.errors import GateError, InputError, Paused, UnsupportedError, UsageError
from quantkit.evaluate import Arithmetic, Text
from quantkit.gguf_io import read_gguf
from quantkit.recipe import choose, preset, presets
from quantkit.sweep import Request, Shard, Sweep, sweep
from quantkit.sweep import measurements as module

N_GROUPS = 3  # of five windows, by groups_of_two
KILLS = int(os.environ.get("QUANTKIT_KILLS", "3"))

Measured = list[tuple[str, ...]]
Ask = Callable[..., Request]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The types of the embedding of what was measured, a tuple for each group of windows; the base comes first."""
    calls: Measured = []
    measure_group = module.measure_group

    def counted(models: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(tuple(model.qtype("token_embd.weight").name for model in models))
        return measure_group(models, *arguments, **options)

    monkeypatch.setattr(module, "measure_group", counted)
    return calls


def files(out: Path) -> dict[str, bytes]:
    """What is in a folder and below it, notes aside: they are of one machine."""
    found = sorted(path for path in out.rglob("*") if path.is_file() and path.suffix != ".note")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


@pytest.mark.usefixtures("groups_of_two")
def test_a_second_run_measures_and_reads_nothing(ask: Ask, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    report = sweep(ask())
    assert measured == [("BF16", "Q2_K", "Q4_K", "Q8_0")] * N_GROUPS
    before = files(ask().out)
    assert {Path(name).suffix for name in before} == {".scores", ".json", ".csv", ".gguf"}
    assert sum(name.endswith(".scores") for name in before) == 4 * N_GROUPS

    measured.clear()
    monkeypatch.setattr(Weights, "read_rows", lambda *arguments: pytest.fail("a weight was read"))
    monkeypatch.setattr("quantkit.evaluate.model.file_sha256", lambda path: pytest.fail("the source was read"))
    assert sweep(ask(), warn=pytest.fail) == report
    assert measured == []
    assert files(ask().out) == before


@pytest.mark.usefixtures("groups_of_two")
def test_a_wider_run_measures_what_is_new(ask: Ask, measured: Measured, tmp_path: Path) -> None:
    sweep(ask(types=("Q2_K", "Q8_0")), write=False)
    measured.clear()
    wider = sweep(ask())
    assert measured == [("BF16", "Q4_K")] * N_GROUPS
    assert sweep(ask(out=tmp_path / "at once")) == wider
    assert files(tmp_path / "at once") == files(ask().out)


def test_the_default_is_all_that_fit_and_the_next(ask: Ask, imatrix: Path) -> None:
    for weighted in (False, True):
        asked = ask(types=(), imatrix=imatrix if weighted else None)
        with Sweep.open(asked, pytest.fail) as opened:
            names = [candidate.output.name for candidate in opened.candidates]
            needs = [candidate.use.card_bytes for candidate in opened.candidates]
        every = [preset(name) for name in presets()]
        expected = {recipe.name for recipe in every if weighted or not recipe.needs_imatrix} - {"BF16", "F16", "F32"}
        assert set(names) == expected
        assert needs == sorted(needs) and needs[-2] <= asked.vram_bytes < needs[-1]
        assert ("Q2_K_S" in names) == weighted and names[-1] == "Q8_0"


@pytest.mark.usefixtures("groups_of_two")
@pytest.mark.parametrize(
    "change",
    [{"window": 64}, {"how": Arithmetic(activations="q8")}, {"text": Text("the hen and the egg. " * 20, "0" * 64, ())}],
    ids=["window", "arithmetic", "text"],
)
def test_another_measurement_is_another(ask: Ask, measured: Measured, change: dict[str, Any]) -> None:
    sweep(ask(), write=False)
    measured.clear()
    sweep(ask(**change), write=False)
    assert {name for names in measured for name in names} == {"BF16", "Q2_K", "Q4_K", "Q8_0"}


@pytest.mark.usefixtures("groups_of_two")
def test_another_imatrix_leaves_the_base(ask: Ask, measured: Measured, imatrix: Path) -> None:
    plain = sweep(ask(), write=False)
    kept = files(ask().out).keys()
    weighted = sweep(ask(imatrix=imatrix), write=False)
    assert plain is not None and weighted is not None
    assert len(files(ask().out).keys() - kept) == 3 * N_GROUPS
    assert weighted["base"] == plain["base"]
    assert weighted["candidates"][0]["kld"] != plain["candidates"][0]["kld"]


def test_more_windows_are_measured_from_the_first_group_that_is_new(
    ask: Ask, measured: Measured, groups_of_two: None
) -> None:
    sweep(ask(windows=4), write=False)
    assert len(measured) == 2
    sweep(ask(windows=6), write=False)
    assert len(measured) == 3


@pytest.mark.usefixtures("groups_of_two")
def test_a_copy_of_the_source_is_the_source(ask: Ask, little: Path, tmp_path: Path, measured: Measured) -> None:
    report = sweep(ask(), write=False)
    copy = tmp_path / "elsewhere" / "another name"
    shutil.copytree(little, copy)
    shutil.copytree(ask().out, tmp_path / "copied")
    measured.clear()
    found = sweep(ask(source=copy, out=tmp_path / "copied"), write=False, warn=pytest.fail)
    assert measured == []
    assert found == (report or {}) | {"source": "another name"}


def turned(tensors: small.Tensors) -> None:
    small.lively(tensors)
    tensors["model.layers.1.mlp.down_proj.weight"][3] *= -1


def other_theta(config: dict[str, Any]) -> None:
    config["rope_theta"] = 10000.0


@pytest.mark.parametrize(
    "edits",
    [{"edit_tensors": turned}, {"edit_tensors": small.lively, "edit_config": other_theta}],
    ids=["weights", "config"],
)
def test_another_source_is_another(ask: Ask, tmp_path: Path, measured: Measured, edits: Any) -> None:
    """The changed weights are as many bytes as before, and in the same place."""
    source = small.write(tmp_path / "source", edit_tensors=small.lively)
    before = sweep(ask(source=source))
    time.sleep(0.01)
    small.write(source, **edits)
    after = sweep(ask(source=source))
    assert len(measured) == 2
    assert before is not None and after is not None and before["base"] != after["base"]
    written = ask().out / "source-Q4_K_M.gguf"
    sweep(ask(source=source, out=tmp_path / "anew"))
    assert written.read_bytes() == (tmp_path / "anew" / written.name).read_bytes()


@pytest.mark.usefixtures("groups_of_two")
def test_a_damaged_measurement_is_made_again(ask: Ask, measured: Measured) -> None:
    sweep(ask())
    whole = files(ask().out)
    for name in [name for name in whole if name.endswith(".scores")][:3]:
        path = ask().out / name
        data = bytearray(path.read_bytes())
        data[-4] ^= 1
        path.write_bytes(data)
        measured.clear()
        warnings: list[str] = []
        sweep(ask(), warn=warnings.append)
        assert len(warnings) == 1 and path.name in warnings[0]
        assert len(measured) == 1 and len(measured[0]) <= 2
        assert files(ask().out) == whole


def test_two_names_of_the_same_types_are_measured_once(
    ask: Ask, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = [preset("Q5_0"), replace(preset("Q5_0"), name="TWIN")]
    monkeypatch.setattr(sys.modules["quantkit.sweep.sweep"], "recipes", lambda request: twins)
    report = sweep(ask(), write=False)
    assert measured == [("BF16", "Q5_0")]
    assert report is not None
    first, second = report["candidates"]
    assert (first["type"], second["type"]) == ("Q5_0", "TWIN") and first["kld"] == second["kld"]


def test_what_is_picked_is_written_as_convert_does(ask: Ask, tmp_path: Path) -> None:
    report = sweep(ask(vram_bytes=2_800_000))
    assert report is not None and report["pick"]["type"] == "Q4_K_M"
    assert [path.name for path in ask().out.glob("*.gguf")] == ["little-Q4_K_M.gguf"]
    file = ask().out / "little-Q4_K_M.gguf"
    (described,) = [candidate for candidate in report["candidates"] if candidate["type"] == "Q4_K_M"]
    assert file.stat().st_size == described["file_bytes"]
    run = [
        sys.executable,
        "-m",
        "quantkit",
        "convert",
        str(ask().source),
        "-t",
        "Q4_K_M",
        "-o",
        str(tmp_path / "a.gguf"),
    ]
    subprocess.run(run, check=True, capture_output=True)
    assert (tmp_path / "a.gguf").read_bytes() == file.read_bytes()


def test_a_file_that_was_changed_is_written_again(ask: Ask) -> None:
    sweep(ask())
    (file,) = ask().out.glob("*.gguf")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    sweep(ask())
    assert file.read_bytes() == whole
    assert read_gguf(file).fields["quantkit.recipe.name"].value == "Q4_K_M"


def test_a_recipe_file_is_a_candidate(ask: Ask, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('file_type = 7\n[[rule]]\nmatch = "*"\ntype = "Q5_1"\n')
    report = sweep(ask(types=(), recipe=str(recipe)))
    assert report is not None and [candidate["type"] for candidate in report["candidates"]] == ["mine"]
    assert report["recipe"] == "mine"
    assert (ask().out / "little-mine.gguf").exists()
    assert choose((), str(recipe))[0].sha256 == report["candidates"][0]["recipe_sha256"]


# ---- stopped


@pytest.mark.usefixtures("groups_of_two")
def test_interrupted_it_keeps_what_is_finished(ask: Ask, measured: Measured, tmp_path: Path) -> None:
    with Sweep.open(ask(), pytest.fail) as opened:
        steps = iter(range(4 * small.LAYERS + 1 + 3))  # of the first group, and into the second
        n_steps = opened.n_steps()

        def progress() -> None:
            if next(steps, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(Paused):
            opened.measure(progress=progress)
        assert opened.n_missing() == 4 * (N_GROUPS - 1)
    assert n_steps == N_GROUPS * (4 * small.LAYERS + 1)
    measured.clear()
    sweep(ask())
    assert len(measured) == N_GROUPS - 1
    sweep(ask(out=tmp_path / "undisturbed"))
    assert files(ask().out) == files(tmp_path / "undisturbed")


# Every group of windows takes a moment, so that a kill finds something to lose and to keep.
SLOWLY = """
import sys, time
from quantkit.evaluate import measure
from quantkit.sweep import measurements as module, store
from quantkit.cli import main
measure.GROUP_TOKENS = 32
measure_group, publish = module.measure_group, store.AtomicFile.publish
def slowly(*arguments, **options):
    time.sleep(0.1)
    return measure_group(*arguments, **options)
def publish_slowly(self):
    time.sleep(0.01)
    publish(self)
module.measure_group, store.AtomicFile.publish = slowly, publish_slowly
main(sys.argv[1:])
"""
N_UNITS = 3 * 12


def start(source: Path, out: Path) -> subprocess.Popen[str]:
    types = ("-t", "Q2_K", "-t", "Q8_0", "--vram", "3MiB", "--overhead", "0MiB", "--ubatch", "64", "--ctx", "1024")
    command = [sys.executable, "-c", SLOWLY, "sweep", str(source), *types, "--window", "32", "--windows", "12"]
    return subprocess.Popen([*command, "-o", str(out), "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(source: Path, out: Path) -> None:
    process = start(source, out)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def units(out: Path) -> set[str]:
    return {path.name for path in (out / "measurements").glob("*.scores")}


def test_killed_at_random_moments(little: Path, tmp_path: Path) -> None:
    finish(little, tmp_path / "undisturbed")
    assert len(units(tmp_path / "undisturbed")) == N_UNITS
    rng, out = random.Random(5), tmp_path / "out"
    kept: set[str] = set()
    for kill in range(KILLS):
        process = start(little, out)
        wanted = rng.randrange(len(kept), N_UNITS * (kill + 1) // KILLS)
        while len(units(out)) < wanted and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        _, said = process.communicate()
        assert "Traceback" not in said
        assert kept <= units(out), "what was measured is lost"
        kept = units(out)
    assert kept, "every kill came before anything was measured, so nothing was shown"
    finish(little, out)
    left = {path.relative_to(out).as_posix() for path in out.rglob("*.part*")}
    assert not left
    assert files(out) == files(tmp_path / "undisturbed")


# ---- shards


@pytest.mark.usefixtures("groups_of_two")
def test_shards_and_merge_are_one_run(ask: Ask, tmp_path: Path, measured: Measured) -> None:
    types = ("Q2_K", "Q4_0", "Q4_K_M", "Q5_0", "Q8_0")
    whole = sweep(ask(types=types, out=tmp_path / "whole"))
    measured.clear()
    for number in (1, 2, 3):
        out = tmp_path / f"shard {number}"
        assert sweep(ask(types=types, out=out), shard=Shard(number, 3)) is None
        assert {path.name for path in out.iterdir()} == {"measurements"}
        if number < 3:
            with pytest.raises(InputError, match="measurements are missing") as caught:
                sweep(ask(types=types, out=tmp_path / "merged"), merge=True)
            assert "Q8_0" in str(caught.value) if number == 1 else "Q4_K_M" in str(caught.value)
        shutil.copytree(out, tmp_path / "merged", dirs_exist_ok=True)
    assert [len(names) for names in measured] == [3] * 2 * N_GROUPS + [2] * N_GROUPS
    measured.clear()
    assert sweep(ask(types=types, out=tmp_path / "merged"), merge=True, warn=pytest.fail) == whole
    assert measured == []
    assert files(tmp_path / "merged") == files(tmp_path / "whole")


def test_a_shard_of_nothing_measures_the_base(ask: Ask, measured: Measured) -> None:
    assert sweep(ask(), shard=Shard(9, 9)) is None
    assert measured == [("BF16",)]


@pytest.mark.parametrize(("number", "count"), [(0, 2), (3, 2), (1, 0)])
def test_no_such_shard(number: int, count: int) -> None:
    with pytest.raises(UsageError, match="no such shard"):
        Shard(number, count)


# ---- refusals


def test_nothing_fits(ask: Ask, measured: Measured) -> None:
    with pytest.raises(GateError) as caught:
        sweep(ask(vram_bytes=2_300_000))
    assert "2.3 MiB for Q2_K, the smallest, with 1,024 tokens" in str(caught.value)
    assert caught.value.hint is not None and "--ctx 768" in caught.value.hint
    assert caught.value.exit_code == 3
    assert sweep(ask(vram_bytes=2_300_000, context=768), write=False) is not None
    measured.clear()
    with pytest.raises(GateError) as caught:
        sweep(ask(vram_bytes=1 << 20))
    assert caught.value.hint is not None and "not fit with any context" in caught.value.hint
    assert measured == []


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"types": ("Q9",)}, UsageError, "unknown type"),
        ({"types": ("Q2_K_S",)}, UsageError, "needs an importance matrix"),
        ({"recipe": "none"}, UsageError, "unknown family"),
        ({"window": 4096}, UsageError, "longer than the context"),
        ({"memory": {"kv_type": "q9"}}, UsageError, "unknown type of cache"),
        ({"context": 0}, UsageError, "impossible context"),
    ],
)
def test_what_makes_no_sense_is_refused(ask: Ask, change: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sweep(ask(**change))
    assert not ask().out.exists()


def test_a_quantized_source_is_refused(ask: Ask, tmp_path: Path) -> None:
    sweep(ask())
    (quantized,) = ask().out.glob("*.gguf")
    with pytest.raises(UnsupportedError, match="quantized already"):
        sweep(ask(source=quantized, out=tmp_path / "other"))


def test_a_longer_context_than_the_model_is_made_for_is_said(ask: Ask) -> None:
    warnings: list[str] = []
    sweep(ask(context=4096, vram_bytes=1 << 30), write=False, warn=warnings.append)
    assert len(warnings) == 1 and "made for 2,048 tokens, and 4,096 are more" in warnings[0]


def test_the_report_says_nothing_of_the_machine(ask: Ask, tmp_path: Path) -> None:
    report = sweep(ask())
    text = (ask().out / "report.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(report))
    assert str(tmp_path) not in text and "/" not in text.replace(" 2/", "")
    rows = (ask().out / "report.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith("type,file_bytes,")
    assert report is not None
    for row, candidate in zip(rows[1:], report["candidates"], strict=True):
        cells = dict(zip(rows[0].split(","), row.split(","), strict=True))
        assert (cells["type"], float(cells["kld_mean"])) == (candidate["type"], candidate["kld"]["mean"])
        assert cells["fits"] == ("true" if candidate["memory"]["fits"] else "false")
    assert all(np.diff([candidate["tensor_bytes"] for candidate in report["candidates"]]) > 0)


def test_the_report_has_the_terms_of_memory_and_every_tensors_type(ask: Ask) -> None:
    report = sweep(ask())
    assert report is not None
    (file,) = ask().out.glob("*.gguf")
    for candidate in report["candidates"]:
        memory = candidate["memory"]
        for place in ("card", "host"):
            assert sum(term["bytes"] for term in memory[place]) == memory[f"{place}_bytes"]
        assert Counter(candidate["tensor_types"].values()) == candidate["types"]
        if candidate["type"] == report["pick"]["type"]:
            written = {name: tensor.qtype.name for name, tensor in read_gguf(file).tensors.items()}
            assert candidate["tensor_types"] == written


def test_a_name_is_no_formula_to_a_spreadsheet(ask: Ask, tmp_path: Path) -> None:
    recipe = tmp_path / "-2+3.toml"
    recipe.write_text('file_type = 7\n[[rule]]\nmatch = "*"\ntype = "Q5_1"\n')
    sweep(ask(types=(), recipe=str(recipe)), write=False)
    _, row = (ask().out / "report.csv").read_text().splitlines()
    assert row.startswith("'-2+3,")
