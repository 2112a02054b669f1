"""report.json comes from outside: what is shown of it is what it can be, and what cannot be is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample_report

from quantkit.errors import FormatError, InputError
from quantkit.report import read_report


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    folder = sample_report.write(tmp_path / "out", sample_report.optimized)
    report = read_report(folder)
    assert report == read_report(folder / "report.json")
    assert report.picked.name == "OPT-Q6_K" and report.picked.predicted_kld == 0.0115
    assert [mix.name for mix in report.mixes] == ["OPT-Q4_K_M", "OPT-Q6_K"]
    assert [one.name for one in report.frontier] == ["Q2_K", "OPT-Q4_K_M", "OPT-Q6_K", "Q8_0"]
    assert report.picked.memory.card[0].nbytes == 10 << 30


def test_keys_of_a_newer_sweep_are_let_be(tmp_path: Path) -> None:
    def newer(content: dict[str, Any]) -> None:
        content["weather"] = "fine"
        content["candidates"][0]["predicted_kld"] = None

    assert read_report(sample_report.write(tmp_path / "out", newer)).mixes == []


def test_what_a_terminal_or_xml_would_obey_is_not_kept(tmp_path: Path) -> None:
    def escape(content: dict[str, Any]) -> None:
        content["source"] = "a\x1b[31m\u202eb\nc\x00"

    assert read_report(sample_report.write(tmp_path / "out", escape)).source == "a\ufffd[31m\ufffdb\ufffdc\ufffd"


def at(*path: str | int, value: Any) -> sample_report.Edit:
    """The edit that puts a value at a place."""

    def edit(content: Any) -> None:
        *way, last = path
        for step in way:
            content = content[step]
        content[last] = value

    return edit


def without(content: dict[str, Any]) -> None:
    del content["candidates"][1]["kld"]


# case: (edit, the key that is named or words of the refusal)
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another kind of file": (at("schema", "name", value="quantkit.eval"), "schema.name"),
    "a later version": (at("schema", "version", value=2), "schema.version"),
    "a key is missing": (without, "candidates.1.kld"),
    "a number as text": (at("candidates", 0, "ppl", value="9"), "candidates.0.ppl"),
    "a negative size": (at("candidates", 0, "file_bytes", value=-1), "candidates.0.file_bytes"),
    "a share above one": (at("candidates", 0, "same_top", value=1.5), "candidates.0.same_top"),
    "a KLD that no logits give": (at("candidates", 2, "kld", "mean", value=1e300), "candidates.2.kld.mean"),
    "an unknown type": (at("candidates", 0, "tensor_types", "output.weight", value="Q9"), "tensor_types.output.weight"),
    "no candidates": (at("candidates", value=[]), "candidates"),
    "a pick that is none": (at("pick", "type", value="Q9_K"), "what is picked is no candidate"),
    "one name twice": (at("candidates", 0, "type", value="Q4_0"), "two candidates have one name"),
    "lists of other windows": (at("candidates", 0, "kld_by_window", value=[0.1]), "not all lists"),
    "terms of other kinds": (at("candidates", 0, "memory", "card", value=[]), "not all have the same terms"),
    "no object": (at("run", value=[]), "run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, case: str) -> None:
    edit, words = REFUSED[case]
    folder = sample_report.write(tmp_path / "out", edit)
    with pytest.raises(FormatError, match="is no report of a sweep") as caught:
        read_report(folder)
    assert words in str(caught.value) and caught.value.details["file"] == folder / "report.json"
    assert caught.value.hint


@pytest.mark.parametrize(("text", "words"), [("{", "not JSON"), ("[]", "no report"), ('{"a": NaN}', "not finite")])
def test_what_is_no_report_at_all_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises(FormatError, match=words):
        read_report(file)


def test_a_folder_without_a_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        read_report(tmp_path)
    assert caught.value.details["file"] == tmp_path / "report.json"


def test_the_sample_is_what_json_has() -> None:
    assert json.loads(json.dumps(sample_report.report())) == sample_report.report()
