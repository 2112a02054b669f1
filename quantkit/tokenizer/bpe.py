"""Byte-level BPE: what tokenizer.json says, checked, as a table of tokens and a list of merges.

The file's content decides what kind of vocabulary it is.  `tokenizer_class` in tokenizer_config.json does not: the same
files carry half a dozen class names, depending on who saved them last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import UnsupportedError, VocabularyError
from quantkit.tokenizer.added import AddedToken
from quantkit.tokenizer.byte_level import SPACE, decode
from quantkit.tokenizer.vocabulary import TokenType

HINT = "quantkit converts byte-level BPE vocabularies, such as Phi-4's"

# What llama.cpp has no counterpart for, by key of tokenizer.json's `model`: the values that ask for nothing.
_MODEL_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
}

# Tokens that are control tokens by their looks, whatever their flag says: llama.cpp's list (conversion/base.py,
# does_token_look_special).
_CONTROL_TEXTS = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
_CONTROL_BRACKETS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass(frozen=True)
class Bpe:
    """The parts of a tokenizer.json that is byte-level BPE.

    file            the file
    document        all of it
    vocab           id by token, of the model itself
    merges          "left right", best first
    """

    file: Path
    document: dict[str, Any]
    vocab: dict[str, int]
    merges: list[str]


def read(document: dict[str, Any], file: Path) -> Bpe:
    """The checked parts of a tokenizer.json.

    document  its content
    file      where it stands, for errors
    raises    UnsupportedError  another kind of tokenizer, or a setting that llama.cpp cannot express
              ConfigError       a key is missing or of the wrong type
              VocabularyError   ids given twice or negative, merges of unknown tokens
    """
    model = require(document, "model", dict, file)
    _refuse_other_kinds(document, model, file)
    for key, neutral in _MODEL_NEUTRAL.items():
        if model.get(key) not in neutral:
            raise UnsupportedError(
                "llama.cpp has no counterpart for a setting of the model", file=file, key=key, found=shown(model[key])
            )
    vocab = require(model, "vocab", dict, file)
    _check_ids(vocab, file)
    return Bpe(file, document, vocab, _merges(model, vocab, file))


def table(bpe: Bpe, added: Mapping[int, AddedToken], n_rows: int) -> tuple[list[str], list[int]]:
    """Text and TokenType of each id, as llama.cpp's converter fills its table (conversion/base.py, get_vocab_base).

    added   added tokens by id
    n_rows  rows of the embedding; ids that no token has become [PAD{id}]
    raises  VocabularyError  an id beyond the embedding, one id or text for two tokens
    """
    text_of = {token_id: text for text, token_id in bpe.vocab.items()}
    for token_id, token in added.items():
        if text_of.setdefault(token_id, token.text) != token.text:
            raise _same_id(token_id, [text_of[token_id], token.text], bpe.file)
    last = max(text_of, default=-1)
    if last >= n_rows:
        raise VocabularyError(
            "the vocabulary is larger than the embedding",
            file=added[last].file if last in added else bpe.file,
            expected=f"ids below {n_rows}, the number of its rows",
            found=f"{last} for {shown(text_of[last])}",
            hint="a fine-tune that adds tokens must resize and save the embedding",
        )
    entries = [(f"[PAD{token_id}]", TokenType.UNUSED) for token_id in range(n_rows)]
    for token_id, text in text_of.items():
        entries[token_id] = _added_entry(added[token_id]) if token_id in added else (text, TokenType.NORMAL)
    tokens = [text for text, _ in entries]
    _check_texts(tokens, bpe.file)
    return tokens, [int(kind) for _, kind in entries]


def _added_entry(token: AddedToken) -> tuple[str, TokenType]:
    """Runtimes look for an added token in raw text, so a byte-level spelling is decoded."""
    text = token.text if token.normalized else decode(token.text)
    bracketed = any(text.startswith(left) and text.endswith(right) for left, right in _CONTROL_BRACKETS)
    if token.special or bracketed or text in _CONTROL_TEXTS:
        return text, TokenType.CONTROL
    return text.replace("\u2581", " "), TokenType.USER_DEFINED  # SentencePiece's mark for a space


def _refuse_other_kinds(document: Mapping[str, Any], model: Mapping[str, Any], file: Path) -> None:
    kind = model.get("type", "BPE")
    around = repr([document.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
    if kind == "Unigram" or model.get("byte_fallback") or "Metaspace" in around or "\u2581" in around:
        raise UnsupportedError("SentencePiece vocabularies are not supported yet", file=file, key="model", hint=HINT)
    if kind != "BPE":
        raise UnsupportedError("an unknown kind of vocabulary", file=file, key="model", found=shown(kind), hint=HINT)
    normalizer = document.get("normalizer")
    if normalizer not in (None, {"type": "Sequence", "normalizers": []}):
        raise UnsupportedError(
            "llama.cpp does not normalize text before byte-level BPE",
            file=file,
            key="normalizer",
            found=shown(normalizer),
        )
    decoder = document.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise UnsupportedError(
            "the decoder is not byte-level", file=file, key="decoder", found=shown(decoder), hint=HINT
        )


def _check_ids(vocab: Mapping[str, Any], file: Path) -> None:
    text_of: dict[int, str] = {}
    for text in vocab:
        token_id = require(vocab, text, int, file)
        if token_id < 0:
            raise VocabularyError("an id is negative", file=file, key=shown(text), found=token_id)
        if text_of.setdefault(token_id, text) != text:
            raise _same_id(token_id, [text_of[token_id], text], file)


def _same_id(token_id: int, texts: list[str], file: Path) -> VocabularyError:
    return VocabularyError("two tokens have the same id", file=file, key=str(token_id), found=shown(texts))


def _merges(model: Mapping[str, Any], vocab: Mapping[str, int], file: Path) -> list[str]:
    """`merges`, which are pairs since tokenizers 0.20 and strings before, as strings."""
    result = []
    for n, merge in enumerate(require(model, "merges", list, file)):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise VocabularyError("a merge is not a pair of tokens", file=file, key=f"merges[{n}]", found=shown(merge))
        left, right = pair
        for token in (left, right, left + right):
            if token not in vocab:
                raise VocabularyError(
                    "a merge names an unknown token", file=file, key=f"merges[{n}]", found=shown(token)
                )
        result.append(f"{left.replace(' ', SPACE)} {right.replace(' ', SPACE)}")
    if not result:
        raise VocabularyError("there are no merges; llama.cpp does not load such a vocabulary", file=file, key="merges")
    return result


def _check_texts(tokens: list[str], file: Path) -> None:
    """llama.cpp stops at a text that two ids share, and reads texts as C strings."""
    first_id: dict[str, int] = {}
    for token_id, text in enumerate(tokens):
        if first_id.setdefault(text, token_id) != token_id:
            raise VocabularyError(
                "two ids have the same text", file=file, key=shown(text), found=f"ids {first_id[text]} and {token_id}"
            )
        if "\0" in text:
            raise VocabularyError("a token contains a zero byte", file=file, key=str(token_id), found=shown(text))
