"""Second moments: the packed triangle, the file."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from quantkit import moments
from quantkit.errors import FormatError, InputError, OutputError, TensorError

TEXT, RUN = "ab" * 32, "cd" * 32


@pytest.mark.parametrize("k", [1, 2, 3, 256, 257])
def test_the_triangle_is_packed(k: int) -> None:
    x = np.random.default_rng(k).standard_normal((k, k)).astype(np.float32)
    symmetric = x @ x.T
    symmetric = (symmetric + symmetric.T) / 2
    packed = moments.pack(symmetric)
    assert packed.shape == (k * (k + 1) // 2,)
    assert packed.nbytes == moments.nbytes([(7, k)]) == moments.nbytes([(7, k)], corrected=True) - 2 * 7 * k
    assert moments.unpack(packed, k).tobytes() == symmetric.tobytes()
    assert np.array_equal(packed, symmetric[np.tril_indices(k)])


def test_rows_of_the_triangle_follow_one_another() -> None:
    symmetric = np.array([[1, 2, 4], [2, 3, 5], [4, 5, 6]], np.float32)
    assert moments.pack(symmetric).tolist() == [1, 2, 3, 4, 5, 6]


def test_a_layers_file(tmp_path: Path) -> None:
    name = "blk.3.attn_qkv.weight"
    moments.write_layer(tmp_path, "blk.3", {name: collected(np.eye(3, dtype=np.float32))}, moments.Run(1024, TEXT, RUN))
    assert [path.name for path in tmp_path.iterdir()] == ["blk.3.safetensors"]
    with safe_open(tmp_path / "blk.3.safetensors", "numpy") as file:
        assert file.metadata()["count"] == "1024"
        assert file.metadata()["text_sha256"] == "ab" * 32
        assert file.get_tensor(name).tolist() == [1, 0, 1, 0, 0, 1]


def write(folder: Path, layer: str, run: moments.Run) -> None:
    moments.write_layer(folder, layer, {f"{layer}.ffn_up.weight": collected(np.eye(3, dtype=np.float32))}, run)


def collected(sums: np.ndarray, correction: np.ndarray | None = None) -> moments.Collected:
    return moments.Collected(moments.pack(sums), 0.7, correction)


def test_layers_are_named_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "blk.1.safetensors.part").write_bytes(b"")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert moments.layers_in(tmp_path) == []
    for layer in ("blk.10", "blk.9", "blk.0"):
        write(tmp_path, layer, moments.Run(64, TEXT, RUN))
    assert moments.layers_in(tmp_path) == ["blk.0", "blk.9", "blk.10"]


PACKED = moments.Packed("Q4_K_M", "12" * 32)


@pytest.mark.parametrize(
    ("run", "key"),
    [
        (moments.Run(65, TEXT, RUN, PACKED), "count"),
        (moments.Run(64, "34" * 32, RUN, PACKED), "text_sha256"),
        (moments.Run(64, TEXT, "34" * 32, PACKED), "run_sha256"),
        (moments.Run(64, TEXT, RUN, moments.Packed("Q4_K_M", "34" * 32)), "types_sha256"),
        (moments.Run(64, TEXT, RUN), "types_sha256"),
    ],
)
def test_moments_of_another_run_are_refused(tmp_path: Path, run: moments.Run, key: str) -> None:
    """Whatever its recipe is called."""
    moments.refuse_others(tmp_path, run)
    write(tmp_path, "blk.0", moments.Run(64, TEXT, RUN, PACKED))
    write(tmp_path, "blk.1", moments.Run(64, TEXT, RUN, PACKED))
    moments.refuse_others(tmp_path, moments.Run(64, TEXT, RUN, moments.Packed("mine", "12" * 32)))
    with pytest.raises(OutputError, match="another model") as caught:
        moments.refuse_others(tmp_path, run)
    assert (caught.value.details["file"], caught.value.details["key"]) == (tmp_path / "blk.0.safetensors", key)
    assert caught.value.hint


def test_what_is_no_moments_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blk.0.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputError, match="cannot be read") as caught:
        moments.refuse_others(tmp_path, moments.Run(64, TEXT, RUN))
    assert caught.value.hint


# ---- reading

NAME = "blk.0.ffn_up.weight"
CORRECTION = f"{NAME}.correction"


def symmetric(k: int) -> np.ndarray:
    x = np.random.default_rng(k).standard_normal((k, k)).astype(np.float32)
    product = x @ x.T
    return np.tril(product) + np.tril(product, -1).T


@pytest.mark.parametrize("k", [1, 3, 256, 1023, 1024, 1025, 2049])
def test_what_is_written_is_read(tmp_path: Path, k: int) -> None:
    sums = symmetric(k)
    other = {"blk.0.attn_qkv.weight": collected(np.eye(2, dtype=np.float32))}
    moments.write_layer(tmp_path, "blk.0", other | {NAME: collected(sums)}, moments.Run(7, TEXT, RUN))
    found = moments.read_moments(tmp_path, NAME, (5, k))
    assert found.sums.tobytes() == sums.tobytes()
    assert (found.count, found.kept, found.correction) == (7, 0.7, None)
    sha256 = {NAME: hashlib.sha256(moments.pack(sums).tobytes()).hexdigest()}
    assert moments.read_record(tmp_path, NAME, k) == moments.Record(moments.Run(7, TEXT, RUN), 0.7, sha256)


def test_corrections_are_read(tmp_path: Path) -> None:
    correction = np.arange(-6, 9, dtype=np.float16).reshape(5, 3) / 7
    run = moments.Run(7, TEXT, RUN, PACKED)
    moments.write_layer(tmp_path, "blk.0", {NAME: collected(symmetric(3), correction)}, run)
    found = moments.read_moments(tmp_path, NAME, (5, 3)).correction
    assert found is not None
    assert found.tobytes() == correction.tobytes()
    record = moments.read_record(tmp_path, NAME, 3)
    assert record.run == run
    assert record.sha256.keys() == {NAME, CORRECTION}
    assert record.sha256[CORRECTION] == hashlib.sha256(correction.tobytes()).hexdigest()
    with pytest.raises(TensorError, match="another size") as caught:
        moments.read_moments(tmp_path, NAME, (4, 3))
    assert caught.value.details["tensor"] == CORRECTION


def test_layers_alone_have_moments(tmp_path: Path) -> None:
    assert moments.has_moments(NAME)
    assert not moments.has_moments("output.weight")
    assert not moments.has_moments("../blk.0.weight")
    with pytest.raises(TensorError, match="layers") as caught:
        moments.read_moments(tmp_path, "../blk.0.weight", (5, 3))
    assert caught.value.details["tensor"] == "../blk.0.weight"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for look in (partial(moments.read_moments, shape=(5, 3)), partial(moments.read_record, n_columns=3)):
        with pytest.raises(InputError, match="no such file") as caught:
            look(tmp_path, NAME)
        assert caught.value.details["file"] == tmp_path / "blk.0.safetensors"


def damaged(folder: Path, name: str = NAME, values: object = None, correction: object = None, **metadata: str) -> None:
    """A file of the moments and the correction of a matrix (5, 3), but for what is given."""
    data = np.array([1, 0, 1, 0, 0, 1] if values is None else values, np.float32)
    added = np.zeros((5, 3), np.float16) if correction is None else np.array(correction)
    sha256 = {f"{NAME}.sha256": digest(data), f"{CORRECTION}.sha256": digest(added)}
    run = moments.Run(7, TEXT, RUN, PACKED)
    record = run.metadata | {f"{NAME}.kept": "0.5"} | sha256 | metadata
    save_file({name: data, CORRECTION: added}, folder / "blk.0.safetensors", record)


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(data).hexdigest()


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
        ({f"{NAME}.kept": "1.5"}, FormatError, {"key": f"{NAME}.kept", "found": "1.5"}),
        ({"text_sha256": "ab"}, FormatError, {"key": "text_sha256", "found": "ab"}),
        ({f"{NAME}.sha256": ""}, FormatError, {"key": f"{NAME}.sha256", "found": ""}),
        ({f"{NAME}.sha256": TEXT}, FormatError, {"tensor": NAME, "expected": TEXT}),
        ({"correction": np.zeros((5, 3), np.float32)}, TensorError, {"tensor": CORRECTION, "found": "F32 [5, 3]"}),
        ({"correction": np.zeros((3, 5), np.float16)}, TensorError, {"tensor": CORRECTION, "found": "F16 [3, 5]"}),
        ({"correction": np.full((5, 3), np.inf, np.float16)}, FormatError, {"tensor": CORRECTION, "row": 0}),
        ({f"{CORRECTION}.sha256": ""}, FormatError, {"key": f"{CORRECTION}.sha256"}),
        ({f"{CORRECTION}.sha256": TEXT}, FormatError, {"tensor": CORRECTION, "expected": TEXT}),
        ({"run_sha256": ""}, FormatError, {"key": "run_sha256", "found": ""}),
        ({"recipe": ""}, FormatError, {"key": "recipe"}),
        ({"types_sha256": "x"}, FormatError, {"key": "types_sha256", "found": "x"}),
    ],
)
def test_what_no_moments_have_is_refused(
    tmp_path: Path, change: dict[str, Any], kind: type[InputError], details: dict[str, object]
) -> None:
    damaged(tmp_path)
    assert moments.read_moments(tmp_path, NAME, (5, 3)).sums.tolist() == np.eye(3).tolist()
    damaged(tmp_path, **change)
    with pytest.raises(kind) as caught:
        moments.read_moments(tmp_path, NAME, (5, 3))
    assert caught.value.details["file"] == tmp_path / "blk.0.safetensors"
    assert details.items() <= caught.value.details.items()


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    damaged(tmp_path)
    path = tmp_path / "blk.0.safetensors"
    whole = path.read_bytes()
    for n in (0, 7, 40, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(FormatError):
            moments.read_moments(tmp_path, NAME, (5, 3))
