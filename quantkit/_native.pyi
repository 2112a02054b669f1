"""The C kernels; csrc/module.c. quantkit.kernels is the interface to use."""

from typing_extensions import Buffer

def encode(
    type: int, rows: Buffer, n_rows: int, n_columns: int, importance: Buffer | None, limit: float, blocks: Buffer, /
) -> int: ...
def decode(type: int, blocks: Buffer, n_rows: int, n_columns: int, rows: Buffer, /) -> None: ...
def use(name: str | None, /) -> None: ...
def isa() -> str: ...
def isas() -> tuple[str, ...]: ...
def encode_feedback(
    type: int,
    rows: Buffer,
    n_rows: int,
    n_columns: int,
    order: Buffer,
    factor: Buffer,
    importance: Buffer,
    limit: float,
    errors: Buffer,
    blocks: Buffer,
    /,
) -> int: ...
def factor(matrix: Buffer, n: int, first: int, row: int, n_rows: int, least: float, /) -> int: ...
