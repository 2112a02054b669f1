"""How much memory a sweep takes, known before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from quantkit.arch import EMBEDDING
from quantkit.evaluate import Model
from quantkit.evaluate.network import BATCH_BYTES, HALVES
from quantkit.evaluate.score import SLAB_TOKENS, TILE_POSITIONS
from quantkit.qtypes import QType
from quantkit.strategy import REFERENCE, Strategy

PROCESS_BYTES = 640 << 20  # the interpreter with torch, a vocabulary of 200,000 tokens


def memory_bytes(
    model: Model, types: Sequence[Mapping[str, QType]], group: tuple[int, int], strategy: Strategy = REFERENCE
) -> int:
    """About how much memory it takes at most to measure a model and candidates of it side by side.

        process + hidden states of all models + the largest of
            a layer's half:  base rows f32 + packed rows of each type + one model's rows f32, a second time in the
                             layout they are multiplied in + what is computed at once + the factors and corrections of
                             error feedback
            a slab of head:  the same, but the rows of all models
            the embeddings:  base rows f32 + packed rows of each type + one model's rows f32, of the tokens there are

    types     of the tensors of each candidate, by GGUF name
    strategy  how they are packed
    group     windows of the largest group, and positions of a window
    """
    network, n_models = model.network, len(types) + 1
    n_tokens = group[0] * group[1]
    state = 4 * n_tokens * network.hidden
    of_token = 4 * max(network.gate_up_rows, network.qkv_rows)
    computed = 4 * min(of_token * n_tokens, max(BATCH_BYTES, of_token * group[1])) + 3 * state

    def kept(names: Sequence[str], most: int | None = None) -> tuple[int, int]:
        """Bytes of the rows f32, and of those packed into each type."""
        plain = packed = 0
        for name in names:
            *rows, n_columns = model.tensors[name]
            n_rows = min(math.prod(rows), most or math.prod(rows))
            plain += 4 * n_rows * n_columns
            packed += sum(n_rows * qtype.row_bytes(n_columns) for qtype in {one[name] for one in types})
        return plain, packed

    halves = [
        [f"blk.{i}.{name}.weight" for name in (half.first, half.last)]
        for i in range(network.layers)
        for half in HALVES.values()
    ]
    factors = max(
        sum(
            4 * n_columns**2 + 2 * n_rows * n_columns
            for name in half
            for n_rows, n_columns in [model.tensors[name]]
            if strategy.is_large(name, {one[name] for one in types})
        )
        for half in halves
    )
    of_half = max(3 * plain + packed for plain, packed in map(kept, halves)) + factors
    plain, packed = kept([model.head], SLAB_TOKENS)
    of_head = (2 + n_models) * plain + packed + n_models * 3 * 4 * TILE_POSITIONS * SLAB_TOKENS
    plain, packed = kept([EMBEDDING], n_tokens)
    return PROCESS_BYTES + n_models * state + max(of_half + computed, of_head, 2 * plain + packed)
