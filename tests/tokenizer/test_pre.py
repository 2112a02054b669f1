"""Pre-tokenizers: what is recognised, that forms called equal split equally, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from unittest import mock

import pytest
from tiktoken_ext import openai_public
from tokenizers import Tokenizer, models

from quantkit.errors import ConfigError, UnsupportedError
from quantkit.tokenizer.pre import CL100K, O200K, PRE_TOKENIZERS, recognise

FILE = Path("tokenizer.json")


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*steps]}


def split(behavior: str, invert: bool, regex: str = CL100K) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def to_bytes(prefix: bool = False, trim: bool = True, regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex}


DIGITS = {"type": "Digits", "individual_digits": True}

DBRX = {
    "as Phi-4 has it": sequence(split("Removed", True), to_bytes()),
    "isolated": sequence(split("Isolated", False), to_bytes()),
    "isolated, inverted": sequence(split("Isolated", True), to_bytes()),
    "other offsets": sequence(split("Removed", True), to_bytes(trim=False)),
    "nested": sequence(sequence(split("Removed", True)), sequence(to_bytes())),
}
GPT_4O = {
    "as Phi-4-mini has it": sequence(split("Removed", True, O200K), to_bytes()),
    "isolated": sequence(split("Isolated", False, O200K), to_bytes()),
    "other offsets": sequence(split("Isolated", False, O200K), to_bytes(trim=False)),
}
SMOLLM = {
    "as SmolLM2 has it": sequence(DIGITS, to_bytes(regex=True)),
    "regex by default": sequence(DIGITS, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}),
}
UNKNOWN = {
    "nothing": (None, "no splitting"),
    "GPT-2": (to_bytes(regex=True), "GPT-2's words, then bytes"),
    "a space in front": (sequence(split("Removed", True), to_bytes(prefix=True)), "a space in front"),
    "a space in front by default": (sequence(split("Removed", True), {"type": "ByteLevel"}), "a space in front"),
    "both regexes": (sequence(split("Removed", True), to_bytes(regex=True)), "GPT-2's words"),
    "another pattern": (sequence(split("Removed", True, r"\s+"), to_bytes()), r"split by \s+"),
    "matches removed": (sequence(split("Removed", False), to_bytes()), "Removed"),
    "merged": (sequence(split("MergedWithNext", False), to_bytes()), "MergedWithNext"),
    "string pattern": (
        sequence({"type": "Split", "pattern": {"String": "x"}, "behavior": "Removed", "invert": True}, to_bytes()),
        "String",
    ),
    "digit groups": (sequence({"type": "Digits", "individual_digits": False}, to_bytes(regex=True)), "digits apart"),
    "another order": (sequence(to_bytes(), split("Removed", True)), "bytes, then split by"),
    "another kind": (sequence({"type": "Whitespace"}), "Whitespace"),
    "no object": ([1], "[1]"),
}


@pytest.mark.parametrize("name", DBRX)
def test_dbrx(name: str) -> None:
    assert recognise(DBRX[name], FILE) == "dbrx"


@pytest.mark.parametrize("name", GPT_4O)
def test_gpt_4o(name: str) -> None:
    assert recognise(GPT_4O[name], FILE) == "gpt-4o"


@pytest.mark.parametrize("name", SMOLLM)
def test_smollm(name: str) -> None:
    assert recognise(SMOLLM[name], FILE) == "smollm"


RECOGNISED = {"dbrx": DBRX, "gpt-4o": GPT_4O, "smollm": SMOLLM}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_name_gives_the_pre_tokenizer_that_it_is_recognised_by(name: str) -> None:
    same = {other for other, spec in PRE_TOKENIZERS.items() if spec == PRE_TOKENIZERS[name]}
    assert recognise(PRE_TOKENIZERS[name], FILE) in same & RECOGNISED.keys()
    assert name in RECOGNISED or len(same) > 1


@pytest.mark.parametrize("name", RECOGNISED)
def test_every_name_that_is_recognised_gives_a_pre_tokenizer(name: str) -> None:
    assert recognise(PRE_TOKENIZERS[name], FILE) == name


@pytest.mark.parametrize("forms", [DBRX, GPT_4O, SMOLLM], ids=["dbrx", "gpt-4o", "smollm"])
def test_forms_with_one_name_split_alike(forms: dict[str, Any]) -> None:
    texts = [topics[key] for key in sorted(topics)[:10]] + ["I'LL  it's 12345\r\n\r\n\t x\u00a0é日本\u200d🚀 \n", " "]
    expected, *others = (pieces(built(form), texts) for form in forms.values())
    assert others and all(found == expected for found in others)


def pieces(tool: Any, texts: list[str]) -> list[list[str]]:
    return [[piece for piece, _ in tool.pre_tokenize_str(text)] for text in texts]


def built(pre_tokenizer: Any) -> Any:
    """The library's own pre-tokenizer from its JSON."""
    whole = json.loads(Tokenizer(models.BPE()).to_str()) | {"pre_tokenizer": pre_tokenizer}
    return Tokenizer.from_str(json.dumps(whole)).pre_tokenizer


@pytest.mark.parametrize("name", UNKNOWN)
def test_others_are_refused_and_shown(name: str) -> None:
    pre_tokenizer, words = UNKNOWN[name]
    with pytest.raises(UnsupportedError) as caught:
        recognise(pre_tokenizer, FILE)
    assert words in caught.value.details["found"]
    assert "dbrx" in str(caught.value.hint) and "smollm" in str(caught.value.hint)


def test_o200k_is_tiktokens() -> None:
    """cl100k's is spelled otherwise there, with operators that the regular expressions of `tokenizers` lack."""
    with mock.patch.object(openai_public, "load_tiktoken_bpe", return_value={}):
        assert openai_public.o200k_base()["pat_str"] == O200K


def test_a_part_without_its_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="pretokenizers"):
        recognise({"type": "Sequence"}, FILE)
