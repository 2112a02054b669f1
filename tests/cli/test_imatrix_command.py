"""`quantkit imatrix` as a user meets it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small

from quantkit import moments, osio
from quantkit.cli import imatrix as module
from quantkit.cli import main
from quantkit.gguf_io import read_gguf
from quantkit.imatrix import read_imatrix
from quantkit.units import size

QUICK = ("--window", "32", "--windows", "4")
MATRICES = 4 * small.LAYERS + 1
SHAPES = [
    ((small.HEADS + 2 * small.KV_HEADS) * small.HIDDEN // small.HEADS, small.HIDDEN),
    (small.HIDDEN, small.HIDDEN),
    (2 * small.FEED_FORWARD, small.HIDDEN),
    (small.HIDDEN, small.FEED_FORWARD),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("imatrix") / "small")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_what_it_writes_convert_takes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, product = tmp_path / "a.gguf", tmp_path / "b.gguf"
    code, out, err = run(capsys, "imatrix", source, "-o", file, *QUICK)
    assert (code, out) == (0, "")
    assert f"{MATRICES} matrices, 4 windows of 32 tokens of calibration.txt" in err
    assert err.splitlines()[-1] == f"next: quantkit convert {source} -t Q4_K_M --imatrix {file}"
    found = read_imatrix(file)
    assert (found.chunk_count, found.chunk_size, len(found.entries)) == (4, 32, MATRICES)
    assert found.datasets[0].startswith("sha256:")
    for private in (str(tmp_path), str(source.parent), "calibration"):
        assert private.encode() not in file.read_bytes()

    code, _, err = run(capsys, "convert", source, "-t", "Q2_K_S", "--imatrix", file, "-o", product, "-q")
    assert (code, err) == (0, "")
    assert read_gguf(product).fields["quantkit.imatrix.sha256"].value == found.sha256


def test_json(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the hen and the egg. " * 20)
    code, out, err = run(capsys, "imatrix", source, "-o", tmp_path / "a.gguf", *QUICK, "--text", text, "--json", "-q")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["schema"] == {"name": "quantkit.imatrix", "version": 1}
    assert (report["windows"], report["window"], report["matrices"]) == (4, 32, MATRICES)
    assert read_imatrix(tmp_path / "a.gguf").datasets == (f"sha256:{report['text_sha256']}",)


def test_second_moments_and_their_size(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "moments"
    code, _, err = run(capsys, "imatrix", source, "-o", tmp_path / "a.gguf", *QUICK, "--covariance", folder)
    assert code == 0, err
    nbytes = small.LAYERS * moments.nbytes(SHAPES)
    assert err.startswith(f"the second moments take {size(nbytes)} in {folder}\n")
    assert "of calibration.txt, broad.txt" in err
    assert f"--strategy feedback --covariance {folder}" in err
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert nbytes < written < nbytes + 10_000


def test_moments_behind_packed_layers(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that is named next takes them; another type is refused."""
    folder, imatrix = tmp_path / "moments", tmp_path / "a.gguf"
    command = ("imatrix", source, "-o", imatrix, *QUICK, "--covariance", folder, "--json", "--sequential", "Q3_K_M")
    code, out, err = run(capsys, *command)
    assert code == 0, err
    assert json.loads(out)["sequential"] == "Q3_K_M"
    nbytes = small.LAYERS * moments.nbytes(SHAPES, corrected=True)
    assert err.startswith(f"the second moments take {size(nbytes)} in {folder}\n")
    following = shlex.split(err.rpartition("next: quantkit ")[2])
    assert following[:4] == ["convert", str(source), "-t", "Q3_K_M"]
    assert run(capsys, *following, "-o", tmp_path / "b.gguf")[0] == 0
    given = ("--source", source, "--imatrix", imatrix, "--covariance", folder)
    assert run(capsys, "verify", tmp_path / "b.gguf", *given)[0] == 0
    following[3] = "Q4_K_M"
    code, _, err = run(capsys, *following, "-o", tmp_path / "c.gguf")
    assert code == 65 and "the types of Q3_K_M" in err
    code, _, err = run(capsys, *command[:-1], "Q4_K_M")
    assert code == 73 and "key types_sha256" in err
    code, _, err = run(capsys, *command[:-1], "")
    assert code == 2 and "unknown type" in err


def test_own_text_alone(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the hen and the egg. " * 200)
    command = ("imatrix", source, "-o", tmp_path / "a.gguf", "--window", 32, "--windows", 6, "--json", "-q")
    code, out, _ = run(capsys, *command, "--covariance", tmp_path / "m", "--text", text)
    mixed = json.loads(out)
    assert (code, mixed["text"]) == (0, ["text.txt", "calibration.txt", "broad.txt"])
    assert (mixed["windows"], mixed["sequential"]) == (6, None)
    code, out, _ = run(capsys, *command, "--covariance", tmp_path / "n", "--text", text, "--own-text-only")
    assert (code, json.loads(out)["text"]) == (0, ["text.txt"])


def test_moments_without_room_are_refused_first(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_space", lambda folder: min(1000, osio.free_space(folder)))
    code, _, err = run(capsys, "imatrix", source, "-o", tmp_path / "a.gguf", *QUICK, "--covariance", tmp_path / "m")
    assert code == 73 and "too little room" in err
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("read", ["model.safetensors", "text.txt", "blk.0.safetensors"])
def test_it_does_not_replace_what_it_reads(
    source: Path, tmp_path: Path, read: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "small"
    shutil.copytree(source, folder)
    for name in ("text.txt", "blk.0.safetensors"):
        (folder / name).write_text("the hen and the egg. " * 20)
    covariance = read.startswith("blk.")
    text = folder / ("blk.0.safetensors" if covariance else "text.txt")
    outputs = ("-o", tmp_path / "a.gguf", "--covariance", folder) if covariance else ("-o", folder / read)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, err = run(capsys, "imatrix", folder, *outputs, "--text", text, *QUICK)
    assert (code, out) == (2, "") and "would replace an input" in err, err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_moments_of_two_texts_do_not_mix(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "moments"
    command = ("imatrix", source, "-o", tmp_path / "a.gguf", "--covariance", folder, "-q")
    assert run(capsys, *command, *QUICK)[0] == 0
    assert run(capsys, *command, *QUICK)[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, err = run(capsys, *command, "--window", "32", "--windows", "5")
    assert code == 73 and "key count" in err and "hint: name an empty folder" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# A signal to the process itself, when so many layers are done.
STOPPED = """
import importlib, os, signal
module = importlib.import_module("quantkit.evaluate.collect")
from quantkit.cli import main
run = module.run
def stopping(*arguments, progress, **options):
    layers = iter(range(9))
    def counting():
        progress()
        if next(layers) + 1 == {n_layers}:
            os.kill(os.getpid(), signal.SIGINT)
    return run(*arguments, progress=counting, **options)
module.run = stopping
main()
"""


@pytest.mark.parametrize(
    ("n_layers", "options", "words"),
    [
        (2, ("--covariance", "TMP/moments"), "TMP/moments: stopped; the folder has the second moments of blk.0\n"),
        (1, ("--covariance", "TMP/moments"), "stopped; nothing was written under a final name\n"),
        (2, (), "stopped; nothing was written under a final name\n"),
    ],
    ids=["a layer is written", "none is", "no moments"],
)
def test_stopped_it_says_what_is_there(
    source: Path, tmp_path: Path, n_layers: int, options: tuple[str, ...], words: str
) -> None:
    placed = [part.replace("TMP", str(tmp_path)) for part in options]
    arguments = ["imatrix", str(source), "-o", str(tmp_path / "a.gguf"), *QUICK, *placed]
    command = [sys.executable, "-c", STOPPED.format(n_layers=n_layers), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (130, "")
    assert words.replace("TMP", str(tmp_path)) in result.stderr
    assert not list(tmp_path.glob("a.gguf*"))


CODES = {
    "no output": (["SOURCE"], 2, "--output"),
    "no source": (["TMP/none", "-o", "TMP/a.gguf"], 65, "none"),
    "no folder": (["SOURCE", "-o", "TMP/none/a.gguf"], 73, "none"),
    "a folder in its place": (["SOURCE", "-o", "TMP"], 73, "a folder stands in its place"),
    "sequential without a folder": (["SOURCE", "-o", "TMP/a.gguf", "--sequential", "Q4_K"], 2, "for --covariance DIR"),
    "own text of none": (
        ["SOURCE", "-o", "TMP/a.gguf", "--covariance", "TMP/m", "--own-text-only"],
        2,
        "needs a --text",
    ),
    "no such preset": (["SOURCE", "-o", "TMP/a.gguf", "--covariance", "TMP/m", "--sequential", "Q9"], 2, "Q9"),
    "too large a window": (["SOURCE", "-o", "TMP/a.gguf", "--window", "4096"], 2, "at most 2048"),
}


@pytest.mark.parametrize("case", CODES)
def test_exit_codes(source: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, words = CODES[case]
    placed = [part.replace("SOURCE", str(source)).replace("TMP", str(tmp_path)) for part in arguments]
    found, out, err = run(capsys, "imatrix", *placed)
    assert (found, out) == (code, ""), err
    assert words in err
    assert not list(tmp_path.iterdir())
