"""Which of llama.cpp's pre-tokenizers a `pre_tokenizer` of tokenizer.json is, and the other way round.

llama.cpp's converter hashes the ids of one test sentence and looks in a list of hashes, so it no longer recognises a
fine-tune that touched the vocabulary.  Here the pattern itself is compared: it is put into a canonical form, whose
words are also what a refusal shows, and looked up in a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import UnsupportedError

# tiktoken's cl100k_base (https://github.com/openai/tiktoken, tiktoken_ext/openai_public.py) as `tokenizers` spells it.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# tiktoken's o200k_base, likewise.
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# These (behavior, invert) all leave one piece for each match of a pattern that matches everything, as those above do:
# the text between matches, which they treat differently, is empty.
_ISOLATING = (("Removed", True), ("Isolated", False), ("Isolated", True))

_KNOWN = {
    (f"split by {CL100K}", "bytes"): "dbrx",
    (f"split by {O200K}", "bytes"): "gpt-4o",
    ("each digit alone", "GPT-2's words", "bytes"): "smollm",
}


def _split_into_bytes(regex: str) -> dict[str, Any]:
    words = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [words, to_bytes]}


_DIGITS = {"type": "Digits", "individual_digits": True}
_GPT_2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_CL100K_BYTES, _O200K_BYTES = _split_into_bytes(CL100K), _split_into_bytes(O200K)

# `pre_tokenizer` of a tokenizer.json by llama.cpp's name.  It splits alike for the names on one line, and with none of
# them does it put a token in front of a text unless a key asks for it (src/llama-vocab.cpp).
PRE_TOKENIZERS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("dbrx", "smaug-bpe"), _CL100K_BYTES),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie"), _O200K_BYTES),
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _GPT_2]},
}


def recognise(pre_tokenizer: Any, file: Path) -> str:
    """llama.cpp's name for a pre-tokenizer.

    pre_tokenizer  the value of that key in tokenizer.json
    file           where it stands, for the error
    raises         UnsupportedError  none of the known; shows the canonical form and the names that are known
                   ConfigError       a part lacks a key or has a value of the wrong type
    """
    form = tuple(_steps(pre_tokenizer, file))
    if form not in _KNOWN:
        raise UnsupportedError(
            "text is split in a way quantkit has no llama.cpp name for",
            file=file,
            key="pre_tokenizer",
            found=_words(form) or "no splitting",
            hint="known: " + "; ".join(f"{name}: {_words(known)}" for known, name in _KNOWN.items()),
        )
    return _KNOWN[form]


def _words(form: tuple[str, ...]) -> str:
    return ", then ".join(form)


def _steps(part: Any, file: Path) -> Iterator[str]:
    """The canonical form: a phrase for each thing done to the text, sequences flattened, idle settings left out."""
    if part is None:
        return
    kind = require(part, "type", str, file) if isinstance(part, dict) else ""
    if kind in _READERS:
        yield from _READERS[kind](part, file)
    else:
        yield shown(part)


def _sequence(part: Mapping[str, Any], file: Path) -> Iterator[str]:
    for step in require(part, "pretokenizers", list, file):
        yield from _steps(step, file)


def _split(part: Mapping[str, Any], file: Path) -> Iterator[str]:
    pattern = require(part, "pattern", dict, file)
    how = (part.get("behavior"), part.get("invert", False))
    regex = pattern.get("Regex")
    yield f"split by {regex}" if isinstance(regex, str) and how in _ISOLATING else shown(part)


def _digits(part: Mapping[str, Any], file: Path) -> Iterator[str]:
    yield "each digit alone" if require(part, "individual_digits", bool, file) else "digits apart"


def _byte_level(part: Mapping[str, Any], file: Path) -> Iterator[str]:
    if part.get("add_prefix_space") is not False:
        yield "a space in front"
    if part.get("use_regex") is not False:
        yield "GPT-2's words"
    yield "bytes"


_READERS = {"Sequence": _sequence, "Split": _split, "Digits": _digits, "ByteLevel": _byte_level}
