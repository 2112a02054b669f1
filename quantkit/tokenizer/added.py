"""The added tokens of a tokenizer: from three files, under the ids that the `tokenizers` library gives them.

The library takes no id from a file: a token whose text the base vocabulary has keeps that id, every other one gets the
next free id in the order of adding.  Up to 0.22.1 that is the one after the highest so far; since 0.22.2 the count of
tokens so far, which is lower where the base vocabulary leaves ids out, as o200k's does.  A file whose ids are those of
either is read as its writer meant it.  The order, and whose flags count, are those of transformers 5, which llama.cpp's
converter asks (tokenization_utils_base.py, `_from_pretrained`; tokenization_utils_tokenizers.py, `__init__`).  Where a
file states another id than the library gives, nothing tells which row of the embedding was meant, so that is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import ConfigError, VocabularyError
from quantkit.tokenizer.files import read_object

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text as a whole.

    text        as its file spells it
    special     a control token
    normalized  matched in the normalized text; llama.cpp's converter writes others as they decode
    file        where it was read
    stated_id   the id that file gives it; None where it only names the token
    """

    text: str
    special: bool
    normalized: bool
    file: Path
    stated_id: int | None = None


def from_tokenizer(tokenizer: Mapping[str, Any], file: Path) -> dict[str, AddedToken]:
    """`added_tokens` of tokenizer.json by text, in file order; raises ConfigError, VocabularyError."""
    result: dict[str, AddedToken] = {}
    for entry in require(tokenizer, "added_tokens", list, file):
        if not isinstance(entry, dict):
            raise ConfigError(
                "an added token is no object", file=file, key="added_tokens", expected="an object", found=shown(entry)
            )
        token = _token(entry, file, require(entry, "id", int, file))
        if token.text in result:
            raise VocabularyError("a token is added twice", file=file, key="added_tokens", found=shown(token.text))
        result[token.text] = token
    return result


def complete(tokens: Mapping[str, AddedToken], settings: Mapping[str, Any], folder: Path) -> list[AddedToken]:
    """All added tokens in the order in which they get their ids.

    tokens    those of tokenizer.json
    settings  tokenizer_config.json: its `added_tokens_decoder` adds tokens and overrides flags, its special tokens are
              added where they are new; without `added_tokens_decoder`, special_tokens_map.json and added_tokens.json
              count as well
    raises    ConfigError      a value of the wrong type
              VocabularyError  two files give a token different ids
    """
    listed, named = beside(settings, folder)
    if "added_tokens_decoder" not in settings:
        listed += tokens.values()
    result = dict(tokens)
    for token in sorted(listed, key=lambda token: token.stated_id or 0):
        before = result.get(token.text)
        if before is not None and before.stated_id != token.stated_id:
            raise VocabularyError(
                "two files give a token different ids",
                file=token.file,
                key=shown(token.text),
                expected=f"{before.stated_id} as in {before.file.name}",
                found=token.stated_id,
            )
        result[token.text] = replace(token, special=True) if token.text in named else token
    return [*result.values(), *(token for text, token in named.items() if text not in result)]


def beside(settings: Mapping[str, Any], folder: Path) -> tuple[list[AddedToken], dict[str, AddedToken]]:
    """Tokens of the files beside tokenizer.json: those listed with their ids, and by text those named by a role.

    settings  tokenizer_config.json, whose `added_tokens_decoder` excludes the older files
    raises    ConfigError  a value of the wrong type
    """
    config_file = folder / "tokenizer_config.json"
    if "added_tokens_decoder" in settings:
        decoder = require(settings, "added_tokens_decoder", dict, config_file)
        return [*_decoder_tokens(decoder, config_file)], _named(settings, config_file)
    map_file, added_file = folder / "special_tokens_map.json", folder / "added_tokens.json"
    named = _named(dict(settings) | read_object(map_file), config_file)
    return [*_legacy_tokens(read_object(added_file), set(named), added_file)], named


def number(tokens: list[AddedToken], base: Mapping[str, int]) -> dict[int, AddedToken]:
    """Each token under the id that the `tokenizers` library gives it: since 0.22.2, or else before.

    tokens  in the order of adding
    base    the model's own vocabulary
    raises  VocabularyError  a file states another id than either
    """
    numberings = [_ids(tokens, base, above_all=above_all) for above_all in (False, True)]
    for ids in numberings:
        if all(token.stated_id in (None, token_id) for token, token_id in zip(tokens, ids, strict=True)):
            return dict(zip(ids, tokens, strict=True))
    token, token_id = next(
        (token, token_id)
        for token, token_id in zip(tokens, numberings[0], strict=True)
        if token.stated_id not in (None, token_id)
    )
    raise VocabularyError(
        "an added token does not have the id its file states",
        file=token.file,
        key=shown(token.text),
        expected=f"{token_id}, which the tokenizers library gives it",
        found=token.stated_id,
        hint="load and save the tokenizer with transformers once, and check that the embedding fits",
    )


def _ids(tokens: list[AddedToken], base: Mapping[str, int], *, above_all: bool) -> list[int]:
    """The library's ids; above_all: higher than that of every token added before, as it was until 0.22.1."""
    result = []
    next_id = len(base)
    for token in tokens:
        token_id = base.get(token.text, next_id)
        next_id += token.text not in base
        if above_all:
            next_id = max(next_id, token_id + 1)
        result.append(token_id)
    return result


def _token(entry: Mapping[str, Any], file: Path, stated_id: int | None) -> AddedToken:
    text = require(entry, "content", str, file)
    if not text:
        raise VocabularyError("an added token has no text", file=file, key="content", found=shown(dict(entry)))
    special = "special" in entry and require(entry, "special", bool, file)
    normalized = require(entry, "normalized", bool, file) if "normalized" in entry else not special
    return AddedToken(text, special, normalized, file, stated_id)


def _decoder_tokens(decoder: Mapping[str, Any], file: Path) -> Iterator[AddedToken]:
    for key in decoder:
        if not (key.isascii() and key.isdigit() and len(key) < 20):
            raise ConfigError("an id is no number", file=file, key="added_tokens_decoder", found=shown(key))
        yield _token(require(decoder, key, dict, file), file, int(key))


def _legacy_tokens(added: Mapping[str, Any], named: set[str], file: Path) -> Iterator[AddedToken]:
    """added_tokens.json, text to id, as transformers before 4.34 wrote it."""
    for text in added:
        special = text in named
        yield _token({"content": text, "special": special}, file, require(added, text, int, file))


def _named(settings: Mapping[str, Any], file: Path) -> dict[str, AddedToken]:
    """Tokens that a file names by role ("eos_token") or in a list, in transformers' order."""
    roles = [f"{kind}_token" for kind in KINDS]
    others = [key for key, value in settings.items() if key.endswith("_token") and key not in roles and _is_text(value)]
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if not isinstance(extra, list | dict):
        raise ConfigError("is no list", file=file, key="extra_special_tokens", expected="a list", found=shown(extra))
    entries = [*(settings.get(key) for key in roles + others), *(extra.values() if isinstance(extra, dict) else extra)]
    result: dict[str, AddedToken] = {}
    for token in (_named_token(entry, file) for entry in entries if entry):
        result.setdefault(token.text, token)
    return result


def _named_token(entry: Any, file: Path) -> AddedToken:
    if isinstance(entry, str):
        entry = {"content": entry}
    if not isinstance(entry, dict):
        raise ConfigError("a special token is no text", file=file, found=shown(entry))
    return _token(dict(entry) | {"special": True}, file, None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "content" in value)
