"""`quantkit eval` and its gate as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small
import small_gguf

from quantkit.cli import main
from quantkit.errors import BugError

QUICK = ("--window", "32", "--windows", "6")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("eval") / "small", edit_tensors=small.lively)


@pytest.fixture(scope="module")
def files(source: Path) -> dict[str, Path]:
    made = small_gguf.run(source, source.parent / "gguf", ["Q8_0", "Q2_K"])
    return {name: path.rename(path.with_name(f"small-{name}.gguf")) for name, path in made.items()}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["eval", *map(str, arguments), *QUICK])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_table(source: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *files.values(), "--base", source)
    assert (code, err) == (0, "")
    title, base, q8_0, q2_k, how = out.splitlines()
    assert title.split("  ")[0] == "model" and "PPL" in title and "KLD" in title
    assert [line.split()[0] for line in (base, q8_0, q2_k)] == ["small", "small-Q8_0.gguf", "small-Q2_K.gguf"]
    assert len(base.split()) < len(q8_0.split()) == len(q2_k.split())
    assert how.startswith("6 windows of 32 tokens") and "eval.txt" in how and "activations f32" in how


def test_json_is_the_only_thing_on_stdout(
    source: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("the hen and the egg. " * 20)
    texts = ("--text", tmp_path / "one.txt", "--text", tmp_path / "two.txt")
    code, out, err = run(capsys, files["Q2_K"], "--base", source, "--json", "-q", "--activations", "q8", *texts)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["schema"] == {"name": "quantkit.eval", "version": 1}
    assert (result["complete"], result["windows"], result["window"], result["activations"]) == (True, 6, 32, "q8")
    assert result["text"] == ["one.txt", "two.txt"]
    (model,) = result["models"]
    figures = {"mean", "stderr", "median", "p90", "p95", "p99", "p999", "max"}
    assert model["kld"].keys() == figures
    assert model.keys() >= {"ppl", "ppl_stderr", "same_top", "delta_p_rms", "ppl_ratio", "ppl_ratio_stderr"}
    assert len(model["kld_by_window"]) == 6
    assert str(tmp_path) not in out and str(source.parent) not in out


def test_the_gate(source: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ("--base", source, "--check", tmp_path / "small.json", "-q")
    models = list(files.values())
    code, _, err = run(capsys, *models, *check)
    assert code == 65 and "no such file" in err
    assert not list(tmp_path.iterdir())

    assert run(capsys, *models, *check, "--update")[0] == 0
    recorded = (tmp_path / "small.json").read_bytes()
    code, _, err = run(capsys, *models, *check[:-1])
    assert (code, err.count("as recorded")) == (0, 4)
    assert (tmp_path / "small.json").read_bytes() == recorded

    worse = tmp_path / "worse" / files["Q8_0"].name
    worse.parent.mkdir()
    worse.write_bytes(files["Q2_K"].read_bytes())
    code, _, err = run(capsys, worse, *check)
    assert code == 3
    assert "small-Q8_0.gguf  KLD" in err and ": worse (" in err
    assert "error: " in err and err.splitlines()[-1].startswith("hint: ") and "--update" in err
    assert (tmp_path / "small.json").read_bytes() == recorded

    code, out, _ = run(capsys, worse, *check, "--json")
    assert code == 3
    ppl, kld = json.loads(out)["gate"]
    keys = {"model", "figure", "before", "now", "difference", "error", "verdict"}
    assert ppl.keys() >= keys and kld.keys() >= keys
    assert (kld["model"], kld["figure"], kld["verdict"]) == ("small-Q8_0.gguf", "KLD", "worse")
    assert kld["now"] - kld["before"] == pytest.approx(kld["difference"])
    code, out, _ = run(capsys, *models, *check, "--json")
    assert [finding["verdict"] for finding in json.loads(out)["gate"]] == ["as recorded"] * 4

    for other in (("--window", "64"), ("--activations", "q8"), ("--dtype", "bf16"), ("--base", files["Q8_0"])):
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(models[0]), *map(str, check), *QUICK, *map(str, other)])
        assert ended.value.code == 2, other
        assert "another measurement" in capsys.readouterr().err


def test_one_changed_tensor_is_found(
    source: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ("--base", source, "--check", tmp_path / "small.json", "-q")
    assert run(capsys, files["Q8_0"], *check, "--update")[0] == 0

    def turned(model: small_gguf.Model) -> None:
        shape, qtype, data = model.tensors["blk.1.ffn_down.weight"]
        model.tensors["blk.1.ffn_down.weight"] = (shape, qtype, data[len(data) // 2 :] + data[: len(data) // 2])

    (tmp_path / "spoiled").mkdir()
    spoiled = small_gguf.edited(files["Q8_0"], tmp_path / "spoiled" / files["Q8_0"].name, turned)
    code, _, err = run(capsys, spoiled, *check)
    assert code == 3 and "small-Q8_0.gguf  KLD" in err


CODES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no model": ((), 2, "MODELS"),
    "--update alone": (("Q8_0", "--update"), 2, "--check"),
    "two of one name to record": (("Q8_0", "Q8_0", "--check", "TMP/a.json", "--update"), 2, "two have the same"),
    "no such file": (("TMP/a.gguf",), 65, "is not a folder"),
    "no text": (("Q8_0", "--text", "TMP/a.txt"), 65, "no such file"),
    "too short a text": (("Q8_0", "--text", "TMP/short.txt"), 2, "too short"),
    "no folder for the baseline": (("Q8_0", "--check", "TMP/none/none/a.json", "--update"), 73, "none"),
    "no baseline": (("Q8_0", "--check", "TMP/short.txt"), 65, "is not JSON"),
    "no such device": (("Q8_0", "--device", "abacus"), 2, "abacus"),
    "no such dtype": (("Q8_0", "--dtype", "f64"), 2, "f64"),
}


@pytest.mark.parametrize("case", CODES)
def test_exit_codes(files: dict[str, Path], tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, words = CODES[case]
    (tmp_path / "short.txt").write_text("the hen")
    placed = [str(files.get(part, part)).replace("TMP", str(tmp_path)) for part in arguments]
    found, out, err = run(capsys, *placed)
    assert (found, out) == (code, "")
    assert found != BugError.exit_code and words in err
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_without_a_base_the_table_has_no_empty_columns(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, files["Q8_0"])
    assert code == 0
    assert out.splitlines()[0].split() == ["model", "size", "PPL"]


def test_a_baselines_folder_is_made(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "baselines" / "small.json"
    assert run(capsys, files["Q8_0"], "--check", record, "--update", "-q")[0] == 0
    assert json.loads(record.read_text())["schema"]["name"] == "quantkit.baseline"


@pytest.mark.parametrize("read", ["model", "base", "text"])
def test_a_baseline_does_not_replace_what_is_read(
    source: Path, files: dict[str, Path], tmp_path: Path, read: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {"model": tmp_path / "m.gguf", "base": tmp_path / "b.gguf", "text": tmp_path / "t.txt"}
    for name in ("model", "base"):
        inputs[name].write_bytes(files["Q2_K"].read_bytes())
    inputs["text"].write_text("the hen and the egg. " * 20)
    before = inputs[read].read_bytes()
    given = (inputs["model"], "--base", inputs["base"], "--text", inputs["text"])
    code, out, err = run(capsys, *given, "--check", inputs[read], "--update")
    assert (code, out) == (2, "") and "would replace an input" in err
    assert inputs[read].read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in inputs.values()}


def process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after code."""
    command = [sys.executable, "-c", f"{code}\nfrom quantkit.cli import main\nmain()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# A signal to the process itself, as the second group of windows is about to be scored.
SECOND_GROUP = """
import os, signal
from quantkit.evaluate import measure
measure.GROUP_TOKENS = 4 * 32
score, calls = measure.score, iter(range(9))
def scored(*arguments, **options):
    if next(calls) == {group}:
        os.kill(os.getpid(), signal.SIG{signal})
    return score(*arguments, **options)
measure.score = scored
"""


def stopped(signal: str, group: int, *arguments: object) -> tuple[int, str, str]:
    result = process(SECOND_GROUP.format(signal=signal, group=group), "eval", *arguments, *QUICK, "--json")
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_stopped_it_prints_what_is_finished(source: Path, files: dict[str, Path], tmp_path: Path, signal: str) -> None:
    record = ("--check", tmp_path / "a.json", "--update")
    code, out, err = stopped(signal, 1, files["Q2_K"], "--base", source, *record)
    assert code == 130, err
    result: dict[str, Any] = json.loads(out)
    assert (result["complete"], result["windows"]) == (False, 4)
    assert len(result["models"][0]["nll_by_window"]) == 4
    assert "these figures are of the first 4 windows" in err
    assert not list(tmp_path.iterdir()), "a partial result is no baseline"


def test_stopped_at_once_it_prints_nothing(source: Path) -> None:
    code, out, err = stopped("INT", 0, source)
    assert (code, out) == (130, "")
    assert "error: stopped" in err and "Traceback" not in err


@pytest.mark.parametrize("library", ["torch", "tokenizers"])
def test_without_the_extra_it_says_how_to_have_it(files: dict[str, Path], library: str) -> None:
    result = process(f"import sys; sys.modules[{library!r}] = None", "eval", files["Q8_0"])
    assert (result.returncode, result.stdout) == (2, "")
    assert f"measuring needs {library}" in result.stderr
    assert "hint: pip install 'quantkit[eval]'" in result.stderr
