"""Sound checkpoints: what is opened, and that rows come out as the safetensors library reads them."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import TensorSpec, deserialize, serialize_file

from quantkit.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from quantkit.errors import DiskError, FormatError, ShapeError, UsageError
from quantkit.qtypes import BF16, F32, QType

SHAPES = {"matrix": (7, 5), "wide": (3, 4000), "vector": (11,), "scalar": (), "cube": (4, 3, 2), "one": (1, 1)}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SPLIT = {FIRST: ["matrix", "vector", "one"], SECOND: ["wide"]}
CONFIG = {"model_type": "phi3", "hidden_size": 5120}


def save(path: Path, dtype: str, names: list[str], seed: int = 0) -> None:
    """A file of the safetensors library's making, with the tensors of SHAPES called names, of random bits."""
    rng = np.random.default_rng(seed)
    spelled, item_bytes = {"F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}[dtype]
    bits = {name: np.frombuffer(rng.bytes(math.prod(SHAPES[name]) * item_bytes), np.uint8) for name in names}
    specs = {
        name: TensorSpec(dtype=spelled, shape=list(SHAPES[name]), data_ptr=data.ctypes.data, data_len=data.nbytes)
        for name, data in bits.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})


def as_library_reads(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in deserialize(path.read_bytes())}


def rows(checkpoint: Checkpoint, tensor: TensorInfo, start: int, stop: int) -> bytes:
    out = np.full((stop - start) * tensor.row_bytes, 0xEE, np.uint8)
    checkpoint.read_rows(tensor, start, stop, out)
    return out.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of two shards, without the index's total_size."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for shard, names in SPLIT.items():
        save(tmp_path / shard, "BF16", names)
    weight_map = {name: shard for shard, names in SPLIT.items() for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@pytest.fixture
def checkpoint(folder: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(folder) as opened:
        yield opened


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_single_file(dtype: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save(tmp_path / "model.safetensors", dtype, list(SHAPES))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == CONFIG
        assert checkpoint.shards == (tmp_path / "model.safetensors",)
        found = {
            name: (str(tensor.dtype), tensor.shape, rows(checkpoint, tensor, 0, tensor.n_rows))
            for name, tensor in checkpoint.tensors.items()
        }
    assert found == as_library_reads(tmp_path / "model.safetensors")


def test_shards(checkpoint: Checkpoint, folder: Path) -> None:
    assert checkpoint.shards == (folder / FIRST, folder / SECOND)
    for shard in checkpoint.shards:
        tensors = [tensor for tensor in checkpoint.tensors.values() if tensor.file == shard]
        found = {tensor.name: rows(checkpoint, tensor, 0, tensor.n_rows) for tensor in tensors}
        assert found == {name: data for name, (_, _, data) in as_library_reads(shard).items()}


def test_header_in_another_order_than_the_data(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    entries = {
        name: {"dtype": "F16", "shape": [2], "data_offsets": at} for name, at in {"b": [4, 8], "a": [0, 4]}.items()
    }
    header = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"aaaabbbb")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
        assert rows(checkpoint, checkpoint.tensors["b"], 0, 1) == b"bbbb"


def test_sizes() -> None:
    def sizes(dtype: QType, shape: tuple[int, ...]) -> tuple[int, int, int]:
        tensor = TensorInfo("w", dtype, shape, Path("f"), 0)
        return tensor.n_rows, tensor.row_bytes, tensor.nbytes

    assert sizes(BF16, (7, 5)) == (7, 10, 70)
    assert sizes(F32, (11,)) == (1, 44, 44)
    assert sizes(F32, ()) == (1, 4, 4)
    assert sizes(BF16, (4, 3, 2)) == (4, 12, 48)


def test_every_range_of_rows(checkpoint: Checkpoint) -> None:
    tensor = checkpoint.tensors["matrix"]
    data = as_library_reads(tensor.file)["matrix"][2]
    for start in range(8):
        for stop in range(start, 8):
            assert rows(checkpoint, tensor, start, stop) == data[start * 10 : stop * 10]


def test_no_rows(checkpoint: Checkpoint) -> None:
    checkpoint.read_rows(checkpoint.tensors["matrix"], 7, 7, np.empty((0, 10), np.uint8))


def test_out_of_any_shape_is_filled_and_nothing_else(checkpoint: Checkpoint) -> None:
    tensor = checkpoint.tensors["matrix"]
    buffer = np.full((5, 10), 0xEE, np.uint8)
    checkpoint.read_rows(tensor, 2, 5, buffer[1:4])
    assert buffer[1:4].tobytes() == as_library_reads(tensor.file)["matrix"][2][20:50]
    assert (buffer[[0, 4]] == 0xEE).all()


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 8), (5, 4), (8, 8)])
def test_no_such_rows(start: int, stop: int, checkpoint: Checkpoint) -> None:
    out = np.empty(max(0, stop - start) * 10, np.uint8)
    with pytest.raises(ShapeError, match=f"tensor matrix: no such rows .*within 0 to 7, found {start} to {stop}"):
        checkpoint.read_rows(checkpoint.tensors["matrix"], start, stop, out)


@pytest.mark.parametrize("out", [np.empty(19, np.uint8), np.empty(21, np.uint8), np.empty((10, 2), np.uint8).T])
def test_out_that_does_not_fit(out: NDArray[np.uint8], checkpoint: Checkpoint) -> None:
    with pytest.raises(ShapeError, match="expected 20 bytes in C order"):
        checkpoint.read_rows(checkpoint.tensors["matrix"], 0, 2, out)


def test_many_threads(checkpoint: Checkpoint) -> None:
    tensors = list(checkpoint.tensors.values())
    expected = {name: t[2] for shard in checkpoint.shards for name, t in as_library_reads(shard).items()}

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(200):
            tensor = rng.choice(tensors)
            start = rng.randint(0, tensor.n_rows)
            stop = rng.randint(start, tensor.n_rows)
            part = expected[tensor.name][start * tensor.row_bytes : stop * tensor.row_bytes]
            assert rows(checkpoint, tensor, start, stop) == part

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(16)))


def test_file_that_shrinks_after_opening(checkpoint: Checkpoint) -> None:
    tensor = checkpoint.tensors["wide"]
    os.truncate(tensor.file, tensor.offset + tensor.row_bytes + 1)
    rows(checkpoint, tensor, 0, 1)
    with pytest.raises(DiskError, match="ends too early") as caught:
        rows(checkpoint, tensor, 1, 2)
    assert caught.value.exit_code == 74
    assert caught.value.details["file"] == tensor.file
    assert caught.value.details["offset"] == tensor.offset + tensor.row_bytes + 1


def test_file_replaced_after_opening(checkpoint: Checkpoint) -> None:
    """What was opened is what is read, though another file takes the name."""
    tensor = checkpoint.tensors["wide"]
    data = as_library_reads(tensor.file)["wide"][2]
    other = tensor.file.with_suffix(".other")
    other.write_bytes(bytes(100))
    other.replace(tensor.file)
    assert rows(checkpoint, tensor, 0, 3) == data


def test_closed(checkpoint: Checkpoint) -> None:
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(UsageError, match="closed"):
        rows(checkpoint, checkpoint.tensors["wide"], 0, 1)


def test_hub_cache_layout(folder: Path, tmp_path: Path) -> None:
    """In a hub cache every file of a snapshot is a link to ../../blobs/<sha256>."""
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
        file.rename(blobs / f"{number:064}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064}")
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.name == "0123abc"
        tensor = checkpoint.tensors["wide"]
        assert tensor.file.parent == snapshot
        assert rows(checkpoint, tensor, 0, 3) == as_library_reads(tensor.file)["wide"][2]


def test_single_file_counts_before_an_index(folder: Path) -> None:
    save(folder / "model.safetensors", "F16", ["vector"])
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["vector"]


def test_other_safetensors_in_the_folder_do_not_matter(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"not one")
    with open_checkpoint(folder) as checkpoint:
        assert len(checkpoint.shards) == 2


def test_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is the one the user gave, also through a link; where that is no name, the folder's own."""
    link = folder.parent / "my-model"
    link.symlink_to(folder)
    monkeypatch.chdir(folder)
    (folder / "below").mkdir()
    for path, name in [(link, "my-model"), (Path(), folder.name), (Path("below/.."), folder.name)]:
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.name == name


def test_failure_leaves_no_file_open(folder: Path) -> None:
    opened = Path("/dev/fd")
    before = sorted(path.name for path in opened.iterdir())
    (folder / SECOND).write_bytes(b"")
    with pytest.raises(FormatError):
        open_checkpoint(folder)
    assert sorted(path.name for path in opened.iterdir()) == before


def test_import_is_light() -> None:
    """tokenizer/ reads JSON through this package, and may load nothing but the standard library."""
    code = "import sys, quantkit.checkpoint; print(sorted({'numpy', 'safetensors', 'gguf'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
