"""Vocabularies without tokenizer.json: vocab.json with merges.txt, and raw ranks, of the real encodings."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import common
import layouts
import phi4_widths
import pytest

from quantkit.errors import ConfigError, FormatError, QuantkitError, UnsupportedError, VocabularyError
from quantkit.tokenizer import Vocabulary, load_vocabulary
from quantkit.tokenizer.sources import ENCODINGS, merges_of_ranks

LAYOUTS = {
    "transformers 4": layouts.transformers_4,
    "transformers 5": layouts.transformers_5,
    "vocab.json and merges.txt": layouts.slow_tokenizer,
    "raw ranks": layouts.cl100k_ranks,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Phi-4's tokenizer, and a config.json that its layouts can change."""
    folder = tmp_path_factory.mktemp("phi4")
    phi4_widths.write_vocabulary(folder, phi4_widths.ROLES)
    common.write_json(folder / "config.json", {"rope_scaling": None, "rope_theta": 250000.0, "torch_dtype": "bfloat16"})
    return folder


@pytest.fixture
def phi4(original: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(original, tmp_path / "phi4"))


def load(folder: Path, n_rows: int = phi4_widths.VOCAB_SIZE) -> Vocabulary:
    return load_vocabulary(folder, {}, n_rows=n_rows, warn=pytest.fail)


@pytest.mark.parametrize("name", LAYOUTS)
def test_phi4s_vocabulary_is_the_same_from_every_layout(phi4: Path, name: str) -> None:
    expected = load(phi4)
    LAYOUTS[name](phi4)
    found = load(phi4)
    assert found == expected
    assert found.pre == "dbrx" and found.merges is not None and len(found.merges) == 100_000


def test_o200ks_ranks(tmp_path: Path) -> None:
    """Its special tokens leave ids out; they keep those that tokenizer_config.json states."""
    (tmp_path / "any_name.tiktoken").write_bytes(common.rank_file("o200k_base"))
    special = {"199999": {"content": "<|endoftext|>"}, "200018": {"content": "<|end|>", "special": True}}
    common.write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": special, "eos_token": "<|end|>"})
    found = load(tmp_path, 200_064)
    assert found.pre == "gpt-4o" and found.merges is not None and len(found.merges) == 199_742
    assert found.tokens[199_997:200_000] == ["Ġcocos", "[PAD199998]", "<|endoftext|>"]
    assert found.special_ids == {"eos": 200_018}


def test_merges_of_ranks() -> None:
    tokens = [b"a", b"b", b"c", b"ab", b"bc", b"abc", b"cab", b"abcab"]
    assert merges_of_ranks(tokens) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"c", b"ab"), (b"abc", b"ab")]


def test_encodings_are_tiktokens() -> None:
    for encoding in ENCODINGS:
        assert len(common.read_ranks(encoding.name)) == encoding.n_ranks


def rank_lines(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    """Raw ranks whose file has other lines."""

    def write(folder: Path) -> None:
        layouts.cl100k_ranks(folder)
        file = folder / "cl100k_base.tiktoken"
        lines = file.read_text("ascii").splitlines()
        change(lines)
        file.write_text("\n".join(lines) + "\n", "utf-8")

    return write


def no_list(folder: Path) -> None:
    layouts.slow_tokenizer(folder)
    (folder / "added_tokens.json").unlink()


def taken(folder: Path) -> None:
    layouts.cl100k_ranks(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["added_tokens_decoder"]["100256"]["content"] = "in"
    common.write_json(folder / "tokenizer_config.json", settings)


def other_token(folder: Path) -> None:
    layouts.slow_tokenizer(folder)
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    vocab["zzzzzzzzzzz"] = vocab.pop("Ġthe")
    common.write_json(folder / "vocab.json", vocab)


def no_object(folder: Path) -> None:
    layouts.slow_tokenizer(folder)
    common.write_json(folder / "vocab.json", [])


def text_id(folder: Path) -> None:
    layouts.slow_tokenizer(folder)
    common.write_json(folder / "vocab.json", {"a": "0"})


def broken_text(folder: Path) -> None:
    layouts.slow_tokenizer(folder)
    (folder / "merges.txt").write_bytes(b"h e\n\xff e\n")


def two_files(folder: Path) -> None:
    layouts.cl100k_ranks(folder)
    (folder / "o200k_base.tiktoken").write_bytes(b"")


def endless(folder: Path) -> None:
    layouts.cl100k_ranks(folder)
    with (folder / "cl100k_base.tiktoken").open("r+b") as file:
        file.truncate((64 << 20) + 1)


def longer(lines: list[str]) -> None:
    lines.append(f"{base64.b64encode(b'quantkit').decode()} {len(lines)}")


def exchanged(lines: list[str]) -> None:
    (a, m), (b, n) = lines[500].split(), lines[501].split()
    lines[500:502] = [f"{b} {m}", f"{a} {n}"]


REFUSED: dict[str, tuple[Callable[[Path], None], type[QuantkitError], str]] = {
    "a token of another vocabulary": (other_token, UnsupportedError, "nothing tells how text is split"),
    "two ranks exchanged": (rank_lines(exchanged), UnsupportedError, "nothing tells how text is split"),
    "ranks cut off": (rank_lines(lambda lines: lines.pop()), UnsupportedError, "another of 100255 tokens"),
    "a rank more": (rank_lines(longer), UnsupportedError, "another of 100257 tokens"),
    "a special token that the ranks have": (taken, VocabularyError, "expected 258, which the tokenizers library"),
    "no special tokens": (no_list, ConfigError, "nothing tells the special tokens"),
    "vocab.json is a list": (no_object, ConfigError, "vocab.json: is not a JSON object"),
    "vocab.json has a text for an id": (text_id, ConfigError, "vocab.json, key a"),
    "merges.txt is not UTF-8": (broken_text, FormatError, "merges.txt, offset 4: is not UTF-8"),
    "a rank left out": (rank_lines(lambda lines: lines.pop(7)), FormatError, "a token in base64 and 7"),
    "a rank without its token": (rank_lines(lambda lines: lines.insert(0, " 0")), FormatError, "base64 and 0"),
    "no base64": (rank_lines(lambda lines: lines.insert(0, "I* 0")), FormatError, "base64 and 0"),
    "not ASCII": (rank_lines(lambda lines: lines.insert(0, "é 0")), FormatError, "base64 and 0"),
    "two rank files": (two_files, ConfigError, "cl100k_base.tiktoken"),
    "a file without end": (endless, FormatError, "the file is too long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(phi4: Path, name: str) -> None:
    change, error, words = REFUSED[name]
    change(phi4)
    with pytest.raises(error) as caught:
        load(phi4)
    assert type(caught.value) is error and words in str(caught.value)


def test_a_fine_tunes_own_tokens_do_not_hide_the_encoding(phi4: Path) -> None:
    """A vocabulary is known by its beginning; what was added behind it stays."""
    layouts.slow_tokenizer(phi4)
    vocab = json.loads((phi4 / "vocab.json").read_text("utf-8"))
    common.write_json(phi4 / "vocab.json", vocab | {"<|dummy_0|>": 100256})
    assert load(phi4).tokens[100255:100258] == ["ĠConveyor", "<|dummy_0|>", "<|endoftext|>"]
