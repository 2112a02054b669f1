"""Files replayed tensor by tensor by another encoder of ggml's: libgguf makes the same bytes of the same weights."""

from __future__ import annotations

from pathlib import Path

import libgguf
import numpy as np
import pytest
import small
import synthetic_imatrix

from quantkit.checkpoint import open_checkpoint
from quantkit.convert import convert
from quantkit.gguf_io import read_gguf
from quantkit.imatrix import read_imatrix
from quantkit.plan import make_plan
from quantkit.qtypes import BF16, F32
from quantkit.recipe import preset

PRESETS = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_1", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0")


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
def test_every_tensor(tmp_path: Path, weighted: bool) -> None:
    with open_checkpoint(small.write(tmp_path / "small")) as checkpoint:
        matrices = [(job.name, job.n_columns) for job in make_plan(checkpoint, [preset("BF16")], warn=pytest.fail).jobs]
        layers = [(name, n_columns) for name, n_columns in matrices if name.startswith("blk.") and "norm" not in name]
        synthetic_imatrix.write(tmp_path / "imatrix.dat", "dat", layers)
        imatrix = read_imatrix(tmp_path / "imatrix.dat") if weighted else None
        plan = make_plan(checkpoint, [preset(name) for name in PRESETS], imatrix=imatrix, warn=pytest.fail)
        paths = [tmp_path / f"{name}.gguf" for name in PRESETS]
        convert(checkpoint, plan, paths)
        weights = {}
        for job in plan.jobs:
            (source,) = job.sources
            raw = np.empty((source.n_rows, source.row_bytes), np.uint8)
            checkpoint.read_rows(source, 0, source.n_rows, raw)
            assert source.dtype is BF16
            weights[job.name] = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    seen = set()
    for path in paths:
        found, data = read_gguf(path), path.read_bytes()
        for tensor in found.tensors.values():
            importance = imatrix.of(tensor.name, tensor.shape[-1]) if imatrix and len(tensor.shape) > 1 else None
            if tensor.qtype is F32:
                expected = weights[tensor.name].tobytes()
            else:
                kind = libgguf.GGMLQuantizationType(tensor.qtype.id)
                expected = np.asarray(libgguf.quantize_rows(weights[tensor.name], kind, importance)).tobytes()
            start = found.data_offset + tensor.offset
            assert data[start : start + tensor.nbytes] == expected, (path.name, tensor.name)
            seen.add(tensor.qtype.name)
    assert len(seen) == 11, "ten block types, and F32"
