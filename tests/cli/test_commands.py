"""The commands as a user meets them: what they print where, and the codes they end with."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import small

import quantkit
from quantkit.gguf_io import read_gguf


def quantkit_cli(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("cli") / "small")


def test_version_and_help() -> None:
    assert quantkit_cli("--version").stdout == f"quantkit, version {quantkit.__version__}\n"
    for arguments in (["--help"], ["-h"], ["convert", "--help"], ["inspect", "-h"]):
        result = quantkit_cli(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert "quantkit convert" in result.stdout or "Usage: quantkit inspect" in result.stdout


def test_convert_writes_the_files_and_shows_a_table(source: Path, tmp_path: Path) -> None:
    result = quantkit_cli("convert", source, "-t", "q4_k_m", "-t", "Q8_0", "-o", tmp_path / "new")
    assert result.returncode == 0, result.stderr
    files = [tmp_path / "new" / f"small-{name}.gguf" for name in ("Q4_K_M", "Q8_0")]
    assert sorted((tmp_path / "new").iterdir()) == files
    assert all(str(file) in result.stdout for file in files)
    assert "next: llama-server -m" in result.stderr


def test_default_name_in_the_current_folder(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantkit", "convert", str(source), "-t", "Q8_0", "-q"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["small-Q8_0.gguf"]


def test_json_is_the_only_thing_on_stdout(source: Path, tmp_path: Path) -> None:
    result = quantkit_cli("convert", source, "-t", "Q6_K", "-o", tmp_path / "{type}.gguf", "--json")
    report = json.loads(result.stdout)
    (file,) = report["files"]
    assert report["schema"] == {"name": "quantkit.convert", "version": 1}
    assert file["paths"] == [str(tmp_path / "Q6_K.gguf")]
    assert file["file_bytes"] == (tmp_path / "Q6_K.gguf").stat().st_size
    assert sum(file["types"].values()) == len(read_gguf(tmp_path / "Q6_K.gguf").tensors)


def test_a_dry_run_knows_the_size_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    arguments = ("convert", source, "-t", "Q4_K_M", "-o", tmp_path / "a.gguf", "--json")
    planned = json.loads(quantkit_cli(*arguments, "--dry-run").stdout)["files"][0]
    assert not list(tmp_path.iterdir())
    assert planned == json.loads(quantkit_cli(*arguments).stdout)["files"][0]


def test_name_is_written(source: Path, tmp_path: Path) -> None:
    quantkit_cli("convert", source, "-t", "Q8_0", "-o", tmp_path / "a.gguf", "--name", "Our Model")
    assert read_gguf(tmp_path / "a.gguf").fields["general.name"].value == "Our Model"


def test_nothing_local_is_written(source: Path, tmp_path: Path) -> None:
    quantkit_cli("convert", source, "-t", "Q8_0", "-o", tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    for private in (str(source.parent), str(tmp_path), str(Path.home())):
        assert private == "/" or private.encode() not in data


def test_special_tokens_that_disagree_are_warned_of_and_repaired(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings |= {"eos_token": small.SPECIAL[258], "pad_token": small.SPECIAL[258]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))

    def ids(*flags: str) -> tuple[dict[str, int], str]:
        result = quantkit_cli("convert", source, "-t", "Q8_0", "-o", tmp_path / "a.gguf", "-q", *flags)
        assert result.returncode == 0
        fields = read_gguf(tmp_path / "a.gguf").fields
        names = ("bos", "eos", "eot", "padding")
        return {name: fields[f"tokenizer.ggml.{name}_token_id"].value for name in names}, result.stderr

    found, said = ids()
    assert found == {"bos": 258, "eos": 258, "eot": 260, "padding": 258}
    assert "warning" in said and "--fix-special-tokens" in said
    found, _ = ids("--fix-special-tokens")
    assert found == {"bos": 258, "eos": 260, "eot": 260, "padding": 262}


CODES = {
    "no arguments": ([], 2),
    "unknown command": (["frobnicate"], 2),
    "no type": (["convert", "SOURCE"], 2),
    "unknown type": (["convert", "SOURCE", "-t", "Q9_K"], 2),
    "unknown option": (["convert", "SOURCE", "-t", "Q8_0", "--frob"], 2),
    "no source": (["convert", "missing", "-t", "Q8_0"], 65),
    "no GGUF file": (["inspect", "SOURCE/config.json"], 65),
    "no file": (["inspect", "missing.gguf"], 65),
    "no folder for the output": (["convert", "SOURCE", "-t", "Q8_0", "-o", "missing/a.gguf"], 73),
    "no folder for a folder": (["convert", "SOURCE", "-t", "Q8_0", "-o", "TMP/missing/out/"], 73),
    "a file for a folder": (["convert", "SOURCE", "-t", "Q8_0", "-o", "SOURCE/config.json/"], 73),
    "a size of another script": (["convert", "SOURCE", "-t", "Q8_0", "--split-max-size", "\u00b2G"], 2),
    "unknown backend": (["convert", "SOURCE", "-t", "Q8_0", "-o", "TMP/a.gguf"], 2),
}


@pytest.mark.parametrize("case", CODES)
def test_exit_codes(source: Path, tmp_path: Path, case: str) -> None:
    arguments, code = CODES[case]
    placed = [part.replace("SOURCE", str(source)).replace("TMP", str(tmp_path)) for part in arguments]
    environment = {"QUANTKIT_BACKEND": "gpu"} if case == "unknown backend" else {}
    result = quantkit_cli(*placed, **environment)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr


def test_errors_end_with_a_hint(source: Path) -> None:
    result = quantkit_cli("convert", source, "-t", "Q9_K")
    assert result.stderr.splitlines()[-1].startswith("hint: types: ")


def test_inspect_shows_keys_and_tensors(source: Path, tmp_path: Path) -> None:
    quantkit_cli("convert", source, "-t", "Q4_K_M", "-o", tmp_path / "a.gguf")
    shown = quantkit_cli("inspect", tmp_path / "a.gguf", "--tensors").stdout
    assert "phi3.block_count" in shown and "blk.1.ffn_down.weight" in shown
    report = json.loads(quantkit_cli("inspect", tmp_path / "a.gguf", "--json").stdout)
    assert report["fields"]["phi3.block_count"] == {"kind": "U32", "value": small.LAYERS}
    assert len(report["tensors"]) == 3 + 6 * small.LAYERS


def test_a_closed_pipe_is_no_bug(source: Path, tmp_path: Path) -> None:
    quantkit_cli("convert", source, "-t", "Q8_0", "-o", tmp_path / "a.gguf")
    command = f"{sys.executable} -m quantkit inspect {tmp_path / 'a.gguf'} --json | head -c 10"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.stdout[:1], result.stderr) == ("{", "")


def test_a_terminal_gets_a_bar_with_rate_and_time_left(source: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "quantkit", "convert", str(source), "-t", "Q8_0", "-o", str(tmp_path / "a.gguf")]
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # the other end was closed
        pass
    assert process.wait() == 0
    assert b"converting" in seen and b"/s" in seen and b"ETA" in seen


def test_a_new_folder_for_one_type_is_planned_as_it_is_made(source: Path, tmp_path: Path) -> None:
    arguments = ("convert", source, "-t", "Q8_0", "-o", f"{tmp_path}/new/", "--json")
    planned = json.loads(quantkit_cli(*arguments, "--dry-run").stdout)["files"][0]["paths"]
    assert not list(tmp_path.iterdir())
    assert planned == json.loads(quantkit_cli(*arguments).stdout)["files"][0]["paths"]
    assert planned == [str(tmp_path / "new" / "small-Q8_0.gguf")]


def test_plan_of_a_gguf_file_lists_every_preset(source: Path, tmp_path: Path) -> None:
    quantkit_cli("convert", source, "-t", "BF16", "-o", tmp_path / "a-BF16.gguf", "-q")
    result = quantkit_cli("plan", tmp_path / "a-BF16.gguf")
    assert result.returncode == 0, result.stderr
    assert "Q2_K_S" in result.stdout and "needs --imatrix" in result.stdout


def test_a_full_disk_behind_stdout_is_no_bug(source: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "quantkit", "plan", str(source)]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 74, result.stderr
    assert "bug" not in result.stderr
