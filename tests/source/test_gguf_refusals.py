"""GGUF files that are no sources: each is refused by a typed error that names the tensor or key."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import small_gguf
from small_gguf import Model, edited, run

from quantkit.convert import convert
from quantkit.errors import (
    FormatError,
    InputError,
    NotFiniteError,
    QuantkitError,
    TensorError,
    UnsupportedError,
    UsageError,
)
from quantkit.gguf_io import Field, Kind
from quantkit.plan import make_plan
from quantkit.qtypes import BF16, F32, Q8_0
from quantkit.recipe import preset
from quantkit.source import open_source


def plan(path: Path, **options: bool) -> None:
    with open_source(path) as weights:
        make_plan(weights, [preset("Q4_K_M")], warn=pytest.fail, **options)  # type: ignore[arg-type]


def setting(key: str, kind: Kind, value: object) -> Callable[[Model], None]:
    return lambda model: model.set(key, kind, value)


def without(key: str) -> Callable[[Model], object]:
    return lambda model: model.fields.pop(key)


def with_tensor(name: str, shape: tuple[int, ...] = (256,)) -> Callable[[Model], None]:
    return lambda model: model.tensors.update({name: (shape, F32, bytes(4 * int(np.prod(shape))))})


def without_tensor(name: str) -> Callable[[Model], object]:
    return lambda model: model.tensors.pop(name)


def quantized(model: Model) -> None:
    n_rows, n_columns = small.HIDDEN, small.FEED_FORWARD
    data = bytes(n_rows * Q8_0.row_bytes(n_columns))
    model.tensors["blk.1.ffn_down.weight"] = ((n_rows, n_columns), Q8_0, data)


def transposed(model: Model) -> None:
    shape, qtype, raw = model.tensors["blk.0.ffn_down.weight"]
    model.tensors["blk.0.ffn_down.weight"] = (shape[::-1], qtype, raw)


def one_token_more(model: Model) -> None:
    tokens = model.fields["tokenizer.ggml.tokens"]
    model.fields[tokens.key] = Field(tokens.key, tokens.kind, [*tokens.value, "more"], tokens.item_kind)


NEEDED = (
    "general.architecture",
    "phi3.block_count",
    "phi3.embedding_length",
    "phi3.feed_forward_length",
    "phi3.attention.head_count",
    "phi3.attention.head_count_kv",
    "phi3.rope.dimension_count",
    "phi3.rope.freq_base",
    "phi3.context_length",
    "phi3.rope.scaling.original_context_length",
    "tokenizer.ggml.tokens",
)
Bad = tuple[Callable[[Model], object], type[QuantkitError], str, str]
# edit, error, words of its message, the tensor or key that it names
BAD: dict[str, Bad] = {
    **{f"no {key}": (without(key), FormatError, "missing", key) for key in NEEDED},
    **{f"{key} as a bool": (setting(key, Kind.BOOL, True), FormatError, "wrong type", key) for key in NEEDED},
    "another architecture": (
        setting("general.architecture", Kind.STRING, "llama"),
        UnsupportedError,
        "architecture",
        "general.architecture",
    ),
    "an importance matrix": (
        setting("general.type", Kind.STRING, "imatrix"),
        UnsupportedError,
        "no model",
        "general.type",
    ),
    "no layers": (setting("phi3.block_count", Kind.U32, 0), FormatError, "impossible", "phi3.block_count"),
    "four billion layers": (
        setting("phi3.block_count", Kind.U32, 2**32 - 1),
        FormatError,
        "impossible",
        "phi3.block_count",
    ),
    "two billion layers": (
        setting("phi3.block_count", Kind.U32, 2**31 - 1),
        FormatError,
        "impossible",
        "phi3.block_count",
    ),
    "a layer less": (setting("phi3.block_count", Kind.U32, 1), TensorError, "does not have", "blk.1.attn_norm.weight"),
    "a layer more": (setting("phi3.block_count", Kind.U32, 3), TensorError, "missing", "blk.2.attn_norm.weight"),
    "no heads": (
        setting("phi3.attention.head_count", Kind.U32, 0),
        FormatError,
        "impossible",
        "phi3.attention.head_count",
    ),
    "heads that do not divide": (
        setting("phi3.attention.head_count", Kind.U32, 3),
        FormatError,
        "impossible",
        "phi3.attention.head_count",
    ),
    "more kv heads than heads": (
        setting("phi3.attention.head_count_kv", Kind.U32, 8),
        FormatError,
        "impossible",
        "phi3.attention.head_count_kv",
    ),
    "fewer kv heads": (
        setting("phi3.attention.head_count_kv", Kind.U32, 1),
        TensorError,
        "contradicts",
        "blk.0.attn_qkv.weight",
    ),
    "a rotation wider than a head": (
        setting("phi3.rope.dimension_count", Kind.U32, 128),
        FormatError,
        "impossible",
        "phi3.rope.dimension_count",
    ),
    "a rotation of an odd width": (
        setting("phi3.rope.dimension_count", Kind.U32, 63),
        FormatError,
        "impossible",
        "phi3.rope.dimension_count",
    ),
    "another width": (
        setting("phi3.embedding_length", Kind.U32, 512),
        TensorError,
        "contradicts",
        "token_embd.weight",
    ),
    "a token more": (one_token_more, TensorError, "contradicts", "token_embd.weight"),
    "a matrix on its side": (transposed, TensorError, "contradicts", "blk.0.ffn_down.weight"),
    "a matrix less": (without_tensor("blk.1.attn_qkv.weight"), TensorError, "missing", "blk.1.attn_qkv.weight"),
    "a norm less": (without_tensor("output_norm.weight"), TensorError, "missing", "output_norm.weight"),
    "a bias": (with_tensor("blk.0.attn_qkv.bias"), TensorError, "does not have", "blk.0.attn_qkv.bias"),
    "rope factors of another width": (
        with_tensor("rope_factors_long.weight", (31,)),
        TensorError,
        "contradicts",
        "rope_factors_long.weight",
    ),
    "a quantized tensor": (quantized, UnsupportedError, "quantizing again", "blk.1.ffn_down.weight"),
}


@pytest.mark.parametrize(("edit", "error", "words", "place"), BAD.values(), ids=BAD.keys())
def test_refused(
    base: Path, tmp_path: Path, edit: Callable[[Model], object], error: type[QuantkitError], words: str, place: str
) -> None:
    path = edited(base, tmp_path / "bad-BF16.gguf", edit)
    with pytest.raises(error, match=words) as caught:
        plan(path)
    assert caught.value.exit_code == 65
    assert place in (caught.value.details.get("tensor"), caught.value.details.get("key"))
    assert str(path) in str(caught.value)


def test_the_unedited_file_is_not(base: Path) -> None:
    plan(base)


def test_a_tensors_name_that_a_terminal_would_obey(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="name cannot be used") as caught:
        plan(edited(base, tmp_path / "a.gguf", with_tensor("\x1b[2J")))
    assert "\x1b" not in str(caught.value)


def test_nan_is_named_by_its_place(base: Path, tmp_path: Path) -> None:
    def edit(model: Model) -> None:
        shape, _, raw = model.tensors["blk.1.ffn_down.weight"]
        weights = np.frombuffer(raw, np.uint16).reshape(shape).copy()
        weights[200, 300] = 0x7FC0
        model.tensors["blk.1.ffn_down.weight"] = (shape, BF16, weights.tobytes())

    path = edited(base, tmp_path / "a.gguf", edit)
    with pytest.raises(NotFiniteError) as caught:
        run(path, tmp_path / "out", ["Q8_0"])
    assert {"tensor": "blk.1.ffn_down.weight", "row": 200, "column": 300}.items() <= caught.value.details.items()
    assert not list((tmp_path / "out").iterdir())


def test_tokens_are_not_repaired(base: Path) -> None:
    with pytest.raises(UsageError, match="special tokens") as caught:
        plan(base, fix_special_tokens=True)
    assert caught.value.exit_code == 2
    assert "--metadata" in str(caught.value.hint)


def test_the_source_is_not_overwritten(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "model-BF16.gguf"
    path.write_bytes(base.read_bytes())
    with open_source(path) as weights:
        planned = make_plan(weights, [preset("BF16")], warn=pytest.fail)
        with pytest.raises(UsageError, match="replace an input"):
            convert(weights, planned, [tmp_path / "." / "model-BF16.gguf"])
    assert path.read_bytes() == base.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model-BF16.gguf"]


@pytest.mark.parametrize("content", [b"", b"GGU", b"not a GGUF file"])
def test_another_file_is_no_source(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a folder"):
        plan(path)


def test_exit_codes(base: Path, tmp_path: Path) -> None:
    path = edited(base, tmp_path / "model-Q8_0.gguf", quantized)
    for arguments, code in (([path], 65), ([base, "--fix-special-tokens"], 2)):
        command = [sys.executable, "-m", "quantkit", "convert", *map(str, arguments), "-t", "Q4_K_M", "-o", "a.gguf"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == code, result.stderr
        assert "hint: " in result.stderr and "Traceback" not in result.stderr


def test_changed_bytes_are_read_or_refused_by_a_typed_error(base: Path, tmp_path: Path) -> None:
    content, path, rng = base.read_bytes(), tmp_path / "changed.gguf", random.Random(5)
    refused = 0
    for _ in range(400):
        changed = bytearray(content)
        changed[rng.randrange(4, 9000)] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            plan(path)
        except InputError:
            refused += 1
    assert refused > 40


# ---- shards


def shard(number: int) -> str:
    return f"m-{number + 1:05d}-of-00003.gguf"


def write_shards(base: Path, folder: Path, edits: dict[int, Callable[[Model], object]]) -> Path:
    """The file in three shards, some of them edited; returns the first."""
    whole = small_gguf.read(base)
    names = list(whole.tensors)
    for number, some in enumerate((names[:3], names[3:9], names[9:])):
        model = Model(dict(whole.fields) if number == 0 else {}, {name: whole.tensors[name] for name in some})
        model.set("split.no", Kind.U16, number)
        model.set("split.count", Kind.U16, 3)
        model.set("split.tensors.count", Kind.I32, len(names))
        edits.get(number, lambda model: None)(model)
        small_gguf.write(folder / shard(number), model)
    return folder / shard(0)


SHARDS: dict[str, tuple[dict[int, Callable[[Model], object]], type[QuantkitError], str]] = {
    "the wrong number": ({1: setting("split.no", Kind.U16, 2)}, FormatError, "split.no"),
    "no number": ({2: without("split.no")}, FormatError, "split.no"),
    "a number of another kind": ({1: setting("split.no", Kind.U32, 1)}, FormatError, "split.no"),
    "not the first inside": ({0: setting("split.no", Kind.U16, 1)}, FormatError, "split.no"),
    "another count": ({1: setting("split.count", Kind.U16, 4)}, FormatError, "split.count"),
    "a count of other files": ({0: setting("split.count", Kind.U16, 4)}, FormatError, "not the first shard"),
    "other tensors in all": ({2: setting("split.tensors.count", Kind.I32, 99)}, FormatError, "split.tensors.count"),
    "a tensor less": ({2: without_tensor("blk.1.ffn_up.weight")}, FormatError, "split.tensors.count"),
    "a tensor twice": (
        {1: without_tensor("blk.0.attn_norm.weight"), 2: with_tensor("output_norm.weight")},
        TensorError,
        "more than one shard",
    ),
    "a quantized shard": ({2: quantized}, UnsupportedError, "quantizing again"),
}


@pytest.mark.parametrize(("edits", "error", "words"), SHARDS.values(), ids=SHARDS.keys())
def test_shards_refused(
    base: Path, tmp_path: Path, edits: dict[int, Callable[[Model], object]], error: type[QuantkitError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        plan(write_shards(base, tmp_path, edits))
    assert caught.value.exit_code == 65


def test_the_unedited_shards_are_not(base: Path, tmp_path: Path) -> None:
    plan(write_shards(base, tmp_path, {}))


def test_a_missing_shard_is_named(base: Path, tmp_path: Path) -> None:
    first = write_shards(base, tmp_path, {})
    (tmp_path / shard(2)).unlink()
    with pytest.raises(InputError, match="no such file") as caught:
        plan(first)
    assert shard(2) in str(caught.value)


@pytest.mark.parametrize("name", [shard(1), "renamed.gguf"])
def test_a_shard_is_named_by_the_first(base: Path, tmp_path: Path, name: str) -> None:
    first = write_shards(base, tmp_path, {})
    if name == "renamed.gguf":
        first.rename(tmp_path / name)
    with pytest.raises(FormatError, match="not the first shard"):
        plan(tmp_path / name)


def test_files_are_closed_after_a_refusal(base: Path, tmp_path: Path) -> None:
    first = write_shards(base, tmp_path, {2: setting("split.no", Kind.U16, 7)})
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        with contextlib.suppress(FormatError):
            open_source(first)
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after == before
