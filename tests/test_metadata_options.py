"""--metadata, --name and --chat-template: what a file says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import small

from quantkit.errors import UsageError
from quantkit.gguf_io import Field, Kind, overridden, read_gguf

FIELDS = (
    Field("general.architecture", Kind.STRING, "phi3"),
    Field("general.name", Kind.STRING, "Small"),
    Field("phi3.context_length", Kind.U32, 2048),
    Field("phi3.rope.freq_base", Kind.F32, 250000.0),
    Field("tokenizer.ggml.add_bos_token", Kind.BOOL, False),
    Field("tokenizer.ggml.tokens", Kind.ARRAY, ["a"], Kind.STRING),
)


def test_a_key_keeps_its_place_and_kind() -> None:
    changes = {"phi3.context_length": "4096", "tokenizer.ggml.add_bos_token": "true", "phi3.rope.freq_base": "1e6"}
    result = overridden(FIELDS, changes)
    assert [field.key for field in result] == [field.key for field in FIELDS]
    assert [(field.kind, field.value) for field in result[2:5]] == [
        (Kind.U32, 4096),
        (Kind.F32, 1e6),
        (Kind.BOOL, True),
    ]


def test_new_keys_go_to_the_end_and_may_name_their_kind() -> None:
    changes = {"general.author": "a: b", "x.i": "int:-3", "x.f": "float:0.5", "x.b": "bool:false", "x.s": "str:int:3"}
    result = overridden(FIELDS, changes)
    assert result[: len(FIELDS)] == FIELDS
    assert [(field.key, field.kind, field.value) for field in result[len(FIELDS) :]] == [
        ("general.author", Kind.STRING, "a: b"),
        ("x.i", Kind.I32, -3),
        ("x.f", Kind.F32, 0.5),
        ("x.b", Kind.BOOL, False),
        ("x.s", Kind.STRING, "int:3"),
    ]


def test_an_empty_value_takes_a_key_away() -> None:
    assert "general.name" not in {field.key for field in overridden(FIELDS, {"general.name": ""})}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "llama"),
        ("general.file_type", "3"),
        ("tokenizer.ggml.tokens", "a"),
        ("quantkit.version", "9"),
        ("split.no", "1"),
        ("", "x"),
        ("phi3.context_length", "many"),
        ("phi3.context_length", "-1"),
        ("phi3.context_length", str(2**32)),
        ("tokenizer.ggml.add_bos_token", "yes"),
        ("x.i", "int:3.5"),
        ("x.f", "float:"),
    ],
)
def test_refused(key: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        overridden(FIELDS, {key: value})
    assert caught.value.details["key"] == key


def convert(source: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", "convert", str(source), "-t", "Q8_0", "-o", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_options_reach_the_file(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small")
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + m['content'] + '<|endoftext|>' }}{% endfor %}")
    out = tmp_path / "a.gguf"
    options = ["--name", "Our Model", "--metadata", "general.author=Us", "--chat-template", str(template)]
    result = convert(source, out, *options)
    assert result.returncode == 0, result.stderr
    fields = read_gguf(out).fields
    assert fields["general.name"].value == "Our Model"
    assert fields["general.author"].value == "Us"
    assert fields["tokenizer.chat_template"].value == template.read_text()
    assert fields["tokenizer.ggml.eot_token_id"].value == 258, "eot follows the template"


def test_what_is_no_pair_and_no_file_is_refused(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small")
    assert convert(source, tmp_path / "a.gguf", "--metadata", "general.author").returncode == 2
    assert convert(source, tmp_path / "a.gguf", "--chat-template", str(tmp_path / "no.jinja")).returncode == 65
