"""Types that are only read: decoded as ggml's C decodes them, and refused by the encoder."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from contract import Candidate, needs_oracle

from quantkit import kernels
from quantkit.errors import ShapeError, UnsupportedError
from quantkit.qtypes import DECODED_ONLY, QType

# More blocks than quantkit.kernels gives gguf at once, in rows that do not end where it takes the next.
N_ROWS, ROW_BLOCKS = 300, 9

every_type = pytest.mark.parametrize("qtype", DECODED_ONLY, ids=str)


def some_blocks(qtype: QType) -> np.ndarray:
    """Random bytes, uint8 (N_ROWS, ROW_BLOCKS * block_bytes): any are a valid block, infinite scales among them."""
    rng = np.random.default_rng(qtype.id)
    return rng.integers(0, 256, (N_ROWS, ROW_BLOCKS * qtype.block_bytes), np.uint8)


@needs_oracle
@every_type
def test_decoded_as_ggml_decodes(candidate: Candidate, qtype: QType, monkeypatch: pytest.MonkeyPatch) -> None:
    import libgguf

    monkeypatch.setattr(kernels, "WEIGHTS_AT_ONCE", 1 << 16)
    blocks = some_blocks(qtype)
    assert blocks.size // qtype.block_bytes > kernels.WEIGHTS_AT_ONCE // qtype.block_weights
    found, expected = candidate.decode(blocks, qtype), libgguf.dequantize_rows(blocks, qtype.id)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (N_ROWS, ROW_BLOCKS * qtype.block_weights)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    numbers = ~np.isnan(expected)
    assert len(np.unique(expected[numbers])) > 10
    assert np.array_equal(found.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])


@every_type
def test_rows_and_blocks_do_not_mix(qtype: QType) -> None:
    """A block decodes to the same wherever it stands, and into the array that is given."""
    blocks = some_blocks(qtype)[:4]
    out = np.full((4, ROW_BLOCKS * qtype.block_weights), np.nan, np.float32)
    assert kernels.decode(blocks, qtype, out=out) is out
    alone = [kernels.decode(block[None], qtype)[0] for block in blocks.reshape(-1, qtype.block_bytes)]
    assert np.array_equal(out.reshape(len(alone), -1), alone, equal_nan=True)


@every_type
def test_not_encoded(candidate: Candidate, qtype: QType) -> None:
    rows = np.zeros((1, qtype.block_weights), np.float32)
    with pytest.raises(UnsupportedError, match=f"{qtype} is only read"):
        candidate.encode(rows, qtype)


def test_a_part_of_a_block_is_refused() -> None:
    qtype = DECODED_ONLY[0]
    with pytest.raises(ShapeError, match=f"{qtype} blocks"):
        kernels.decode(np.zeros((1, qtype.block_bytes + 1), np.uint8), qtype)


def test_gguf_is_loaded_by_the_first_block() -> None:
    """The kernels of what quantkit writes do without it."""
    code = "import sys; from quantkit import kernels; assert 'gguf' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
