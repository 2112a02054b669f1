"""Texts to tokens and windows, as llama-perplexity makes them, by nothing but the keys of a GGUF file.

Tokens of the type USER_DEFINED are matched in the text first, the longest first; what is left is split and merged by
the `tokenizers` library.  Control tokens do not come out of a text, whatever it says (llama.cpp's parse_special=false).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from quantkit.checkpoint.json_file import shown
from quantkit.errors import FormatError, UnsupportedError, UsageError, VocabularyError
from quantkit.gguf_io import Field, Kind
from quantkit.tokenizer import TokenType
from quantkit.tokenizer.byte_level import to_bytes
from quantkit.tokenizer.pre import PRE_TOKENIZERS

_MODEL = "gpt2"  # llama.cpp's name for byte-level BPE
_PREFIX = "tokenizer.ggml."


@dataclass(frozen=True)
class _Keys:
    """What decides which ids a text becomes.

    pre      `pre_tokenizer` of a tokenizer.json
    tokens   text of each id
    merges   (left, right), best first
    matched  ids of the tokens that are matched in the text, the longest first
    bos      the id in front of a text, None for nothing
    """

    pre: Mapping[str, Any]
    tokens: list[str]
    merges: list[tuple[str, str]]
    matched: list[int]
    bos: int | None


class Tokenizer:
    """Byte-level BPE as the keys of a GGUF file describe it.

    bos  the id in front of a text and of each window, None where the file asks for none
    """

    def __init__(self, fields: Mapping[str, Field], file: Path) -> None:
        """Build it from keys.

        fields  by key, of a file or of the one that a checkpoint would become
        file    where they stand, for errors
        raises  UnsupportedError  another kind of vocabulary, an unknown pre-tokenizer, or a token behind each text
                FormatError       a key is missing or of the wrong kind
                VocabularyError   the vocabulary contradicts itself
        """
        keys = _read(fields, file)
        self.bos = keys.bos
        self._file = file
        self._tokens = keys.tokens
        self._matched = keys.matched
        vocab = {text: token_id for token_id, text in enumerate(keys.tokens)}
        model = {"type": "BPE", "vocab": vocab, "merges": keys.merges}
        document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": keys.pre, "model": model}
        self._bpe = tokenizers.Tokenizer.from_str(json.dumps(document))

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """The tokens of a text, bos in front where there is one: int64 (n,).

        raises  VocabularyError  a character of the text has no tokens (names it and its place)
        """
        ids: list[int] = []
        spelled: list[bytes] = []
        for part in self._parts(text):
            if isinstance(part, int):
                ids.append(part)
                spelled.append(self._tokens[part].encode())
            else:
                found = self._bpe.encode(part, add_special_tokens=False).ids
                ids += found
                spelled.append(to_bytes("".join(self._tokens[i] for i in found)))
        self._check_complete(b"".join(spelled), text)
        return np.array(ids if self.bos is None else [self.bos, *ids], np.int64)

    def _parts(self, text: str) -> list[str | int]:
        """The text cut at the tokens that are matched in it, with their ids in their places."""
        parts: list[str | int] = [text]
        for token_id in self._matched:
            token = self._tokens[token_id]
            if token in text:
                cut = (_cut(part, token, token_id) if isinstance(part, str) else [part] for part in parts)
                parts = [piece for pieces in cut for piece in pieces]
        return parts

    def _check_complete(self, found: bytes, text: str) -> None:
        """The tokens spell the text.  The library leaves out what has no token, and says nothing."""
        expected = text.encode()
        if found == expected:
            return
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=False)))
        before = expected[:same].decode(errors="ignore")  # the bytes of a character begun are left out
        character = text[len(before)]
        raise VocabularyError(
            "the vocabulary has no tokens for a character of the text",
            file=self._file,
            found=f"{character!r} (U+{ord(character):04X}) at byte {len(before.encode())} of the text",
            hint="this model cannot be measured with this text: leave such characters out",
        )


def fingerprint(fields: Mapping[str, Field], file: Path | None = None) -> str:
    """SHA-256 of all that decides which ids a text becomes, and of every token's text.

    fields, file  as of Tokenizer
    returns       the same for two files only if any text has the same tokens in both
    raises        as Tokenizer does
    """
    keys = _read(fields, file)
    content = [keys.pre, keys.tokens, keys.merges, keys.matched, keys.bos]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def windows_of(
    ids: npt.NDArray[np.int64], n_ctx: int, bos: int | None, most: int | None = None
) -> npt.NDArray[np.int64]:
    """Tokens in windows that do not overlap; what does not fill the last one is left out.

    ids      int64 (n,), of one text
    n_ctx    tokens of a window
    bos      put in the place of each window's first token
    most     windows at most
    returns  int64 (n_windows, n_ctx)
    raises   UsageError  fewer than two windows of tokens
    """
    if len(ids) < 2 * n_ctx:
        raise UsageError(
            "the text is too short",
            hint="take a longer text or a smaller window",
            expected=f"at least {2 * n_ctx} tokens, two windows of {n_ctx}",
            found=len(ids),
        )
    windows = ids[: len(ids) // n_ctx * n_ctx].reshape(-1, n_ctx)[:most].copy()
    if bos is not None:
        windows[:, 0] = bos
    return windows


def _cut(text: str, token: str, token_id: int) -> Iterator[str | int]:
    """What is left of text between tokens, and the id of each."""
    for n, piece in enumerate(text.split(token)):
        if n:
            yield token_id
        if piece:
            yield piece


def _read(fields: Mapping[str, Field], file: Path | None) -> _Keys:
    model = _value(fields, "model", (Kind.STRING,), file)
    if model != _MODEL:
        raise UnsupportedError(
            "only byte-level BPE vocabularies can be measured",
            file=file,
            key=_PREFIX + "model",
            expected=_MODEL,
            found=shown(model),
            hint="Phi-4's is one",
        )
    name = _value(fields, "pre", (Kind.STRING,), file)
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            "an unknown way to split text",
            file=file,
            key=_PREFIX + "pre",
            expected=" or ".join(PRE_TOKENIZERS),
            found=shown(name),
        )
    tokens: list[str] = _value(fields, "tokens", (Kind.ARRAY, Kind.STRING), file)
    if _flag(fields, "add_eos_token", file):
        raise UnsupportedError(
            "a token behind each text is not supported: llama-perplexity refuses it too",
            file=file,
            key=_PREFIX + "add_eos_token",
            expected=False,
            found=True,
        )
    return _Keys(
        PRE_TOKENIZERS[name],
        _checked_texts(tokens, file),
        _checked_merges(_value(fields, "merges", (Kind.ARRAY, Kind.STRING), file), set(tokens), file),
        _matched(tokens, _value(fields, "token_type", (Kind.ARRAY, Kind.I32), file), file),
        _bos(fields, len(tokens), file),
    )


def _bos(fields: Mapping[str, Field], n_tokens: int, file: Path | None) -> int | None:
    if not _flag(fields, "add_bos_token", file):
        return None
    bos: int = _value(fields, "bos_token_id", (Kind.U32,), file)
    if bos >= n_tokens:
        raise VocabularyError(
            "no token has this id",
            file=file,
            key=_PREFIX + "bos_token_id",
            expected=f"below {n_tokens}",
            found=bos,
        )
    return bos


def _checked_texts(tokens: list[str], file: Path | None) -> list[str]:
    first_id: dict[str, int] = {}
    for token_id, text in enumerate(tokens):
        if first_id.setdefault(text, token_id) != token_id:
            raise VocabularyError(
                "two ids have the same text",
                file=file,
                key=_PREFIX + "tokens",
                found=f"{shown(text)} for {first_id[text]} and {token_id}",
            )
    return tokens


def _checked_merges(merges: list[str], known: set[str], file: Path | None) -> list[tuple[str, str]]:
    """The merges as pairs, each once.  A part may begin with a space, as llama.cpp reads them."""
    pairs: dict[tuple[str, str], None] = {}
    for n, merge in enumerate(merges):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space < 0 or not known.issuperset((left, right, left + right)):
            raise VocabularyError(
                "a merge does not make one token of two", file=file, key=f"{_PREFIX}merges[{n}]", found=shown(merge)
            )
        pairs[left, right] = None
    return list(pairs)


def _matched(tokens: list[str], types: list[int], file: Path | None) -> list[int]:
    if len(types) != len(tokens):
        raise VocabularyError(
            "not every token has a type",
            file=file,
            key=_PREFIX + "token_type",
            expected=len(tokens),
            found=len(types),
        )
    matched = [i for i, kind in enumerate(types) if kind == TokenType.USER_DEFINED]
    if any(not tokens[i] for i in matched):
        raise VocabularyError("a token to be matched has no text", file=file, key=_PREFIX + "tokens")
    return sorted(matched, key=lambda i: -len(tokens[i].encode()))


def _flag(fields: Mapping[str, Field], name: str, file: Path | None) -> bool:
    """A key that is false where it is missing."""
    return _PREFIX + name in fields and bool(_value(fields, name, (Kind.BOOL,), file))


def _value(fields: Mapping[str, Field], name: str, kinds: tuple[Kind, ...], file: Path | None) -> Any:
    """The value of a key, of that kind, and its items of the second."""
    field = fields.get(_PREFIX + name)
    expected = " of ".join(kind.name for kind in kinds)
    if field is None:
        raise FormatError("a needed key is missing", file=file, key=_PREFIX + name, expected=expected, found="nothing")
    found = (field.kind,) if field.item_kind is None else (field.kind, field.item_kind)
    if found != kinds:
        raise FormatError(
            "a value has the wrong type",
            file=file,
            key=field.key,
            expected=expected,
            found=" of ".join(kind.name for kind in found),
        )
    return field.value
