"""Every tensor type has its NumPy text, C text, test, golden data and README line, and nothing else bears its name."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest

from quantkit import kernels, qtypes

try:
    from quantkit import _native
except ImportError:
    _native = None

ROOT = Path(__file__).parents[1]
TEXTS = {name: encode.__module__.rpartition(".")[2] for name, (encode, _) in kernels.NUMPY_TEXTS.items()}  # Q4_K: q4_k


def files_of(text: str) -> set[str]:
    """The files that make a type, from the root of the repository."""
    return {
        f"quantkit/kernels/{text}.py",
        f"csrc/types/{text}.h",
        f"tests/kernels/test_{text}.py",
        f"tests/golden/kernels/{text}.json",
    }


def test_every_type_has_a_text() -> None:
    assert TEXTS.keys() == {qtype.name for qtype in qtypes.ALL}


@pytest.mark.parametrize("text", sorted(set(TEXTS.values())))
def test_files_of_a_type(text: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("quantkit", "csrc", "tests", "recipes")
        for path in (ROOT / folder).rglob(f"*{text}*")
        if "__pycache__" not in path.parts and "node_modules" not in path.parts
    }
    assert found == files_of(text)


@pytest.mark.parametrize("qtype", qtypes.ALL, ids=str)
def test_golden_data_and_test_of_a_type(qtype: qtypes.QType) -> None:
    text = TEXTS[qtype.name]
    assert qtype.name in json.loads((ROOT / f"tests/golden/kernels/{text}.json").read_text())
    assert f"    qtype = {qtype.name}\n" in (ROOT / f"tests/kernels/test_{text}.py").read_text()


@pytest.mark.parametrize("qtype", qtypes.ALL, ids=str)
def test_readme_line_of_a_type(qtype: qtypes.QType) -> None:
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {qtype.name} |")]
    facts = f"| {qtype.name} | {qtype.block_weights} | {qtype.block_bytes} | {qtype.bits_per_weight:g} |"
    assert facts in lines


# option of a command: the table that it states again, as the command line is read before torch or numpy is imported
CHOICES = {
    ("eval", "dtype"): ("quantkit.evaluate.network", "DTYPES"),
    ("sweep", "dtype"): ("quantkit.evaluate.network", "DTYPES"),
    ("imatrix", "dtype"): ("quantkit.evaluate.network", "DTYPES"),
    ("eval", "activations"): ("quantkit.evaluate.activations", "Activations"),
    ("plan", "kv_type"): ("quantkit.memory", "KV_TYPES"),
    ("sweep", "kv_type"): ("quantkit.memory", "KV_TYPES"),
    ("convert", "strategy"): ("quantkit.strategy", "STRATEGIES"),
}


@pytest.mark.parametrize(("command", "option"), CHOICES)
def test_choices_of_the_command_line(command: str, option: str) -> None:
    module, name = CHOICES[command, option]
    table = getattr(importlib.import_module(module), name)
    options = {one.name: one for one in importlib.import_module(f"quantkit.cli.{command}").command.params}
    assert isinstance(options[option].type, click.Choice)
    assert list(options[option].type.choices) == list(get_args(table) or table)


@pytest.mark.skipif(_native is None, reason="no C kernels in this installation")
@pytest.mark.parametrize("qtype", qtypes.ALL, ids=str)
def test_every_instruction_set_has_every_type(qtype: qtypes.QType) -> None:
    k = qtype.block_weights
    rows, values = np.full((1, k), 2, np.float32), np.zeros((1, k), np.float32)
    try:
        for isa in _native.isas():
            _native.use(isa)
            blocks = np.zeros((1, qtype.block_bytes), np.uint8)
            assert _native.encode(qtype.id, rows, 1, k, None, qtype.max_abs, blocks) == -1
            _native.decode(qtype.id, blocks, 1, k, values)
            assert np.abs(values - rows).max() < 0.01, isa
    finally:
        _native.use(None)


@pytest.mark.skipif(_native is None, reason="no C kernels in this installation")
def test_the_c_table_has_no_other_type() -> None:
    known = {qtype.id for qtype in qtypes.ALL}
    for type_id in set(range(64)) - known:
        with pytest.raises(ValueError, match="unknown type"):
            _native.encode(type_id, b"", 0, 0, None, 1.0, bytearray())
