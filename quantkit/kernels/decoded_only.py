"""Types that quantkit reads and does not write: gguf's NumPy decoders, whose values are ggml's to the bit."""

from __future__ import annotations

from quantkit.kernels.lanes import F32Array, U8Array
from quantkit.qtypes import QType


def decode(blocks: U8Array, qtype: QType) -> F32Array:
    """uint8 (n, block_bytes) of one of qtypes.DECODED_ONLY -> float32 (n, block_weights)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    one_row = blocks.reshape(1, -1)  # gguf takes 16 rows at once: of a block each, that would be next to nothing
    weights: F32Array = dequantize(one_row, GGMLQuantizationType(qtype.id))
    return weights.reshape(len(blocks), qtype.block_weights)
