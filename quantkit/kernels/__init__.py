"""Rows of float32 to the packed blocks of a tensor type, and back, with ggml's own bytes.

The C kernels run where they were built; else the NumPy text of the same algorithms does, ten to a hundred times slower
with the same bytes.  The environment variable QUANTKIT_BACKEND=native|numpy forces one, and QUANTKIT_ISA=NAME an
instruction set of the C kernels; a name that is unknown or not to be had here is a UsageError.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import numpy.typing as npt

from quantkit.errors import MagnitudeError, NotFiniteError, ShapeError, UnsupportedError, UsageError
from quantkit.kernels import (
    decoded_only,
    feedback,
    low_rank,
    plain,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
)
from quantkit.kernels.lanes import Importance, mean_squares
from quantkit.qtypes import QType

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

NUMPY_TEXTS = {
    "F32": (plain.encode_f32, plain.decode_f32),
    "F16": (plain.encode_f16, plain.decode_f16),
    "BF16": (plain.encode_bf16, plain.decode_bf16),
    "Q4_0": (q4_0.encode, q4_0.decode),
    "Q4_1": (q4_1.encode, q4_1.decode),
    "Q5_0": (q5_0.encode, q5_0.decode),
    "Q5_1": (q5_1.encode, q5_1.decode),
    "Q8_0": (q8_0.encode, q8_0.decode),
    "Q2_K": (q2_k.encode, q2_k.decode),
    "Q3_K": (q3_k.encode, q3_k.decode),
    "Q4_K": (q4_k.encode, q4_k.decode),
    "Q5_K": (q5_k.encode, q5_k.decode),
    "Q6_K": (q6_k.encode, q6_k.decode),
}
# Two dozen temporaries of 1 MiB. With less, threads wait for the interpreter more than they work.
WEIGHTS_AT_ONCE = 1 << 18


_choosing = threading.Lock()
_in_use: list[ModuleType | None] = []  # by using(), the innermost last


def _native() -> ModuleType | None:
    """The C kernels with the wanted instruction set chosen, or None where the NumPy text is to run."""
    if _in_use:
        return _in_use[-1]
    with _choosing:  # a cache alone lets several threads choose at once the first time
        return _choose()


@functools.cache
def _choose() -> ModuleType | None:
    wanted = os.environ.get("QUANTKIT_BACKEND", "")
    if wanted not in ("", "native", "numpy"):
        raise UsageError(f"QUANTKIT_BACKEND={wanted} is not a backend", hint="native or numpy")
    if wanted == "numpy":
        return None
    try:
        native = _c_kernels()
    except ImportError as error:
        if wanted == "native":
            raise UsageError(f"QUANTKIT_BACKEND=native, but there are no C kernels here ({error})") from error
        print("quantkit: no C kernels in this installation; the slower NumPy ones give the same bytes", file=sys.stderr)
        return None
    isa = os.environ.get("QUANTKIT_ISA") or None
    try:
        native.use(isa)
    except ValueError:
        raise UsageError(f"QUANTKIT_ISA={isa} is not to be had here", hint=", ".join(native.isas())) from None
    return native


def _c_kernels() -> ModuleType:
    """The module of C kernels, whatever it is set to; raises ImportError where it was not built."""
    from quantkit import _native

    module: ModuleType = _native
    return module


def backend() -> str:
    """What runs: "numpy", or "native/" and the instruction set, such as "native/avx2"."""
    native = _native()
    return f"native/{native.isa()}" if native else "numpy"


def backends() -> tuple[str, ...]:
    """All that can run on this machine, as backend() names them, slowest first."""
    try:
        return ("numpy", *(f"native/{isa}" for isa in _c_kernels().isas()))
    except ImportError:
        return ("numpy",)


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Within it this backend runs, whatever the environment asks for: `with using("native/avx2"):`.

    backend  one of backends()
    raises   UsageError  it is not to be had here

    It holds for every thread of the process, so none may be encoding or decoding where it begins or ends.
    """
    if backend not in backends():
        raise UsageError(f"the backend {backend} is not to be had here", hint=", ".join(backends()))
    native = None if backend == "numpy" else _c_kernels()
    before = native.isa() if native else None
    if native:
        native.use(backend.removeprefix("native/"))
    _in_use.append(native)
    try:
        yield
    finally:
        _in_use.pop()
        if native:
            native.use(before)


def encode(rows: F32Array, qtype: QType, importance: F32Array | None = None, *, out: U8Array | None = None) -> U8Array:
    """Pack float rows into blocks of qtype.

    rows        float32 (n, k), C order; k a multiple of qtype.block_weights
    importance  float32 (k,), finite and >= 0: how much each column counts in the squared error
    out         uint8 (n, qtype.row_bytes(k)), C order; filled and returned if given
    returns     uint8 (n, qtype.row_bytes(k)); the same bytes on every backend and processor
    raises      ShapeError        k does not divide into blocks, or an array is not as above
                NotFiniteError    NaN or infinity in rows (names the first row and column)
                MagnitudeError    a weight larger than qtype.max_abs (likewise)
                UnsupportedError  qtype is one of qtypes.DECODED_ONLY
    """
    limit = qtype.max_abs
    _check(rows, np.float32, "rows")
    n, k = rows.shape
    shape = (n, qtype.row_bytes(k))
    out = np.empty(shape, np.uint8) if out is None else _check(out, np.uint8, "out", shape)
    if importance is not None:
        _check(importance, np.float32, "importance", (k,))
    native = _native()
    if native:
        unfit = native.encode(qtype.id, rows, n, k, importance, limit, out)
    else:
        unfit = _first_unfit(rows, limit)
        if unfit < 0:
            _encode_in_pieces(rows, qtype, importance, out)
    if unfit >= 0:
        raise _unfit_error(rows, unfit, qtype)
    return out


def encode_feedback(
    rows: F32Array,
    qtype: QType,
    order: U8Array,
    factor: F32Array,
    importance: F32Array,
    *,
    out: U8Array | None = None,
) -> U8Array:
    """Pack float rows into blocks of qtype, each column with an eye to the errors of those before it.

    order       uint8 (k,): the columns of each panel of feedback.PANEL as they are rounded, counted from its first
    factor      float32 (k, k): M of H = M D M^T above the diagonal, H the second moments of what the rows are
                multiplied by, in that order; and D on the diagonal
    importance  of each column, as of encode(); for the scales
    rows, out   as of encode(), and so is what is returned; each row's blocks depend on no other row
    raises      UnsupportedError  qtype is none of feedback.CODINGS
                ShapeError, NotFiniteError, MagnitudeError
                                  as of encode(); the last also where errors make a weight too large
    """
    coding = feedback.CODINGS.get(qtype.name)
    if coding is None:
        raise UnsupportedError(f"{qtype} is not packed with error feedback", hint=", ".join(feedback.CODINGS))
    _check(rows, np.float32, "rows")
    n, k = rows.shape
    shape = (n, qtype.row_bytes(k))
    out = np.empty(shape, np.uint8) if out is None else _check(out, np.uint8, "out", shape)
    _check(order, np.uint8, "order", (k,))
    if not feedback.is_order(order):
        raise ShapeError("order is none of the columns of each panel")
    _check(factor, np.float32, "factor", (k, k))
    _check(importance, np.float32, "importance", (k,))
    native, limit = _native(), qtype.max_abs
    if native:
        unfit = native.encode_feedback(qtype.id, rows, n, k, order, factor, importance, limit, np.empty_like(rows), out)
    else:
        unfit = _first_unfit(rows, limit)
        if unfit < 0:
            with np.errstate(all="ignore"):
                unfit = feedback.encode(rows, coding, qtype.block_weights, order, factor, importance, limit, out)
    if unfit >= 0:
        raise _unfit_error(rows, unfit, qtype)
    return out


def factor_rows(matrix: F32Array, first: int, row: int, n_rows: int, least: float) -> int:
    """A step of H = G G^T, G upper triangular, in place: feedback.factor_rows, whose words hold for matrix as h.

    matrix   float32 (n, n), C order, finite
    first    of the strip's columns, a multiple of feedback.STRIP
    row      the first of n_rows rows: first itself, and then they are the strip's own, or rows above the strip
    least    what every pivot is above
    returns  the column of a pivot that is not, or -1
    raises   ShapeError  matrix is not as above
    """
    _check(matrix, np.float32, "matrix", (len(matrix), len(matrix)))
    native = _native()
    if native:
        return int(native.factor(matrix, len(matrix), first, row, n_rows, least))
    with np.errstate(all="ignore"):
        return feedback.factor_rows(matrix, first, row, n_rows, least)


def decode(blocks: U8Array, qtype: QType, *, out: F32Array | None = None) -> F32Array:
    """Unpack blocks of qtype into float rows.

    blocks   uint8 (n, m), C order; m a multiple of qtype.block_bytes
    out      float32 (n, k), k = m / block_bytes * block_weights, C order; filled and returned if given
    returns  float32 (n, k); the same bits on every backend and processor
    raises   ShapeError  m does not divide into blocks, or an array is not as above
    """
    _check(blocks, np.uint8, "blocks")
    n, m = blocks.shape
    if m % qtype.block_bytes:
        raise ShapeError(
            f"a row of bytes does not divide into {qtype} blocks",
            expected=f"a multiple of {qtype.block_bytes} bytes",
            found=m,
        )
    shape = (n, m // qtype.block_bytes * qtype.block_weights)
    out = np.empty(shape, np.float32) if out is None else _check(out, np.float32, "out", shape)
    native = _native() if qtype.name in NUMPY_TEXTS else None
    if native:
        native.decode(qtype.id, blocks, n, shape[1], out)
    else:
        text = _decoder(qtype)
        source, target = blocks.reshape(-1, qtype.block_bytes), out.reshape(-1, qtype.block_weights)
        with np.errstate(all="ignore"):  # any bytes are decoded, infinite scales too
            for piece in _pieces(len(source), qtype):
                target[piece] = text(source[piece])
    return out


def add_low_rank(rows: F32Array, coefficients: F32Array, basis: F32Array, scale: float) -> None:
    """Add scale * (coefficients x basis) to rows, in place.

    rows          float32 (n, k), C order
    coefficients  float32 (n, rank), C order
    basis         float32 (rank, k), C order
    scale         rounded to float32
    raises        ShapeError  an array is not as above

    Each element's sum begins at 0 and takes its products by rank; every product and sum is rounded to float32, so the
    bits are the same on every backend and processor.
    """
    _check(rows, np.float32, "rows")
    _check(coefficients, np.float32, "coefficients")
    (n, k), rank = rows.shape, coefficients.shape[1]
    _check(coefficients, np.float32, "coefficients", (n, rank))
    _check(basis, np.float32, "basis", (rank, k))
    native = _native()
    if native:
        native.add_low_rank(rows, n, k, coefficients, basis, rank, scale)
    else:
        with np.errstate(all="ignore"):  # what is not finite is found when it is packed
            low_rank.add(rows, coefficients, basis, np.float32(scale))


def row_norms(rows: F32Array) -> F32Array:
    """The Euclidean norm of each row: its squares added in index order in float32, and the root of the sum.

    rows     float32 (n, k), C order; k > 0
    returns  float32 (n,); the same bits on every backend and processor
    raises   ShapeError  rows is not as above
    """
    _check(rows, np.float32, "rows")
    native = _native()
    if not native:
        with np.errstate(all="ignore"):
            return low_rank.norms(rows)
    norms = np.empty(len(rows), np.float32)
    native.row_norms(rows, *rows.shape, norms)
    return norms


def _decoder(qtype: QType) -> Callable[[U8Array], F32Array]:
    """The function of whole blocks, uint8 (n, block_bytes) -> float32 (n, block_weights)."""
    if qtype.name in NUMPY_TEXTS:
        return NUMPY_TEXTS[qtype.name][1]
    return functools.partial(decoded_only.decode, qtype=qtype)


def _encode_in_pieces(rows: F32Array, qtype: QType, importance: F32Array | None, out: U8Array) -> None:
    """Run a NumPy text over a few blocks at a time."""
    text = NUMPY_TEXTS[qtype.name][0]
    source, target = rows.reshape(-1, qtype.block_weights), out.reshape(-1, qtype.block_bytes)
    row_blocks = rows.shape[1] // qtype.block_weights
    with np.errstate(all="ignore"):  # empty runs divide by zero, squares overflow, and the result is not used
        energy = mean_squares(rows) if importance is not None else None
        for piece in _pieces(len(source), qtype):
            known = None
            if importance is not None and energy is not None:
                row, block = np.divmod(np.arange(piece.start, piece.stop), row_blocks)
                known = Importance(importance.reshape(row_blocks, -1)[block], energy[row])
            target[piece] = text(source[piece], known)


def _pieces(n_blocks: int, qtype: QType) -> Iterator[slice]:
    step = max(1, WEIGHTS_AT_ONCE // qtype.block_weights)
    for start in range(0, n_blocks, step):
        yield slice(start, min(start + step, n_blocks))


def _check(array, dtype, name: str, shape: tuple[int, ...] | None = None):  # type: ignore[no-untyped-def]
    """array, if it is a C-ordered matrix of dtype (and of shape, if given)."""
    expected = f"{np.dtype(dtype).name} {shape or '(n, k)'} in C order"
    sound = array.dtype == dtype and array.ndim == (len(shape) if shape else 2) and array.flags.c_contiguous
    if not sound or (shape is not None and array.shape != shape):
        order = "" if array.flags.c_contiguous else " not in C order"
        raise ShapeError(f"{name} has the wrong form", expected=expected, found=f"{array.dtype} {array.shape}{order}")
    return array


def _first_unfit(rows: F32Array, limit: float) -> int:
    """The flat index of the first value that is not within +-limit, or -1."""
    unfit = ~(np.abs(rows.reshape(-1)) <= np.float32(limit))
    at = int(unfit.argmax()) if unfit.size else 0
    return at if unfit.size and unfit[at] else -1


def _unfit_error(rows: F32Array, flat: int, qtype: QType) -> NotFiniteError | MagnitudeError:
    row, column = divmod(flat, rows.shape[1])
    value = float(rows[row, column])
    if not np.isfinite(value):
        return NotFiniteError("a weight is not a finite number", row=row, column=column, found=value)
    if abs(value) <= qtype.max_abs:
        return MagnitudeError(f"the errors before it make a weight too large for {qtype}", row=row, column=column)
    return MagnitudeError(
        f"a weight is too large for {qtype}", row=row, column=column, expected=f"at most {qtype.max_abs:g}", found=value
    )
