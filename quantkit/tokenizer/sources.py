"""A tokenizer in whichever form a checkpoint has it, as the content of a tokenizer.json.

Where there is no tokenizer.json, `vocab.json` with `merges.txt` takes its place, as the slow tokenizers of transformers
before 5 leave them, or the rank file of a tiktoken encoding (`*.tiktoken`), from whose ranks the merges follow.
Neither says how text is split before merging.  So their vocabulary must begin with that of an encoding whose way is
known: the sha256 of its rank file, as tiktoken publishes it, decides.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import ConfigError, FormatError, UnsupportedError
from quantkit.osio import InputFile
from quantkit.tokenizer import added
from quantkit.tokenizer.bpe import HINT
from quantkit.tokenizer.byte_level import BYTE_OF, CHAR_OF
from quantkit.tokenizer.files import read_object
from quantkit.tokenizer.pre import CL100K, O200K


@dataclass(frozen=True)
class Encoding:
    """One of tiktoken's (https://github.com/openai/tiktoken, tiktoken_ext/openai_public.py).

    sha256   of its rank file
    pattern  that splits text
    """

    name: str
    n_ranks: int
    sha256: str
    pattern: str


ENCODINGS = (
    Encoding("cl100k_base", 100_256, "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7", CL100K),
    Encoding("o200k_base", 199_998, "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d", O200K),
)

_MAX_BYTES = 64 << 20  # of a text file; o200k's ranks take 3.6 million


def read(folder: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """The content of tokenizer.json, read or put together, and the file that it stands in for errors.

    folder    of the checkpoint
    settings  tokenizer_config.json: with raw ranks or vocab.json it tells the added tokens, else added_tokens.json does
    raises    ConfigError       no tokenizer here, or a value of the wrong type
              FormatError       a file is not what its name says
              UnsupportedError  SentencePiece, or a vocabulary of which nothing tells how text is split
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        return read_object(file), file
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_vocab_and_merges(folder, settings)
    ranks = sorted(folder.glob("*.tiktoken"))
    if len(ranks) == 1:
        return _from_ranks(ranks[0], settings)
    sentencepiece = folder / "tokenizer.model"
    if sentencepiece.is_file():
        raise UnsupportedError("SentencePiece vocabularies are not supported yet", file=sentencepiece, hint=HINT)
    raise ConfigError(
        "tokenizer.json is missing",
        file=folder,
        expected="tokenizer.json, vocab.json with merges.txt, or one *.tiktoken",
        found=shown([path.name for path in ranks]) if ranks else None,
        hint="copy it from the base model, or save the tokenizer into this folder with transformers",
    )


def merges_of_ranks(ranks: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The merges that a list of tokens by rank stands for, best first: one for each token of two bytes or more.

    A token's own merge joins the two parts that the merges of lower rank leave of its bytes.
    """
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    return [_last_merge(token, rank_of) for token in ranks if len(token) > 1]


def _last_merge(token: bytes, rank_of: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    own = rank_of[token]
    while len(parts) > 2:
        ranks = [rank_of.get(left + right, own) for left, right in pairwise(parts)]
        best = min(ranks)
        assert best < own, "the ranks of an encoding reach all its tokens"
        at = ranks.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _from_ranks(file: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    ranks = _read_ranks(file)
    encoding = _encoding(ranks, file, whole=True)
    tokens = _stated(settings, file)
    # The ids of tiktoken's special tokens are stated, not counted: they belong to the vocabulary.
    vocab = {entry["content"]: entry["id"] for entry in tokens}
    vocab |= {_spelled(token): rank for rank, token in enumerate(ranks)}
    merges = [[_spelled(left), _spelled(right)] for left, right in merges_of_ranks(ranks)]
    return _document(vocab, merges, tokens, encoding), file


def _from_vocab_and_merges(folder: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    file = folder / "vocab.json"
    vocab = read_object(file)
    by_id = {require(vocab, text, int, file): text for text in vocab}
    longest = max(encoding.n_ranks for encoding in ENCODINGS)
    texts = [by_id[i] for i in range(longest) if i in by_id]
    ranks = [bytes(BYTE_OF[char] for char in text) for text in texts if set(text) <= BYTE_OF.keys()]
    encoding = _encoding(ranks, file, whole=False)
    lines = _lines(folder / "merges.txt")
    merges = [line for n, line in enumerate(lines) if line and not (n == 0 and line.startswith("#version"))]
    return _document(vocab, merges, _stated(settings, file), encoding), file


def _document(
    vocab: dict[str, int], merges: Sequence[Any], tokens: list[dict[str, Any]], encoding: Encoding
) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": encoding.pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "added_tokens": tokens,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": list(merges)},
    }


def _stated(settings: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """The added tokens of the files beside, as tokenizer.json lists them."""
    tokens, _ = added.beside(settings, file.parent)
    if not tokens:
        raise ConfigError(
            "nothing tells the special tokens",
            file=file,
            expected="added_tokens_decoder in tokenizer_config.json, or added_tokens.json",
            hint="copy tokenizer.json or these from the base model",
        )
    return [
        {"id": token.stated_id, "content": token.text, "special": token.special, "normalized": token.normalized}
        for token in sorted(tokens, key=lambda token: token.stated_id or 0)
    ]


def _encoding(ranks: Sequence[bytes], file: Path, *, whole: bool) -> Encoding:
    """The encoding whose ranks these begin with, or are if whole; raises UnsupportedError."""
    for encoding in ENCODINGS:
        candidates = ranks if whole else ranks[: encoding.n_ranks]
        lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(candidates))
        if hashlib.sha256(b"".join(lines)).hexdigest() == encoding.sha256:
            return encoding
    raise UnsupportedError(
        "nothing tells how text is split before merging",
        file=file,
        expected="the vocabulary of " + " or ".join(encoding.name for encoding in ENCODINGS),
        found=f"another of {len(ranks)} tokens",
        hint="save the tokenizer as tokenizer.json with transformers",
    )


def _read_ranks(file: Path) -> list[bytes]:
    """The tokens of a rank file, whose lines are "<base64> <rank>" with ranks 0, 1, 2, ..."""
    ranks: list[bytes] = []
    for line in filter(None, _lines(file)):
        encoded, _, rank = line.partition(" ")
        try:
            token = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            token = b""
        if not token or rank != str(len(ranks)):
            raise FormatError(
                "is not a rank file", file=file, expected=f"a token in base64 and {len(ranks)}", found=shown(line)
            )
        ranks.append(token)
    return ranks


def _spelled(token: bytes) -> str:
    return "".join(CHAR_OF[byte] for byte in token)


def _lines(file: Path) -> list[str]:
    with InputFile(file) as opened:
        if opened.size > _MAX_BYTES:
            raise FormatError(
                "the file is too long", file=file, expected=f"at most {_MAX_BYTES} bytes", found=opened.size
            )
        data = opened.read(opened.size)
    try:
        return data.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError("is not UTF-8", file=file, offset=error.start) from None
