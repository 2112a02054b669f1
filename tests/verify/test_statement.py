"""Statements: written only when all is equal, held against a file without its source, nothing private in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import small_gguf

from quantkit import __version__
from quantkit.cli import main
from quantkit.gguf_io import read_gguf

Json = dict[str, Any]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["verify", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("statement") / "small")


@pytest.fixture(scope="module")
def made(source: Path) -> Path:
    return small_gguf.run(source, source.parent, ["Q4_K_M"])["Q4_K_M"]


@pytest.fixture(scope="module")
def statement(source: Path, made: Path) -> Path:
    path = made.with_suffix(".json")
    assert run(made, "--source", source, "--write-statement", path, "-q") == 0
    return path


def test_it_is_an_in_toto_statement_of_what_went_in_and_came_out(made: Path, statement: Path) -> None:
    fields = read_gguf(made).fields
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    assert json.loads(statement.read_text()) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "Q4_K_M.gguf", "digest": {"sha256": digest}}],
        "predicateType": "urn:quantkit:derivation:v1",
        "predicate": {
            "version": __version__,
            "verifier": __version__,
            "source": [{"name": "model.safetensors", "tensors_sha256": fields["quantkit.source.0.sha256"].value}],
            "recipe": {"name": "Q4_K_M", "sha256": fields["quantkit.recipe.sha256"].value},
            "types": {"Q4_K": 7, "F32": 5, "Q6_K": 3},
            "imatrix": None,
            "covariance": None,
            "lora": [],
            "strategy": "reference",
        },
    }


def test_it_says_nothing_of_the_place_and_is_the_same_anywhere(source: Path, made: Path, statement: Path) -> None:
    text = statement.read_text()
    for private in (str(source.parent), str(Path.home()), source.parent.name):
        assert private == "/" or private not in text
    again = statement.with_name("again.json")
    assert run(made, "--source", source, "--write-statement", again, "--threads", 1, "-q") == 0
    assert again.read_bytes() == statement.read_bytes()


def test_the_file_is_known_again_under_another_name(made: Path, statement: Path, tmp_path: Path) -> None:
    assert run(made, "--statement", statement) == 0
    copy = tmp_path / "renamed.gguf"
    copy.write_bytes(made.read_bytes())
    assert run(copy, "--statement", statement) == 0


def test_another_file_is_refused(
    made: Path, statement: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / made.name
    data = bytearray(made.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    assert run(changed, "--statement", statement) == 3
    assert "the statement is of another file" in capsys.readouterr().err


def test_a_file_that_differs_gets_no_statement(source: Path, made: Path, tmp_path: Path) -> None:
    changed, out = tmp_path / made.name, tmp_path / "statement.json"
    data = bytearray(made.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    assert run(changed, "--source", source, "--write-statement", out) == 3
    assert not out.exists()


def _source(statement: Json) -> None:
    statement["predicate"]["source"][0]["tensors_sha256"] = "0" * 64


def _recipe(statement: Json) -> None:
    statement["predicate"]["recipe"]["name"] = "Q8_0"


def _imatrix(statement: Json) -> None:
    statement["predicate"]["imatrix"] = {"sha256": "0" * 64}


def _lora(statement: Json) -> None:
    statement["predicate"]["lora"] = [{"sha256": "0" * 64, "scale": 1.0}]


def _strategy(statement: Json) -> None:
    statement["predicate"]["strategy"] = "feedback"


def _version(statement: Json) -> None:
    statement["predicate"]["version"] = "9.9"


def _another_subject(statement: Json) -> None:
    statement["subject"].append({"name": "b.gguf", "digest": {"sha256": "0" * 64}})


CONTRADICTIONS = (_source, _recipe, _imatrix, _lora, _strategy, _version, _another_subject)


@pytest.mark.parametrize("edit", CONTRADICTIONS, ids=lambda edit: edit.__name__.lstrip("_"))
def test_a_statement_that_the_file_contradicts(
    made: Path, statement: Path, tmp_path: Path, edit: Callable[[Json], None]
) -> None:
    content = json.loads(statement.read_text())
    edit(content)
    (tmp_path / "s.json").write_text(json.dumps(content))
    assert run(made, "--statement", tmp_path / "s.json") == 3


def _no_type(statement: Json) -> None:
    del statement["_type"]


def _another_predicate(statement: Json) -> None:
    statement["predicateType"] = "https://slsa.dev/provenance/v1"


def _no_digest(statement: Json) -> None:
    statement["subject"][0]["digest"] = {"sha1": "0" * 40}


def _a_number_for_text(statement: Json) -> None:
    statement["predicate"]["strategy"] = 1


def _no_subject(statement: Json) -> None:
    statement["subject"] = []


BROKEN = (_no_type, _another_predicate, _no_digest, _a_number_for_text, _no_subject)


@pytest.mark.parametrize("edit", BROKEN, ids=lambda edit: edit.__name__.lstrip("_"))
def test_what_is_no_statement_of_ours_is_refused(
    made: Path, statement: Path, tmp_path: Path, edit: Callable[[Json], None], capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(statement.read_text())
    edit(content)
    (tmp_path / "s.json").write_text(json.dumps(content))
    assert run(made, "--statement", tmp_path / "s.json") == 65
    assert "is no statement" in capsys.readouterr().err


def test_the_result_as_json(source: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(made, "--source", source, "--json", "-q") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["equal"], result["recipe"], result["tensors"]) == (True, "Q4_K_M", 15)
    assert run(made, "--source", source, "--name", "Other", "--json") == 3
    said = capsys.readouterr()
    (difference,) = json.loads(said.out)["differences"]
    assert (difference["key"], difference["expected"]) == ("general.name", "'Other'")
    assert said.err.splitlines()[-1].startswith("hint: give --name")


@pytest.mark.parametrize("both", [False, True])
def test_it_is_either_a_source_or_a_statement(source: Path, made: Path, statement: Path, both: bool) -> None:
    assert run(made, *(("--source", source, "--statement", statement) if both else ())) == 2


@pytest.mark.parametrize(
    "option", ["--imatrix", "--lora", "--name", "--metadata", "--chat-template", "--write-statement"]
)
def test_what_a_statement_cannot_heed_is_refused(made: Path, statement: Path, option: str, tmp_path: Path) -> None:
    assert run(made, "--statement", statement, option, tmp_path / "a=b") == 2
    assert run(made, "--statement", statement) == 0


def test_the_file_is_not_replaced_by_its_statement(source: Path, made: Path) -> None:
    before = made.read_bytes()
    assert run(made, "--source", source, "--write-statement", made) == 2
    assert made.read_bytes() == before
