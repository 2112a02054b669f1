"""What is collected against hooks on transformers' modules; the files it goes into; what convert makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import libgguf
import numpy as np
import pytest
import small
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import PreTrainedModel

from quantkit import moments
from quantkit.evaluate import Model, collect, moment_shapes, n_collect_steps, network, open_model
from quantkit.evaluate import measure as measure_module
from quantkit.imatrix import ColumnSums, read_imatrix, write_imatrix
from quantkit.osio import AtomicFile

# transformers' name of what multiplies: GGUF's, as it ends
HOOKED = {
    "self_attn.qkv_proj": "attn_qkv.weight",
    "self_attn.o_proj": "attn_output.weight",
    "mlp.gate_up_proj": "ffn_up.weight",
    "mlp.down_proj": "ffn_down.weight",
}


def gguf_name(module: str) -> str | None:
    if module == "lm_head":
        return "output.weight"
    parts = module.split(".", 3)
    return f"blk.{parts[2]}.{HOOKED[parts[3]]}" if parts[-1] in HOOKED else None


def their_inputs(model: PreTrainedModel, ids: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """What each matrix was multiplied by: float32 (tokens, k) by GGUF name."""
    inputs: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            inputs[name] = arguments[0].flatten(0, -2)

        return keep

    handles = [
        module.register_forward_pre_hook(hook(wanted))
        for name, module in model.named_modules()
        if (wanted := gguf_name(name)) is not None
    ]
    try:
        with torch.inference_mode():
            model(torch.from_numpy(ids))
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def test_sums_as_transformers_has_them(trained: Model, their_trained: PreTrainedModel) -> None:
    ids = np.random.default_rng(6).integers(0, trained.network.vocabulary, (2, 64))
    ours = collect(trained, ids)
    theirs = their_inputs(their_trained, ids)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 4 * trained.network.layers + 1
    n_zero = 0
    for name, x in theirs.items():
        expected = x.double().square().sum(0).numpy()
        assert ours[name].count == ids.size
        assert np.array_equal(ours[name].sums == 0, expected == 0), name
        assert np.allclose(ours[name].sums, expected, rtol=1e-4), name
        n_zero += int((expected == 0).sum())
    assert n_zero > 1000  # the widened columns


@pytest.fixture(scope="module")
def ids() -> NDArray[np.int64]:
    return np.random.default_rng(7).integers(0, small.VOCABULARY, (5, 32))


@pytest.fixture(scope="module")
def model(little_files: dict[str, Path]) -> Any:
    with open_model(little_files["Q8_0"], pytest.fail) as opened:
        yield opened


@pytest.fixture(scope="module")
def sums(model: Model, ids: NDArray[np.int64]) -> dict[str, ColumnSums]:
    return collect(model, ids)


def test_groups_add_up(
    model: Model, ids: NDArray[np.int64], sums: dict[str, ColumnSums], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "GROUP_TOKENS", 2 * ids.shape[1])
    calls: list[None] = []
    in_twos = collect(model, ids, progress=lambda: calls.append(None))
    assert len(calls) == n_collect_steps(model, ids, covariance=False) == 3 * small.LAYERS
    assert in_twos.keys() == sums.keys()
    for name, entry in in_twos.items():
        assert entry.count == sums[name].count == ids.size
        assert np.allclose(entry.sums, sums[name].sums, rtol=1e-6)


def unpacked(packed: NDArray[np.float32]) -> NDArray[np.float32]:
    """The symmetric (k, k) of a packed lower triangle."""
    k = int((np.sqrt(8 * len(packed) + 1) - 1) / 2)
    matrix = np.empty((k, k), np.float32)
    rows, columns = np.tril_indices(k)
    matrix[rows, columns] = matrix[columns, rows] = packed
    return matrix


@pytest.mark.parametrize("batch_bytes", [network.BATCH_BYTES, 1], ids=["all at once", "a window at a time"])
def test_second_moments_have_the_sums_on_their_diagonal(
    model: Model,
    ids: NDArray[np.int64],
    sums: dict[str, ColumnSums],
    batch_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(measure_module, "GROUP_TOKENS", 1)  # is not heeded: each layer's file is written once
    calls: list[None] = []
    of_run = moments.Run(ids.size, "ab" * 32, "cd" * 32)
    again = collect(model, ids, moments=(tmp_path, of_run), progress=lambda: calls.append(None))
    assert len(calls) == n_collect_steps(model, ids, covariance=True) == small.LAYERS
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"blk.{i}.safetensors" for i in range(small.LAYERS)]
    assert all(np.allclose(entry.sums, sums[name].sums, rtol=1e-6) for name, entry in again.items())
    found, nbytes = set(), 0
    for path in tmp_path.iterdir():
        with safe_open(path, "numpy") as file:
            assert file.metadata()["count"] == str(ids.size)
            assert file.metadata()["text_sha256"] == "ab" * 32
            for name in file.keys():  # noqa: SIM118
                packed = file.get_tensor(name)
                matrix = unpacked(packed)
                assert np.allclose(np.diag(matrix), sums[name].sums, rtol=1e-5)
                assert np.linalg.eigvalsh(matrix.astype(np.float64)).min() > -1e-3 * np.trace(matrix)
                assert np.abs(matrix - np.diag(np.diag(matrix))).max() > 0
                found.add(name)
                nbytes += packed.nbytes
    assert found == sums.keys() - {"output.weight"}
    assert nbytes == moments.nbytes(moment_shapes(model))


def test_the_file_is_read_by_us_and_by_libgguf(sums: dict[str, ColumnSums], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with AtomicFile(path) as out:
        write_imatrix(out, sums, chunk_count=5, chunk_size=32, text_sha256="cd" * 32)
    ours, theirs = read_imatrix(path), libgguf.load_imatrix(path)
    assert (ours.chunk_count, ours.chunk_size, ours.datasets) == (5, 32, (f"sha256:{'cd' * 32}",))
    assert ours.entries.keys() == theirs.keys() == sums.keys()
    for name, entry in sums.items():
        mean = entry.sums.astype(np.float32) / np.float32(entry.count)
        assert ours.entries[name].tobytes() == mean.tobytes() == theirs[name].tobytes()
    assert str(tmp_path).encode() not in path.read_bytes()
