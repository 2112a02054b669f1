"""Special tokens: which id plays which role, what encoding adds, and whether that agrees with the chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import ConfigError, UnsupportedError, VocabularyError
from quantkit.tokenizer.added import KINDS, AddedToken
from quantkit.tokenizer.vocabulary import FLAG_KEYS, ROLE_KEYS, TokenType

# A token for padding, best first: the one that Phi-4's later files name, one that is called so, one that was kept free.
_PADDING = (r"<\|dummy_85\|>", r"(?i)<\|?pad(_token)?\|?>|\[pad\]", r"(?i).*(dummy|reserved|unused).*")


def resolve(
    document: Mapping[str, Any],
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    added: Mapping[str, AddedToken],
    n_rows: int,
    folder: Path,
) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids by role and flags by role, found and ordered as llama.cpp's converter does (gguf-py/gguf/vocab.py).

    A role is a text in tokenizer_config.json that tokenizer.json adds as a token, else an id in config.json; a list
    there is passed over.  Flags come from the post-processor, else from tokenizer_config.json.

    document  tokenizer.json
    settings  tokenizer_config.json
    config    config.json
    added     the added tokens of tokenizer.json by text
    raises    VocabularyError   an id in config.json that the embedding does not have
              ConfigError       an id in config.json that is no number
              UnsupportedError  a post-processor of an unknown kind
    """
    texts: dict[str, Any] = {kind: settings.get(f"{kind}_token") for kind in KINDS}
    texts["bos"] = texts["bos"] or texts["cls"]
    texts["eos"] = texts["eos"] or texts["sep"]
    flags: dict[str, bool] = {}
    for processor in _processors(document.get("post_processor"), folder / "tokenizer.json"):
        _PROCESSORS[processor["type"]](processor, texts, flags)
    for kind in texts:
        stated = settings.get(f"add_{kind}_token")
        if isinstance(stated, bool):
            flags.setdefault(kind, stated)
    ids = {kind: added[text].stated_id for kind, entry in texts.items() if (text := _text(entry)) in added}
    for kind in texts:
        key = f"{kind}_token_id"
        if kind not in ids and not isinstance(config.get(key), list | None):
            ids[kind] = _checked(config[key], key, n_rows, folder / "config.json")
    return (
        {kind: token_id for kind, token_id in ids.items() if kind in ROLE_KEYS and token_id is not None},
        {kind: flag for kind, flag in flags.items() if kind in FLAG_KEYS},
    )


def reconcile(
    ids: Mapping[str, int],
    eot: int | None,
    tokens: Sequence[str],
    types: Sequence[int],
    template: str | None,
    *,
    fix: bool,
    warn: Callable[[str], None],
) -> dict[str, int]:
    """The special ids with eot, after comparing eos and pad with the token that ends a turn.

    They disagree where eos is not that token, or pad is eos.  The first makes runtimes that stop at eos alone run on;
    the second makes training, which masks pad, ignore eos.  The repair sets eos to the token that ends a turn, and pad,
    where it was eos or now is, to a control token that nothing else uses: `<|dummy_85|>`, as in Phi-4's later files,
    else one called pad, else the highest one called dummy, reserved or unused, else pad stays.  bos always stays.

    ids       by role, as the source has them
    eot       the token with which the template ends a turn, or None
    template  a token that it mentions is not free to be pad
    fix       repair, and say so; otherwise say what a repair would do
    """
    free = _free_for_padding(tokens, types, template or "", {*ids.values(), eot})
    changes: dict[str, int] = {}
    eos = ids.get("eos")
    if eot is not None and eos != eot:
        changes["eos"] = eot
    if free is not None and "pad" in ids and ids["pad"] in (eos, changes.get("eos")):
        changes["pad"] = free
    if changes:

        def name(token_id: int | None) -> str:
            return "not set" if token_id is None else f"{token_id} {tokens[token_id]}"

        facts = ", ".join(f"{role} is {name(ids.get(role))}" for role in ("bos", "eos", "pad"))
        end = "" if eot is None else f", the chat template ends a turn with {name(eot)}"
        targets = " and ".join(f"{role} to {name(token_id)}" for role, token_id in changes.items())
        action = f"--fix-special-tokens has set {targets}" if fix else f"--fix-special-tokens would set {targets}"
        warn(f"the special tokens disagree: {facts}{end}; {action}")
    result = {**ids, **changes} if fix else dict(ids)
    if eot is not None:
        result.setdefault("eot", eot)
    return result


def _free_for_padding(tokens: Sequence[str], types: Sequence[int], template: str, taken: set[int | None]) -> int | None:
    control = [i for i, kind in enumerate(types) if kind == TokenType.CONTROL]
    free = [i for i in control if i not in taken and tokens[i] not in template]
    for pattern in _PADDING:
        if matches := [i for i in free if re.fullmatch(pattern, tokens[i])]:
            return max(matches)
    return None


def _text(entry: Any) -> Any:
    """The text of a special token, which is spelled as text or as an object with flags."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _checked(token_id: Any, key: str, n_rows: int, file: Path) -> int:
    if not isinstance(token_id, int) or isinstance(token_id, bool):
        raise ConfigError("an id is no number", file=file, key=key, expected="a whole number", found=shown(token_id))
    if not 0 <= token_id < n_rows:
        raise VocabularyError(
            "an id is not in the vocabulary", file=file, key=key, expected=f"0 to {n_rows - 1}", found=token_id
        )
    return token_id


def _processors(post_processor: Any, file: Path) -> list[dict[str, Any]]:
    if post_processor is None:
        return []
    many = isinstance(post_processor, dict) and post_processor.get("type") == "Sequence"
    parts = require(post_processor, "processors", list, file) if many else [post_processor]
    for part in parts:
        kind = require(part, "type", str, file) if isinstance(part, dict) else ""
        if kind not in _PROCESSORS:
            raise UnsupportedError(
                "an unknown kind of post-processor",
                file=file,
                key="post_processor",
                found=shown(part),
                hint=f"known: {', '.join(_PROCESSORS)}",
            )
    return parts


def _byte_level(processor: Mapping[str, Any], texts: dict[str, Any], flags: dict[str, bool]) -> None:
    flags.setdefault("bos", False)
    flags.setdefault("eos", False)


def _template_processing(processor: Mapping[str, Any], texts: dict[str, Any], flags: dict[str, bool]) -> None:
    """The converter's reading of "what stands around one text, and between two", with its consequences for the roles.

    A last token that is not eos becomes eos, and what was eos becomes eot.
    """
    single, pair = ([_Piece(item) for item in _list(processor.get(key))] for key in ("single", "pair"))
    first = single[0].special if len(single) > 1 else None
    last = single[-1].special if len(single) > 1 else None
    if first:
        texts["bos"] = texts["bos"] or first
        texts["cls"] = texts["cls"] or first
        flags["bos"] = first in (texts["bos"], texts["cls"])
    if last:
        if last != texts["eos"]:
            texts["eot"], texts["eos"] = texts["eos"], last
        flags["eos"] = True
    start = 1 if first and pair and pair[0].special == first else 0
    stop = len(pair) - 1 if last and pair and pair[-1].special == last else len(pair)
    inner = pair[start:stop]
    if len(inner) > 2 and inner[0].sequence == "A" and inner[-1].sequence == "B":
        separators = [piece.special for piece in inner[1:-1]]
        known = (texts["sep"], texts["eos"])
        after_first = separators[0] in known and not last
        after_second = len(separators) == 2 and separators[1] is not None and separators[1] in known
        flags["sep"] = (separators[0] is not None and after_first) or after_second
        if flags["sep"]:
            texts["sep"] = texts["sep"] or texts["eos"]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class _Piece:
    """One piece of a post-processing template: {"SpecialToken": {"id": text}} or {"Sequence": {"id": "A"}}."""

    def __init__(self, item: Any) -> None:
        self.special = self._id(item, "SpecialToken")
        self.sequence = self._id(item, "Sequence")

    @staticmethod
    def _id(item: Any, key: str) -> Any:
        value = item.get(key) if isinstance(item, dict) else None
        return value.get("id") if isinstance(value, dict) else None


_PROCESSORS: dict[str, Callable[[Mapping[str, Any], dict[str, Any], dict[str, bool]], None]] = {
    "ByteLevel": _byte_level,
    "TemplateProcessing": _template_processing,
}
