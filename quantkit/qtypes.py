"""The tensor types of GGUF: those that quantkit writes, and those that it only reads.

One table each, the only place where their sizes and ids stand.  These are ggml's (`ggml_type` and its type traits;
https://github.com/ggml-org/ggml, ggml.h).
"""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.errors import ShapeError, UnsupportedError

F16_MAX = 65504.0


@dataclass(frozen=True)
class QType:
    """One tensor type.

    name           as users type it: "Q4_K"
    id             ggml's number for it, in a GGUF tensor table
    block_weights  weights in one block; rows are a whole number of blocks
    block_bytes    bytes of one block
    limit          of a type that is written: its max_abs
    """

    name: str
    id: int
    block_weights: int
    block_bytes: int
    limit: float | None = None

    @property
    def max_abs(self) -> float:
        """Largest magnitude that a block is sure to hold, at least without importance; a larger one is refused.

        raises  UnsupportedError  the type is only read
        """
        if self.limit is None:
            raise _only_read(self)
        return self.limit

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_weights

    def divides(self, n_columns: int) -> bool:
        """Whether rows of n_columns weights can be packed into this type."""
        return n_columns % self.block_weights == 0

    def row_bytes(self, n_columns: int) -> int:
        """Bytes of one packed row of n_columns weights; raises ShapeError where it is not a whole number of blocks."""
        if not self.divides(n_columns):
            raise ShapeError(
                f"a row does not divide into {self.name} blocks",
                expected=f"a multiple of {self.block_weights} columns",
                found=n_columns,
            )
        return n_columns // self.block_weights * self.block_bytes

    def __str__(self) -> str:
        return self.name


# max_abs.  F32: every finite value.  F16, BF16: the last float32 that rounds to a finite value.  Block types: F16's
# maximum times the largest multiplier that both signs have on the format's F16 scale (a code, or a scale times a code;
# of types with a minimum, its multiplier), halved where a search may choose a scale beyond the plain one.
F32 = QType("F32", 0, 1, 4, float.fromhex("0x1.fffffep127"))
F16 = QType("F16", 1, 1, 2, float.fromhex("0x1.ffdffep15"))
BF16 = QType("BF16", 30, 1, 2, float.fromhex("0x1.fefffep127"))
Q4_0 = QType("Q4_0", 2, 32, 18, 7 * F16_MAX / 2)
Q4_1 = QType("Q4_1", 3, 32, 20, F16_MAX / 2)
Q5_0 = QType("Q5_0", 6, 32, 22, 15 * F16_MAX / 2)
Q5_1 = QType("Q5_1", 7, 32, 24, F16_MAX / 2)
Q8_0 = QType("Q8_0", 8, 32, 34, 127 * F16_MAX)
Q2_K = QType("Q2_K", 10, 256, 84, 15 * F16_MAX / 2)
Q3_K = QType("Q3_K", 11, 256, 110, 31 * 3 * F16_MAX / 2)
Q4_K = QType("Q4_K", 12, 256, 144, 63 * F16_MAX / 2)
Q5_K = QType("Q5_K", 13, 256, 176, 63 * F16_MAX / 2)
Q6_K = QType("Q6_K", 14, 256, 210, 128 * 32 * F16_MAX / 2)

ALL = (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)

# What others have quantized to, for reading (kernels/decoded_only.py).
DECODED_ONLY = (
    QType("IQ2_XXS", 16, 256, 66),
    QType("IQ2_XS", 17, 256, 74),
    QType("IQ3_XXS", 18, 256, 98),
    QType("IQ1_S", 19, 256, 50),
    QType("IQ4_NL", 20, 32, 18),
    QType("IQ3_S", 21, 256, 110),
    QType("IQ2_S", 22, 256, 82),
    QType("IQ4_XS", 23, 256, 136),
    QType("IQ1_M", 29, 256, 56),
    QType("TQ1_0", 34, 256, 54),
    QType("TQ2_0", 35, 256, 66),
    QType("MXFP4", 39, 32, 17),
    QType("NVFP4", 40, 64, 36),
)

_BY_NAME = {t.name: t for t in ALL + DECODED_ONLY}
_BY_ID = {t.id: t for t in ALL + DECODED_ONLY}


def by_name(name: str) -> QType:
    """The type called name, in any letter case, to write; raises UnsupportedError, also for one that is only read."""
    qtype = _BY_NAME.get(name.upper())
    if qtype is None:
        raise UnsupportedError(f"unknown tensor type {name!r}", hint=_written())
    if qtype.limit is None:
        raise _only_read(qtype)
    return qtype


def by_id(type_id: int) -> QType:
    """The type with ggml's number type_id, to read; raises UnsupportedError."""
    try:
        return _BY_ID[type_id]
    except KeyError:
        known = ", ".join(f"{t.id} {t.name}" for t in ALL + DECODED_ONLY)
        raise UnsupportedError(f"tensor type {type_id} is not supported", hint=f"types: {known}") from None


def _only_read(qtype: QType) -> UnsupportedError:
    return UnsupportedError(f"tensor type {qtype} is only read, not written", hint=_written())


def _written() -> str:
    return f"types: {', '.join(t.name for t in ALL)}"
