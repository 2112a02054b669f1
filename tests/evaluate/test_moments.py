"""Second moments: the packed triangle, the file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from quantkit import moments
from quantkit.errors import FormatError, InputError, OutputError, TensorError

TEXT = "ab" * 32


@pytest.mark.parametrize("k", [1, 2, 3, 256, 257])
def test_the_triangle_is_packed(k: int) -> None:
    x = np.random.default_rng(k).standard_normal((k, k)).astype(np.float32)
    symmetric = x @ x.T
    symmetric = (symmetric + symmetric.T) / 2
    packed = moments.pack(symmetric)
    assert packed.shape == (k * (k + 1) // 2,)
    assert packed.nbytes == moments.nbytes([k])
    assert np.array_equal(packed, symmetric[np.tril_indices(k)])


def test_rows_of_the_triangle_follow_one_another() -> None:
    symmetric = np.array([[1, 2, 4], [2, 3, 5], [4, 5, 6]], np.float32)
    assert moments.pack(symmetric).tolist() == [1, 2, 3, 4, 5, 6]


def test_a_layers_file(tmp_path: Path) -> None:
    name = "blk.3.attn_qkv.weight"
    moments.write_layer(tmp_path, "blk.3", {name: np.eye(3, dtype=np.float32)}, 1024, "ab" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["blk.3.safetensors"]
    with safe_open(tmp_path / "blk.3.safetensors", "numpy") as file:
        assert file.metadata()["count"] == "1024"
        assert file.metadata()["text_sha256"] == "ab" * 32
        assert file.get_tensor(name).tolist() == [1, 0, 1, 0, 0, 1]


def write(folder: Path, layer: str) -> None:
    moments.write_layer(folder, layer, {f"{layer}.ffn_up.weight": np.eye(3, dtype=np.float32)}, 64, "ab" * 32)


def test_layers_are_named_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "blk.1.safetensors.part").write_bytes(b"")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert moments.layers_in(tmp_path) == []
    for layer in ("blk.10", "blk.9", "blk.0"):
        write(tmp_path, layer)
    assert moments.layers_in(tmp_path) == ["blk.0", "blk.9", "blk.10"]


@pytest.mark.parametrize(
    ("count", "text_sha256", "key"), [(65, "ab" * 32, "count"), (64, "cd" * 32, "text_sha256")], ids=["count", "text"]
)
def test_moments_of_another_text_are_refused(tmp_path: Path, count: int, text_sha256: str, key: str) -> None:
    moments.refuse_others(tmp_path, count, text_sha256)
    write(tmp_path, "blk.0")
    write(tmp_path, "blk.1")
    moments.refuse_others(tmp_path, 64, "ab" * 32)
    with pytest.raises(OutputError, match="another text") as caught:
        moments.refuse_others(tmp_path, count, text_sha256)
    assert (caught.value.details["file"], caught.value.details["key"]) == (tmp_path / "blk.0.safetensors", key)
    assert caught.value.hint


def test_what_is_no_moments_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blk.0.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputError, match="cannot be read") as caught:
        moments.refuse_others(tmp_path, 64, "ab" * 32)
    assert caught.value.hint


# ---- reading

NAME = "blk.0.ffn_up.weight"


def symmetric(k: int) -> np.ndarray:
    x = np.random.default_rng(k).standard_normal((k, k)).astype(np.float32)
    product = x @ x.T
    return np.tril(product) + np.tril(product, -1).T


@pytest.mark.parametrize("k", [1, 3, 256, 1023, 1024, 1025, 2049])
def test_what_is_written_is_read(tmp_path: Path, k: int) -> None:
    sums = symmetric(k)
    moments.write_layer(tmp_path, "blk.0", {"blk.0.attn_qkv.weight": np.eye(2, dtype=np.float32), NAME: sums}, 7, TEXT)
    found = moments.read_moments(tmp_path, NAME, k)
    assert found.sums.tobytes() == sums.tobytes()
    assert (found.count, found.text_sha256) == (7, TEXT)
    assert moments.read_record(tmp_path, NAME, k) == moments.Record(7, TEXT, found.sha256)
    assert found.sha256 == hashlib.sha256(moments.pack(sums).tobytes()).hexdigest()


def test_layers_alone_have_moments(tmp_path: Path) -> None:
    assert moments.has_moments(NAME)
    assert not moments.has_moments("output.weight")
    assert not moments.has_moments("../blk.0.weight")
    with pytest.raises(TensorError, match="layers") as caught:
        moments.read_moments(tmp_path, "../blk.0.weight", 3)
    assert caught.value.details["tensor"] == "../blk.0.weight"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for look in (moments.read_moments, moments.read_record):
        with pytest.raises(InputError, match="no such file") as caught:
            look(tmp_path, NAME, 3)
    assert caught.value.details["file"] == tmp_path / "blk.0.safetensors"


def damaged(folder: Path, name: str = NAME, values: object = None, **metadata: str) -> None:
    """A file of the moments of 3 columns, but for what is given."""
    data = np.array([1, 0, 1, 0, 0, 1] if values is None else values, np.float32)
    sha256 = hashlib.sha256(data).hexdigest()
    record = {"count": "7", "text_sha256": TEXT, f"{NAME}.sha256": sha256} | metadata
    save_file({name: data}, folder / "blk.0.safetensors", record)


@pytest.mark.parametrize(
    ("change", "kind", "details"),
    [
        ({"name": "blk.0.ffn_gate.weight"}, TensorError, {"tensor": NAME}),
        ({"values": [1, 0, 1]}, TensorError, {"tensor": NAME, "found": "F32 [3]"}),
        ({"values": [[1, 0, 1], [0, 0, 1]]}, TensorError, {"tensor": NAME, "found": "F32 [2, 3]"}),
        ({"values": [1, 0, 1, np.nan, 0, 1]}, FormatError, {"tensor": NAME, "row": 2, "column": 0}),
        ({"values": [1, 0, 1, 0, np.inf, 1]}, FormatError, {"tensor": NAME, "row": 2, "column": 1}),
        ({"values": [1, 0, 1, 0, 0, -1]}, FormatError, {"tensor": NAME, "row": 2, "column": 2, "found": -1.0}),
        ({"count": "0"}, FormatError, {"key": "count", "found": "0"}),
        ({"count": "-7"}, FormatError, {"key": "count", "found": "-7"}),
        ({"count": "9" * 4000}, FormatError, {"key": "count"}),
        ({"text_sha256": "ab"}, FormatError, {"key": "text_sha256", "found": "ab"}),
        ({f"{NAME}.sha256": ""}, FormatError, {"key": f"{NAME}.sha256", "found": ""}),
        ({f"{NAME}.sha256": TEXT}, FormatError, {"tensor": NAME, "expected": TEXT}),
    ],
)
def test_what_no_moments_have_is_refused(
    tmp_path: Path, change: dict[str, Any], kind: type[InputError], details: dict[str, object]
) -> None:
    damaged(tmp_path)
    assert moments.read_moments(tmp_path, NAME, 3).sums.tolist() == np.eye(3).tolist()
    damaged(tmp_path, **change)
    with pytest.raises(kind) as caught:
        moments.read_moments(tmp_path, NAME, 3)
    assert caught.value.details["file"] == tmp_path / "blk.0.safetensors"
    assert details.items() <= caught.value.details.items()


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    damaged(tmp_path)
    path = tmp_path / "blk.0.safetensors"
    whole = path.read_bytes()
    for n in (0, 7, 40, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(FormatError):
            moments.read_moments(tmp_path, NAME, 3)
