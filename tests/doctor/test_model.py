"""Good files pass; each trap that is planted in one is found, and its cure named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import small_gguf
from small_gguf import Model, edited

from quantkit import doctor
from quantkit.cli import main
from quantkit.doctor import Finding, findings, model_checks, render
from quantkit.gguf_io import Field, Kind
from quantkit.qtypes import F32
from quantkit.tokenizer import TokenType

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    return small_gguf.run(small.write(folder / "small"), folder, ["Q4_K_M"])["Q4_K_M"]


def examine(path: Path) -> dict[str, Finding]:
    seen: list[int] = []
    with doctor.Model(path) as model:
        found = dict(findings(model_checks(model, seen.append)))
        assert sum(seen) == sum(tensor.nbytes for tensor in model.weights.tensors.values())
    return found


def test_a_good_file_passes(good: Path) -> None:
    found = examine(good)
    assert {name: finding.verdict for name, finding in found.items()} == dict.fromkeys(found, "ok")
    assert found["stopping"].found == "the template ends a turn with 260 <|im_end|>, which is eos and eot"


def test_real_files_pass(real_small: Path, phi4_tiny: Path, converted: Callable[[Path], dict[str, Path]]) -> None:
    for checkpoint in (real_small, phi4_tiny):
        found = examine(converted(checkpoint)["Q4_K_M"])
        assert {finding.verdict for finding in found.values()} <= {"ok", "warning"}, found
        assert found["stopping"].verdict == found["chat template"].verdict == "ok"


def _token(role: str, value: int) -> Callable[[Model], None]:
    return lambda model: model.set(f"tokenizer.ggml.{role}_token_id", Kind.U32, value)


def _template(text: str) -> Callable[[Model], None]:
    return lambda model: model.set("tokenizer.chat_template", Kind.STRING, text)


def _without(key: str) -> Callable[[Model], None]:
    return lambda model: model.fields.pop(key) and None


def _first_phi4(model: Model) -> None:
    """bos, eos and pad are one, as in the first Phi-4 files, and no eot helps."""
    for role in ("eos", "padding"):
        _token(role, 258)(model)
    del model.fields["tokenizer.ggml.eot_token_id"]


def _eot_alone(model: Model) -> None:
    _token("eos", 258)(model)


def _a_token_twice(model: Model) -> None:
    model.fields[TOKENS].value[65] = model.fields[TOKENS].value[66]


def _a_type_too_few(model: Model) -> None:
    model.fields[TYPES].value.pop()


def _a_merge_of_nothing(model: Model) -> None:
    model.fields["tokenizer.ggml.merges"].value.append("q q")


def _printed_stop(model: Model) -> None:
    model.fields[TYPES].value[260] = TokenType.NORMAL


def _phi3(model: Model) -> None:
    model.set("general.name", Kind.STRING, "Our Phi-3 killer")


def _nan(model: Model) -> None:
    shape, qtype, data = model.tensors["blk.1.attn_norm.weight"]
    values = np.frombuffer(data, "<f4").copy()
    values[77] = np.nan
    model.tensors["blk.1.attn_norm.weight"] = (shape, qtype, values.tobytes())


def _infinite_scale(model: Model) -> None:
    shape, qtype, data = model.tensors["blk.0.ffn_up.weight"]
    row = qtype.row_bytes(shape[1])
    changed = bytearray(data)
    changed[5 * row : 5 * row + 2] = b"\x00\x7c"  # float16 infinity, the first block's d
    model.tensors["blk.0.ffn_up.weight"] = (shape, qtype, bytes(changed))


def _zeros(model: Model) -> None:
    shape, qtype, data = model.tensors["blk.0.attn_output.weight"]
    model.tensors["blk.0.attn_output.weight"] = (shape, qtype, bytes(len(data)))


def _another_architecture(model: Model) -> None:
    model.set("general.architecture", Kind.STRING, "llama")


def _a_tensor_too_few(model: Model) -> None:
    del model.tensors["blk.1.ffn_down.weight"]


def _a_stranger(model: Model) -> None:
    model.tensors["extra.weight"] = ((4,), F32, bytes(16))


def _empty_tokens(model: Model) -> None:
    model.fields[TOKENS].value[10:12] = ["", ""]  # llama.cpp gives each a name of its own


def _no_tokens(model: Model) -> None:
    model.fields[TOKENS] = Field(TOKENS, Kind.ARRAY, [], Kind.STRING)


Trap = tuple[Callable[[Model], object], str, str, str]
# trap: the edit, the check that finds it, its verdict, and words of it
TRAPS: dict[str, Trap] = {
    "eos and pad of the first Phi-4": (_first_phi4, "stopping", "failed", "neither eos nor eot"),
    "only eot stops": (_eot_alone, "stopping", "warning", "eot and not eos"),
    "no eot": (_without("tokenizer.ggml.eot_token_id"), "stopping", "ok", "there is no eot"),
    "pad is eos": (_token("padding", 260), "special tokens", "warning", "unlearn to stop"),
    "no eos": (_without("tokenizer.ggml.eos_token_id"), "special tokens", "failed", "there is no eos"),
    "an eos beyond the vocabulary": (_token("eos", 99999), "special tokens", "failed", "not in the vocabulary"),
    "a stop that is printed": (_printed_stop, "special tokens", "warning", "would be printed"),
    "a token twice": (_a_token_twice, "vocabulary", "failed", "several tokens"),
    "empty tokens": (_empty_tokens, "vocabulary", "ok", "263 tokens"),
    "a type too few": (_a_type_too_few, "vocabulary", "failed", "types"),
    "a merge of nothing": (_a_merge_of_nothing, "vocabulary", "failed", "make no token"),
    "no merges": (_without("tokenizer.ggml.merges"), "vocabulary", "failed", "no merges"),
    "no tokens": (_no_tokens, "vocabulary", "failed", "no tokens"),
    "a name with phi-3": (_phi3, "name", "warning", "drops the blanks"),
    "no template": (_without("tokenizer.chat_template"), "keys", "warning", "by a guess"),
    "no pre-tokenizer": (_without("tokenizer.ggml.pre"), "keys", "warning", "other tokens"),
    "no architecture": (_without("general.architecture"), "keys", "failed", "nothing loads it"),
    "a template that breaks off": (_template("{{ frob() }}"), "chat template", "failed", "UndefinedError"),
    "a template that asks for a class": (_template("{{ ''.__class__.a }}"), "chat template", "failed", "SecurityError"),
    "a template that forgets": (_template("{{ messages[0].content }}"), "chat template", "failed", "assistant said"),
    "a template of another model": (
        _template("{% for m in messages %}<|user|>{{ m.content }}<|im_end|>{% endfor %}"),
        "chat template",
        "warning",
        "<|user|> is no special token",
    ),
    "a template without an end": (
        _template("{% for m in messages %}{{ m.content }}\n{% endfor %}"),
        "stopping",
        "failed",
        "never ends",
    ),
    "NaN in a norm": (_nan, "weights", "failed", "blk.1.attn_norm.weight, row 0, column 77"),
    "an infinite scale": (_infinite_scale, "weights", "failed", "blk.0.ffn_up.weight, row 5, column 0"),
    "a tensor of zeros": (_zeros, "weights", "failed", "nothing but zeros: blk.0.attn_output.weight"),
    "a tensor too few": (_a_tensor_too_few, "network", "failed", "blk.1.ffn_down.weight"),
    "a tensor too many": (_a_stranger, "network", "failed", "extra.weight"),
    "no context length": (_without("phi3.context_length"), "network", "failed", "context_length"),
    "another architecture": (_another_architecture, "network", "skipped", "not supported"),
}


@pytest.mark.parametrize("case", TRAPS)
def test_traps_are_found(good: Path, tmp_path: Path, case: str) -> None:
    edit, check, verdict, words = TRAPS[case]
    finding = examine(edited(good, tmp_path / "a.gguf", edit))[check]
    assert finding.verdict == verdict, finding
    assert words in finding.found
    assert finding.cure or verdict in ("ok", "skipped")


def test_every_check_has_a_trap() -> None:
    assert {check for _, check, _, _ in TRAPS.values()} == {
        "network", "keys", "name", "vocabulary", "special tokens", "chat template", "stopping", "weights",
    }  # fmt: skip


def test_without_jinja2_the_template_is_passed_over_and_said_so(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "unavailable", lambda: "jinja2 is not installed")
    found = examine(good)
    for name in ("chat template", "stopping"):
        assert found[name].verdict == "skipped"
        assert "jinja2 is not installed" in found[name].found
        assert found[name].cure == "pip install 'quantkit[report]'"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(good, "-q") == 0
    assert capsys.readouterr() == ("", "")
    bad = edited(good, tmp_path / "a.gguf", _first_phi4)
    assert run(bad, "-q") == 3
    said = capsys.readouterr()
    assert "cure: convert it again with --fix-special-tokens" in said.out
    assert said.err == "quantkit: error: 1 of 9 checks failed: stopping\n"


def test_the_command_as_json(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(good, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == {"name": "quantkit.doctor", "version": 1}
    assert [check["name"] for check in result["checks"]][:2] == ["structure", "network"]
    assert {check["verdict"] for check in result["checks"]} == {"ok"}


def test_a_file_whose_structure_is_broken(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "a.gguf"
    cut.write_bytes(good.read_bytes()[:-5000])
    assert run(cut) == 3
    assert "ends inside a tensor" in capsys.readouterr().out
    assert run(tmp_path / "missing.gguf") == 65
