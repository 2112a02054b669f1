"""An importance matrix that any machine makes anew, in both of llama-imatrix's formats.

Its numbers are of PCG64's raw bits, which NumPy promises to keep, and chunks and tokens are powers of 2: both formats
give the same importance to the last bit, although each stores another multiple of it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.gguf_io import Field, Kind, data_bytes, header, place
from quantkit.qtypes import F32

CHUNKS = 8
CHUNK_SIZE = 512
DATASET = "synthetic"

Values = NDArray[np.float32]


def importance(tensor: str, n_columns: int) -> Values:
    """What an encoder of the tensor of that GGUF name gets: float32 (n_columns,), 2^-15 to 2 and zeros.

    One column in sixteen is 0, and in one tensor of four the 256 columns from 256 on, so that whole blocks are.
    """
    seed = zlib.crc32(tensor.encode())
    bits = np.random.PCG64(seed).random_raw(n_columns)
    mantissa = np.float32(1) + (bits >> 40).astype(np.float32) * np.float32(2.0**-24)
    values = np.ldexp(mantissa, -(bits & 15).astype(np.int32), dtype=np.float32)
    values[(bits >> 4) % 16 == 0] = 0
    if seed % 4 == 0:
        values[256:512] = 0
    return values


def write(path: Path, kind: str, tensors: Iterable[tuple[str, int]]) -> None:
    """Write the importance of tensors, each (GGUF name, columns), to path; kind is "gguf" or "dat"."""
    path.write_bytes(_KINDS[kind]({name: importance(name, n_columns) for name, n_columns in sorted(tensors)}))


def _gguf(entries: dict[str, Values]) -> bytes:
    """Sums of squares over all tokens, and the number of tokens."""
    n_tokens = np.float32(CHUNKS * CHUNK_SIZE)
    data = {}
    for name, values in entries.items():
        data[f"{name}.in_sum2"] = (values * n_tokens)[np.newaxis]
        data[f"{name}.counts"] = n_tokens.reshape(1, 1)
    fields = (
        Field("general.type", Kind.STRING, "imatrix"),
        Field("imatrix.datasets", Kind.ARRAY, [DATASET], Kind.STRING),
        Field("imatrix.chunk_count", Kind.U32, CHUNKS),
        Field("imatrix.chunk_size", Kind.U32, CHUNK_SIZE),
    )
    placed = place((name, values.shape, F32) for name, values in data.items())
    section = bytearray(data_bytes(placed))
    for entry in placed:
        section[entry.offset : entry.offset + entry.nbytes] = data[entry.name].astype("<f4").tobytes()
    return header(fields, placed) + section


def _dat(entries: dict[str, Values]) -> bytes:
    """Mean squares times the number of chunks."""
    parts = [struct.pack("<i", len(entries))]
    for name, values in entries.items():
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", CHUNKS, len(values))]
        parts.append((values * np.float32(CHUNKS)).astype("<f4").tobytes())
    parts.append(struct.pack("<ii", CHUNKS, len(DATASET)) + DATASET.encode())
    return b"".join(parts)


_KINDS: dict[str, Callable[[dict[str, Values]], bytes]] = {"gguf": _gguf, "dat": _dat}
