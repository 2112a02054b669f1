"""`quantkit report` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sample_report

from quantkit import report
from quantkit.cli import main

FILES = {f"plots/{name}.{kind}" for name in ("pareto", "memory", "types", "windows") for kind in ("svg", "png")}
FILES |= {"report.html", "report.md"}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_beside_the_report_or_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sample_report.write(tmp_path / "out")
    assert run(capsys, folder) == (0, "", f"wrote {folder / 'report.html'}, and 9 files beside it\n")
    assert files(folder) == FILES | {"report.json"}
    other = tmp_path / "other"
    code, out, err = run(capsys, folder / "report.json", "-o", other, "--json", "-q")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["schema"] == {"name": "quantkit.report", "version": 1}
    assert {*found["files"]} == {str(other / name) for name in FILES}
    for name in FILES:
        assert (other / name).read_bytes() == (folder / name).read_bytes()


# case: (arguments, exit code, words)
CODES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "nothing there": (("TMP/none",), 65, "no such file"),
    "no report": (("TMP/other.json",), 65, "key schema: is no report of a sweep"),
    "no JSON": (("TMP/text.json",), 65, "is not JSON"),
    "a report under the page's name": (("TMP/out/report.html",), 2, "would replace an input"),
    "no place for the folder": (("TMP/out", "-o", "TMP/none/deep"), 73, "cannot be made"),
    "a file in the folder's place": (("TMP/out", "-o", "TMP/text.json"), 73, "cannot be made"),
}


@pytest.mark.parametrize("case", CODES)
def test_exit_codes(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sample_report.write(tmp_path / "out")
    (folder / "report.html").write_bytes((folder / "report.json").read_bytes())
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "text.json").write_text("report")
    before = files(tmp_path)
    arguments, code, words = CODES[case]
    found, out, err = run(capsys, *(part.replace("TMP", str(tmp_path)) for part in arguments))
    assert (found, out) == (code, ""), err
    assert words in err
    assert files(tmp_path) == before


def test_without_the_extra_it_says_how_to_have_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "matplotlib" else name)
    folder = sample_report.write(tmp_path / "out")
    code, _, err = run(capsys, folder)
    assert code == 2 and "a page with plots needs matplotlib" in err and "quantkit[report]" in err
    assert files(folder) == {"report.json"}
