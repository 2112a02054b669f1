"""The keys of a vocabulary."""

from __future__ import annotations

from dataclasses import replace

from gguf import Keys
from gguf import TokenType as LlamaTokenType

from quantkit.gguf_io.fields import Field, Kind
from quantkit.tokenizer import TokenType, Vocabulary, fields
from quantkit.tokenizer.vocabulary import FLAG_KEYS, ROLE_KEYS

FULL = Vocabulary(
    model="gpt2",
    pre="dbrx",
    tokens=["a", "b"],
    types=[1, 3],
    merges=["a b"],
    scores=[0.5, -1.0],
    special_ids={"eos": 1, "bos": 0},
    add_flags={"bos": False},
    chat_template="d",
    named_templates={"rag": "r"},
)


def test_all_fields_in_order() -> None:
    assert fields(FULL) == [
        Field("tokenizer.ggml.model", Kind.STRING, "gpt2"),
        Field("tokenizer.ggml.pre", Kind.STRING, "dbrx"),
        Field("tokenizer.ggml.tokens", Kind.ARRAY, ["a", "b"], Kind.STRING),
        Field("tokenizer.ggml.scores", Kind.ARRAY, [0.5, -1.0], Kind.F32),
        Field("tokenizer.ggml.token_type", Kind.ARRAY, [1, 3], Kind.I32),
        Field("tokenizer.ggml.merges", Kind.ARRAY, ["a b"], Kind.STRING),
        Field("tokenizer.ggml.eos_token_id", Kind.U32, 1),
        Field("tokenizer.ggml.bos_token_id", Kind.U32, 0),
        Field("tokenizer.ggml.add_bos_token", Kind.BOOL, False),
        Field("tokenizer.chat_template.rag", Kind.STRING, "r"),
        Field("tokenizer.chat_templates", Kind.ARRAY, ["rag"], Kind.STRING),
        Field("tokenizer.chat_template", Kind.STRING, "d"),
    ]


def test_what_is_not_there_is_not_written() -> None:
    bare = replace(FULL, merges=None, scores=None, special_ids={}, add_flags={}, chat_template=None, named_templates={})
    assert [field.key.removeprefix("tokenizer.ggml.") for field in fields(bare)] == [
        "model",
        "pre",
        "tokens",
        "token_type",
    ]


def test_keys_and_types_are_llama_cpps() -> None:
    library = Keys.Tokenizer
    assert {role: getattr(library, f"{role.upper()}_ID") for role in ROLE_KEYS} == ROLE_KEYS
    assert {role: getattr(library, f"ADD_{role.upper()}") for role in FLAG_KEYS} == FLAG_KEYS
    assert {kind.name: kind.value for kind in TokenType} == {kind.name: kind.value for kind in LlamaTokenType}
