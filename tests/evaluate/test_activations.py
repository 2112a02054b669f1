"""The rounding of a matrix's input, for every type, against what ggml's CPU backend makes of the same rows."""

from __future__ import annotations

import ctypes
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantkit import qtypes
from quantkit.evaluate.activations import rounding
from quantkit.qtypes import QType

F32 = NDArray[np.float32]
TYPES = {qtype.name: qtype for qtype in qtypes.ALL + qtypes.DECODED_ONLY}


class CpuTraits(ctypes.Structure):
    """ggml_type_traits_cpu (ggml-cpu.h)."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


@pytest.fixture(scope="module")
def ggml_cpu() -> ctypes.CDLL:
    files = {Path(str(file)).name: file.locate() for file in distribution("libggml-python").files or ()}
    ctypes.CDLL(str(files["libggml-base.so"]), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(files["libggml-cpu.so"]))
    library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(CpuTraits)
    library.ggml_cpu_init()
    return library


def inputs() -> F32:
    rows = np.random.default_rng(5).standard_normal((40, 768)).astype(np.float32)
    rows[0] = 0
    rows[1, :256] = 0
    rows[2] = -rows[3]
    rows[4] *= np.float32(1e-30)
    rows[5, 7] = 1000
    return rows


# What the codes of each type that a matrix can be multiplied by stand for, by ggml's number.
BLOCKS = {
    8: (32, np.dtype([("d", "<f2"), ("q", "i1", 32)])),  # Q8_0
    9: (32, np.dtype([("d", "<f2"), ("s", "<f2"), ("q", "i1", 32)])),  # Q8_1
    15: (256, np.dtype([("d", "<f4"), ("q", "i1", 256), ("sums", "<i2", 16)])),  # Q8_K
}


def as_ggml_rounds(rows: F32, qtype: QType, library: ctypes.CDLL) -> F32:
    kind = library.ggml_get_type_traits_cpu(qtype.id).contents.vec_dot_type
    if kind == qtypes.F32.id:
        return rows
    if kind == qtypes.F16.id:
        return rows.astype(np.float16).astype(np.float32)
    if kind == qtypes.BF16.id:
        return torch.from_numpy(rows).bfloat16().float().numpy()
    n_weights, layout = BLOCKS[kind]
    blocks = np.zeros(rows.size // n_weights, layout)
    library.ggml_get_type_traits_cpu(kind).contents.from_float(rows.ctypes.data, blocks.ctypes.data, rows.size)
    values: F32 = blocks["d"].astype(np.float32)[:, None] * blocks["q"].astype(np.float32)
    return values.reshape(rows.shape)


@pytest.mark.parametrize("name", TYPES)
def test_as_llama_cpp_rounds(name: str, ggml_cpu: ctypes.CDLL) -> None:
    rows = inputs()
    rounded = rounding("q8", TYPES[name])(torch.from_numpy(rows)).numpy()
    assert np.array_equal(rounded, as_ggml_rounds(rows, TYPES[name], ggml_cpu))


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "BF16"])
def test_exact_is_exact(name: str) -> None:
    rows = torch.from_numpy(inputs())
    assert rounding("f32", TYPES[name])(rows) is rows
