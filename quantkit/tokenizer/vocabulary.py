"""The record that every kind of tokenizer becomes, and the GGUF keys it is written as."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from quantkit.gguf_io.fields import Field, Kind


class TokenType(IntEnum):
    """What a runtime does with a token; the numbers are llama.cpp's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # never printed, parsed only where special tokens are allowed
    USER_DEFINED = 4  # printed, and matched in the text before it is split
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF describes it.

    model            llama.cpp's name for the algorithm: "gpt2" is byte-level BPE
    pre              llama.cpp's name for the way text is split before merging
    tokens           text of each id, one for each row of the embedding
    types            TokenType of each id
    merges           pairs "left right", best first, or None where the algorithm has none
    scores           log-probability of each id, or None where the algorithm has none
    special_ids      id by role (a key of ROLE_KEYS), in the order they are written
    add_flags        whether encoding adds the token of a role (a key of FLAG_KEYS), in the order they are written
    chat_template    Jinja text, or None
    named_templates  further templates by name ("tool_use"), in the order they are written
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    special_ids: dict[str, int]
    add_flags: dict[str, bool]
    chat_template: str | None
    named_templates: dict[str, str] = field(default_factory=dict)


# "seperator" is the key's spelling in every GGUF reader.
ROLE_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
}
FLAG_KEYS = {kind: f"tokenizer.ggml.add_{kind}_token" for kind in ("bos", "eos", "sep")}


def fields(vocabulary: Vocabulary) -> list[Field]:
    """The keys of a vocabulary, typed and ordered as by llama.cpp's converter (conversion/base.py, gguf/vocab.py)."""
    arrays = (
        ("tokenizer.ggml.tokens", Kind.STRING, vocabulary.tokens),
        ("tokenizer.ggml.scores", Kind.F32, vocabulary.scores),
        ("tokenizer.ggml.token_type", Kind.I32, vocabulary.types),
        ("tokenizer.ggml.merges", Kind.STRING, vocabulary.merges),
    )
    named = vocabulary.named_templates
    result = [
        Field("tokenizer.ggml.model", Kind.STRING, vocabulary.model),
        Field("tokenizer.ggml.pre", Kind.STRING, vocabulary.pre),
        *(Field(key, Kind.ARRAY, value, item) for key, item, value in arrays if value is not None),
        *(Field(ROLE_KEYS[role], Kind.U32, token_id) for role, token_id in vocabulary.special_ids.items()),
        *(Field(FLAG_KEYS[role], Kind.BOOL, flag) for role, flag in vocabulary.add_flags.items()),
        *(Field(f"tokenizer.chat_template.{name}", Kind.STRING, text) for name, text in named.items()),
    ]
    if named:
        result.append(Field("tokenizer.chat_templates", Kind.ARRAY, list(named), Kind.STRING))
    if vocabulary.chat_template is not None:
        result.append(Field("tokenizer.chat_template", Kind.STRING, vocabulary.chat_template))
    return result
