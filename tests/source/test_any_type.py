"""GGUF files that are looked at and not converted: every type that can be decoded is let in, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import small_gguf
from click.testing import CliRunner
from small_gguf import Model, edited

from quantkit import kernels, qtypes
from quantkit.cli import inspect
from quantkit.errors import FormatError, QuantkitError, TensorError, UnsupportedError
from quantkit.qtypes import QType
from quantkit.source import open_source, read_source
from quantkit.units import size

NAME, SHAPE = "blk.1.ffn_down.weight", (small.HIDDEN, small.FEED_FORWARD)


def stored_as(qtype: QType) -> Callable[[Model], None]:
    """An edit that gives one matrix random blocks of that type."""

    def edit(model: Model) -> None:
        rng = np.random.default_rng(3)
        model.tensors[NAME] = (SHAPE, qtype, rng.bytes(SHAPE[0] * qtype.row_bytes(SHAPE[1])))

    return edit


@pytest.mark.parametrize("qtype", qtypes.ALL + qtypes.DECODED_ONLY, ids=str)
def test_rows_of_every_type(base: Path, tmp_path: Path, qtype: QType) -> None:
    path = edited(base, tmp_path / "a.gguf", stored_as(qtype))
    whole = np.frombuffer(small_gguf.read(path).tensors[NAME][2], np.uint8).reshape(SHAPE[0], -1)
    with open_source(path, any_type=True) as weights:
        source = read_source(weights, name=None, fix_special_tokens=False, chat_template=None, warn=pytest.fail)
        tensor = source.weights.tensors[NAME]
        assert (tensor.dtype, tensor.shape) == (qtype, SHAPE)
        rows = np.empty((5, tensor.row_bytes), np.uint8)
        weights.read_rows(tensor, 7, 12, rows)
    assert np.array_equal(rows, whole[7:12])
    assert kernels.decode(rows, qtype).shape == (5, SHAPE[1])


@pytest.mark.parametrize("qtype", [qtypes.Q8_0, *qtypes.DECODED_ONLY], ids=str)
def test_to_convert_they_are_refused(base: Path, tmp_path: Path, qtype: QType) -> None:
    path = edited(base, tmp_path / "a.gguf", stored_as(qtype))
    with pytest.raises(UnsupportedError, match="quantizing again") as caught:
        open_source(path)
    assert caught.value.details["tensor"] == NAME


def without_the_last_norm(model: Model) -> None:
    del model.tensors["output_norm.weight"]


def named_for_a_terminal(model: Model) -> None:
    model.tensors["\x1b[2J"] = model.tensors.pop(NAME)


BAD: dict[str, tuple[Callable[[Model], None], type[QuantkitError], str]] = {
    "a type without a decoder": (stored_as(QType("Q8_K", 15, 256, 292)), UnsupportedError, "type 15 is not supported"),
    "an unknown type": (stored_as(QType("?", 99, 32, 18)), UnsupportedError, "type 99 is not supported"),
    "a tensor less": (without_the_last_norm, TensorError, "missing"),
    "a name for a terminal": (named_for_a_terminal, FormatError, "name cannot be used"),
}


@pytest.mark.parametrize(("edit", "error", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_refused_all_the_same(
    base: Path, tmp_path: Path, edit: Callable[[Model], None], error: type[QuantkitError], words: str
) -> None:
    path = edited(base, tmp_path / "a.gguf", edit)
    with pytest.raises(error, match=words), open_source(path, any_type=True) as weights:
        read_source(weights, name=None, fix_special_tokens=False, chat_template=None, warn=pytest.fail)


def test_a_checkpoint_is_opened_as_ever(base: Path) -> None:
    with open_source(base.parent / "small_bfloat16", any_type=True) as weights:
        assert {tensor.dtype for tensor in weights.tensors.values()} == {qtypes.BF16}


@pytest.mark.parametrize("qtype", qtypes.DECODED_ONLY, ids=str)
def test_inspect_shows_them(base: Path, tmp_path: Path, qtype: QType) -> None:
    path = edited(base, tmp_path / "a.gguf", stored_as(qtype))
    nbytes = SHAPE[0] * qtype.row_bytes(SHAPE[1])
    text = CliRunner().invoke(inspect.command, [str(path), "--tensors"], catch_exceptions=False).stdout
    assert f", 1 {qtype}\n" in text
    assert f"\n{qtype.name:7} {size(nbytes):>10}  {NAME}  {SHAPE[0]} x {SHAPE[1]}\n" in text
    report = CliRunner().invoke(inspect.command, [str(path), "--json"], catch_exceptions=False).stdout
    shown = {(t["name"], t["type"], *t["shape"], t["nbytes"]) for t in json.loads(report)["tensors"]}
    assert (NAME, qtype.name, *SHAPE, nbytes) in shown
