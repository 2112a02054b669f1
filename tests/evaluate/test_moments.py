"""Second moments: the packed triangle, the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from quantkit import moments
from quantkit.errors import OutputError


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
