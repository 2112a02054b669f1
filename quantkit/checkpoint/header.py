"""The header of one safetensors file, checked in full before anything in it is used.

The format (https://github.com/huggingface/safetensors#format): 8 bytes N, little-endian; N bytes of JSON that begin
with `{` and may end in spaces; then the tensors' bytes, without holes.  The JSON maps each tensor's name to its dtype,
shape and [begin, end) in those bytes; `__metadata__`, if there, maps strings to strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from quantkit import qtypes
from quantkit.checkpoint.json_file import parse_json, shown
from quantkit.errors import FormatError, TensorError, UnsupportedError
from quantkit.osio import InputFile
from quantkit.qtypes import QType

DTYPES: Mapping[str, QType] = {t.name: t for t in (qtypes.F32, qtypes.F16, qtypes.BF16)}

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's limit
MAX_NAME_CHARS = 512  # errors print names; those of published models have some 100 at most

_LENGTH_BYTES = 8
_FIELDS = {"dtype", "shape", "data_offsets"}
_FETCH_AGAIN = "fetch the file again: interrupted downloads leave such files"
_OTHER_KINDS = {  # read as a length, each of these is beyond the limit
    b"version ": "this is a Git LFS pointer: fetch the file itself with git lfs pull",
    b"PK\3\4": "this is a PyTorch pickle: convert it with safetensors first",
    b"GGUF": "this is a GGUF file already",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's weights are.

    name    as the checkpoint spells it
    dtype   F32, F16 or BF16; of a GGUF file that is only looked at, any type
    shape   NumPy order, (rows, columns) for a matrix; no dimension is 0
    file    the shard that holds it
    offset  of its first byte in that file
    """

    name: str
    dtype: QType
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return self.dtype.row_bytes(prod(self.shape))

    @property
    def n_rows(self) -> int:
        """Rows along the leading dimension; a vector or a scalar is one row."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        return self.nbytes // self.n_rows


def read_header(file: InputFile) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    raises  FormatError       the file is cut, its header is no header, or header and file contradict each other
            UnsupportedError  a dtype other than F32, F16, BF16
            TensorError       a tensor without elements
            DiskError         reading fails
    """
    header_bytes = _header_bytes(file)
    raw = file.read(header_bytes, _LENGTH_BYTES)
    if not raw.startswith(b"{"):
        raise FormatError(
            "the header does not begin with a brace",
            file=file.path,
            offset=_LENGTH_BYTES,
            found=shown(raw[:16].decode("latin-1")),
        )
    entries = parse_json(raw, file=file.path, offset=_LENGTH_BYTES)
    entries.pop("__metadata__", None)  # the library checks it, nothing here uses it
    data_offset = _LENGTH_BYTES + header_bytes
    tensors = [_tensor(name, entry, file.path, data_offset) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    _check_contiguous(tensors, data_offset, file)
    _check_with_library(file.path)
    return {tensor.name: tensor for tensor in tensors}


def check_tensor_name(name: str, file: Path) -> None:
    """Refuse a name that cannot be shown as it is; raises FormatError."""
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME_CHARS:
        expected = f"1 to {MAX_NAME_CHARS} printable characters"
        raise FormatError("a tensor's name cannot be used", file=file, expected=expected, found=shown(name))


def _header_bytes(file: InputFile) -> int:
    """The length of the JSON; it lies within the file."""
    if file.size < _LENGTH_BYTES:
        expected = f"at least {_LENGTH_BYTES} bytes"
        raise FormatError("the file is cut", hint=_FETCH_AGAIN, file=file.path, expected=expected, found=file.size)
    start = file.read(_LENGTH_BYTES)
    header_bytes = int.from_bytes(start, "little")
    if header_bytes > MAX_HEADER_BYTES:
        kinds = (hint for magic, hint in _OTHER_KINDS.items() if start.startswith(magic))
        raise FormatError(
            "the header is longer than a safetensors file may have",
            hint=next(kinds, "this is another kind of file, or a damaged one"),
            file=file.path,
            offset=0,
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            found=header_bytes,
        )
    if _LENGTH_BYTES + header_bytes > file.size:
        expected = f"{_LENGTH_BYTES + header_bytes} bytes or more"
        raise FormatError(
            "the file is cut inside its header", hint=_FETCH_AGAIN, file=file.path, expected=expected, found=file.size
        )
    return header_bytes


def _tensor(name: str, entry: Any, file: Path, data_offset: int) -> TensorInfo:
    """One entry of the header, true in itself: its shape fills its bytes."""
    check_tensor_name(name, file)
    wrong = partial(FormatError, file=file, tensor=name)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise wrong("an entry is not made of dtype, shape and data_offsets", found=shown(entry))
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str):
        raise wrong("the dtype is not a string", found=shown(dtype_name))
    if dtype_name not in DTYPES:
        hint = f"supported: {', '.join(DTYPES)}; save the checkpoint as BF16, without quantization"
        raise UnsupportedError(f"dtype {shown(dtype_name)} is not supported", hint=hint, file=file, tensor=name)
    if not _are_counts(shape):
        raise wrong("the shape is not a list of counts", found=shown(shape))
    if 0 in shape:
        hint = "a ZeRO-3 checkpoint saved without gathering has such tensors: gather the weights, save again"
        raise TensorError("a tensor has no elements", hint=hint, file=file, tensor=name, found=shown(shape))
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("data_offsets is not [begin, end]", found=shown(offsets))
    begin, end = offsets
    dtype = DTYPES[dtype_name]
    if not _fills(shape, dtype.block_bytes, end - begin):
        raise wrong(
            "shape and data_offsets contradict each other",
            expected=f"{dtype} {shown(shape)}",
            found=f"{end - begin} bytes",
        )
    return TensorInfo(name, dtype, tuple(shape), file, data_offset + begin)


def _are_counts(value: Any) -> bool:
    """Whether value is a list of whole numbers of 64 bits without sign; JSON's true is none."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**64 for n in value)


def _fills(shape: list[int], item_bytes: int, nbytes: int) -> bool:
    """Whether elements of item_bytes in this shape take nbytes; the product stops at nbytes, so it costs no more."""
    product = item_bytes
    for n in shape:
        product *= n
        if product > nbytes:
            return False
    return product == nbytes


def _check_contiguous(tensors: list[TensorInfo], data_offset: int, file: InputFile) -> None:
    """The tensors, in the order of their bytes, cover the rest of the file: no hole, no overlap, nothing behind."""
    offset = data_offset
    for tensor in tensors:
        wrong = partial(FormatError, file=file.path, tensor=tensor.name)
        if tensor.offset != offset:
            kind = "overlaps another" if tensor.offset < offset else "leaves a hole before it"
            raise wrong(f"a tensor {kind}", expected=f"data at {offset}", found=tensor.offset)
        offset += tensor.nbytes
        if offset > file.size:
            raise wrong(
                "the file is cut inside a tensor", hint=_FETCH_AGAIN, expected=f"{offset} bytes", found=file.size
            )
    if offset != file.size:
        raise FormatError("bytes follow the last tensor", file=file.path, offset=offset, found=file.size - offset)


def _check_with_library(file: Path) -> None:
    """The safetensors library's own validation, of the header only: it maps the file and touches no tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise FormatError("the safetensors library refuses the file", file=file, found=shown(str(error))) from error
