"""Second moments of the small checkpoint, made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small
from numpy.typing import NDArray

from quantkit.moments import Collected, Packed, Run, pack, write_layer

COLUMNS = {
    "attn_qkv": small.HIDDEN,
    "attn_output": small.HIDDEN,
    "ffn_up": small.HIDDEN,
    "ffn_down": small.FEED_FORWARD,
}
TEXT, RUN = "ab" * 32, "cd" * 32
TOKENS = 700
KEPT = 0.7


def sums(k: int, seed: int = 0, count: int = TOKENS) -> NDArray[np.float32]:
    """What imatrix --covariance adds up: columns that move together, and one that is never anything but 0."""
    rng = np.random.default_rng([k, seed])
    x = rng.standard_normal((count, k // 2)) @ rng.standard_normal((k // 2, k)) * np.exp(rng.standard_normal(k))
    x[:, 5] = 0
    product = (x.T @ x).astype(np.float32)
    return np.tril(product) + np.tril(product, -1).T


def write(folder: Path, seed: int = 0, packed: Packed | None = None) -> None:
    """The files of all layers."""
    for i in range(small.LAYERS):
        write_one(folder, i, seed=seed, packed=packed)


def write_one(
    folder: Path, i: int, text: str = TEXT, seed: int = 0, packed: Packed | None = None, run: str = RUN
) -> None:
    """The file of a layer."""
    matrices = {f"blk.{i}.{name}.weight": Collected(pack(sums(k, i + seed)), KEPT) for name, k in COLUMNS.items()}
    write_layer(folder, f"blk.{i}", matrices, Run(TOKENS, text, run, packed))
