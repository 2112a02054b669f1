"""Second moments: the packed triangle, the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from quantkit import moments


@pytest.mark.parametrize("k", [1, 2, 3, 256, 257])
def test_pack_and_unpack(k: int) -> None:
    x = np.random.default_rng(k).standard_normal((k, k)).astype(np.float32)
    symmetric = x @ x.T
    symmetric = (symmetric + symmetric.T) / 2
    packed = moments.pack(symmetric)
    assert packed.shape == (k * (k + 1) // 2,)
    assert packed.nbytes == moments.nbytes([k])
    assert np.array_equal(moments.unpack(packed), symmetric)


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
