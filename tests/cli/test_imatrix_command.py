"""`quantkit imatrix` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small

from quantkit import moments, osio
from quantkit.cli import imatrix as module
from quantkit.cli import main
from quantkit.cli.talk import size
from quantkit.gguf_io import read_gguf
from quantkit.imatrix import read_imatrix

QUICK = ("--window", "32", "--windows", "4")
MATRICES = 4 * small.LAYERS + 1


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
    nbytes = small.LAYERS * moments.nbytes([small.HIDDEN] * 3 + [small.FEED_FORWARD])
    assert err.startswith(f"the second moments take {size(nbytes)} in {folder}\n")
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert nbytes < written < nbytes + 10_000


def test_moments_without_room_are_refused_first(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_space", lambda folder: min(1000, osio.free_space(folder)))
    code, _, err = run(capsys, "imatrix", source, "-o", tmp_path / "a.gguf", *QUICK, "--covariance", tmp_path / "m")
    assert code == 73 and "too little room" in err
    assert not (tmp_path / "a.gguf").exists()


CODES = {
    "no output": (["SOURCE"], 2, "--output"),
    "no source": (["TMP/none", "-o", "TMP/a.gguf"], 65, "none"),
    "no folder": (["SOURCE", "-o", "TMP/none/a.gguf"], 73, "none"),
    "a folder in its place": (["SOURCE", "-o", "TMP"], 73, "a folder stands in its place"),
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
