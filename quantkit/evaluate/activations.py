"""What a matrix is multiplied by: exact, or rounded as llama.cpp's CPU backend rounds it before it multiplies.

There the type of the weights decides (`vec_dot_type` in ggml-cpu.c): types with blocks of 256 meet blocks of 256 codes
with a float32 scale, the others blocks of 32 with a float16 scale, F16 and BF16 their own kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from quantkit.qtypes import QType

Activations = Literal["f32", "q8"]


def rounding(activations: Activations, qtype: QType) -> Callable[[Tensor], Tensor]:
    """What is done to the input (..., k) of a matrix of that type."""
    if activations == "f32":
        return _exact
    if qtype.name in _ROUNDINGS:
        return _ROUNDINGS[qtype.name]
    return _to_q8_k if qtype.block_weights == 256 else _to_q8_0


def _exact(x: Tensor) -> Tensor:
    return x


def _to_q8_k(x: Tensor) -> Tensor:
    """Blocks of 256: the value of largest magnitude becomes -127 times a float32 scale (quantize_row_q8_K)."""
    blocks = x.unflatten(-1, (-1, 256))
    peak = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.div(torch.tensor(-127.0), peak)  # a number / tensor is number * (1 / tensor) in torch
    codes = (inverse * blocks).round().clamp_(max=127)
    return torch.where(peak == 0, 0.0, codes * inverse.reciprocal()).flatten(-2)


def _to_q8_0(x: Tensor) -> Tensor:
    """Blocks of 32: the largest magnitude becomes 127 times a float16 scale (quantize_row_q8_0; q8_1 has the same)."""
    blocks = x.unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest == 0, 0.0, torch.div(torch.tensor(127.0), largest))
    values: Tensor = (inverse * blocks).round() * (largest / 127).half().float()
    return values.flatten(-2)


_ROUNDINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "F32": _exact,
    "F16": lambda x: x.half().float(),
    "BF16": lambda x: x.bfloat16().float(),
}
