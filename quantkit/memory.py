"""What llama.cpp takes in memory to run a file, known before there is one: weights, KV cache, compute buffer.

On a card, as llama.cpp b11434 (llama-model.cpp, load_tensors) places things: with -ngl N the head and the last N - 1
blocks, each block's cache beside it; token_embd.weight never, only its copy where the embedding is the head too.

The compute buffer is what ggml-alloc.c makes of the graph of models/phi3.cpp with flash attention.  It is as large as
the fullest moment needs, and in these networks that is one of few: the gate, the up and their product in a block; the
logits at the end; or a weight matrix that has its home in the host's memory and is copied to the card for a large
batch.  Beside it stay the mask of attention and five times the states of a micro-batch.  (On a card llama.cpp leaves
one of the five in the host's memory; it is counted all the same.)  Logits that are no larger than the mask take its
place, as it is done with by then.  Not counted: positions and other ids, 40 bytes a token.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.arch import EMBEDDING, Network
from quantkit.errors import UsageError
from quantkit.gguf_io import TensorEntry
from quantkit.qtypes import F16, Q4_0, Q8_0
from quantkit.recipe import layer_of

KV_TYPES = {"f16": F16, "q8_0": Q8_0, "q4_0": Q4_0}
CONTEXT_STEP = 256  # llama.cpp rounds a sequence's context up to a multiple (llama-context.cpp, GGML_PAD)
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
_STATES = 5


@dataclass(frozen=True)
class Run:
    """How llama.cpp is run.

    context         tokens of each sequence; its -c is context x parallel
    kv_type         name in KV_TYPES, of keys and of values
    parallel        sequences at once, each with a cache of its own: -np N, without --kv-unified
    ubatch          tokens that are computed at once, the micro-batch
    gpu_layers      as -ngl counts them, the head first, then blocks from the last; more than there are means all of
                    them, as does None; 0 is a run without a card
    overhead_bytes  what driver and backend take on the card for themselves: no formula, an assumption
    """

    context: int
    kv_type: str = "f16"
    parallel: int = 1
    ubatch: int = 512
    gpu_layers: int | None = None
    overhead_bytes: int = 512 << 20

    def __post_init__(self) -> None:
        """Raises UsageError for what llama.cpp cannot be told, or would not understand so."""
        ranges = {
            "context": (1, (1 << 31) - 1),
            "parallel": (1, MAX_SEQUENCES),
            "ubatch": (1, (1 << 31) - 1),
            "gpu_layers": (0, (1 << 31) - 1),
            "overhead_bytes": (0, (1 << 63) - 1),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"an impossible {name}", expected=f"{least} to {most}", found=value)
        if self.kv_type not in KV_TYPES:
            raise UsageError("an unknown type of cache", expected=", ".join(KV_TYPES), found=self.kv_type)

    @property
    def cells(self) -> int:
        """Tokens that a sequence's cache has room for."""
        return -(-self.context // CONTEXT_STEP) * CONTEXT_STEP

    @property
    def tokens(self) -> int:
        """Tokens in the largest micro-batch: as many of every sequence (llama-context.cpp, graph_reserve)."""
        largest = min(self.ubatch, self.context * self.parallel)
        return -(-largest // self.parallel) * self.parallel

    def offloaded(self, n_layers: int) -> int:
        """What gpu_layers means for a network of n_layers blocks: 0 to n_layers + 1."""
        return n_layers + 1 if self.gpu_layers is None else min(self.gpu_layers, n_layers + 1)


@dataclass(frozen=True)
class Term:
    """One part of what is needed: its bytes, and the formula that they come from, in numbers."""

    name: str
    nbytes: int
    formula: str

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.nbytes, "formula": self.formula}


@dataclass(frozen=True)
class MemoryUse:
    """What one run of one file needs, on the card and in the host's memory."""

    card: tuple[Term, ...]
    host: tuple[Term, ...]

    @property
    def card_bytes(self) -> int:
        return sum(term.nbytes for term in self.card)

    @property
    def host_bytes(self) -> int:
        return sum(term.nbytes for term in self.host)


def memory_use(network: Network, tensors: Sequence[TensorEntry], run: Run) -> MemoryUse:
    """What llama.cpp needs to run a file with these tensors.

    network, tensors  of the file
    run               how it is run
    raises            UsageError  a head is no whole number of blocks of run.kv_type
    """
    if not KV_TYPES[run.kv_type].divides(network.head_width):
        raise UsageError(
            f"a cache of type {run.kv_type} is impossible for this network, and llama.cpp refuses it",
            hint="--kv-type f16",
            expected=f"heads of a multiple of {KV_TYPES[run.kv_type].block_weights} values",
            found=network.head_width,
        )
    offloaded = run.offloaded(network.layers)
    output = Term("output", 4 * run.parallel * network.vocabulary, f"4 x {_n(run.parallel, network.vocabulary)}")
    if not offloaded:
        weights = _weights(tensors, "all tensors")
        return MemoryUse((), (weights, _cache(network, run, network.layers), _compute(network, run, ()), output))
    first = network.layers + 1 - offloaded
    there = [tensor for tensor in tensors if is_on_card(tensor.name, network, run)]
    on_host = [tensor for tensor in tensors if layer_of(tensor.name) in range(first)]
    embedding = [tensor for tensor in tensors if tensor.name == EMBEDDING]
    of_blocks = f"{first} of {network.layers} blocks"
    return MemoryUse(
        card=(
            _weights(there, f"the head and {network.layers - first} of {network.layers} blocks"),
            _cache(network, run, network.layers - first),
            _compute(network, run, on_host),
            Term("overhead", run.overhead_bytes, "assumed: what driver and backend take for themselves"),
        ),
        host=(
            _weights(embedding + on_host, f"{EMBEDDING} and {of_blocks}" if first else EMBEDDING),
            _cache(network, run, first),
            _sum("inputs", [_states(network, run, _STATES - 1), _mask(run)]),
            output,
        ),
    )


def is_on_card(tensor: str, network: Network, run: Run) -> bool:
    """Whether the tensor of that GGUF name, or a copy of it, is on the card: the head and the last blocks are."""
    offloaded, layer = run.offloaded(network.layers), layer_of(tensor)
    if layer >= 0:
        return layer > network.layers - offloaded
    return offloaded > 0 and (network.tied or tensor != EMBEDDING)


def longest_context(network: Network, tensors: Sequence[TensorEntry], run: Run, card_bytes: int) -> int:
    """The longest context, up to run.context, with which all that belongs on the card fits into card_bytes; 0 for none.

    Shorter ones than run.context are multiples of CONTEXT_STEP.
    raises  UsageError, as memory_use does
    """

    def needed(context: int) -> int:
        return memory_use(network, tensors, replace(run, context=context)).card_bytes

    if needed(run.context) <= card_bytes:
        return run.context
    shorter = range(CONTEXT_STEP, run.context, CONTEXT_STEP)
    fitting = bisect_right(shorter, card_bytes, key=needed)
    return shorter[fitting - 1] if fitting else 0


def _weights(tensors: Iterable[TensorEntry], what: str) -> Term:
    return Term("weights", sum(tensor.nbytes for tensor in tensors), what)


def _cache(network: Network, run: Run, n_layers: int) -> Term:
    qtype = KV_TYPES[run.kv_type]
    nbytes = n_layers * 2 * qtype.row_bytes(network.key_rows) * run.cells * run.parallel
    block = f"{qtype.block_bytes}/{qtype.block_weights} bytes" if qtype.block_weights > 1 else "2 bytes"
    sequences = f" x {run.parallel} sequences" if run.parallel > 1 else ""
    formula = f"{n_layers} blocks x 2 x {network.kv_heads} heads x {network.head_width} values x {block}"
    return Term("KV cache", nbytes, f"{formula} x {_n(run.cells)} tokens{sequences}")


def _compute(network: Network, run: Run, streamed: Iterable[TensorEntry]) -> Term:
    """The compute buffer.

    streamed  matrices and norms in the host's memory whose products the card computes
    """
    mask = _mask(run)
    outputs = min(run.ubatch, run.context * run.parallel)
    logits = Term("logits", 4 * outputs * network.vocabulary, f"4 x {_n(outputs, network.vocabulary)}")
    moments = [
        Term(
            "gate, up, product",
            4 * run.tokens * 3 * network.feed_forward,
            f"4 x {_n(run.tokens, 3, network.feed_forward)}",
        ),
        *([logits] if logits.nbytes > mask.nbytes else []),
        *(
            Term("a copied weight and its product", matrix.nbytes + 4 * run.tokens * matrix.shape[0], matrix.name)
            for matrix in streamed
            if len(matrix.shape) == 2
        ),
    ]
    return _sum("compute", [max(moments, key=lambda term: term.nbytes), _states(network, run, _STATES), mask])


def _states(network: Network, run: Run, count: int) -> Term:
    return Term("states", 4 * run.tokens * network.hidden * count, f"4 x {_n(run.tokens, network.hidden, count)}")


def _mask(run: Run) -> Term:
    return Term("mask", 2 * run.tokens * run.cells, f"2 x {_n(run.tokens, run.cells)}")


def _sum(name: str, terms: Sequence[Term]) -> Term:
    formula = " + ".join(f"{term.name} {term.formula}" for term in terms)
    return Term(name, sum(term.nbytes for term in terms), formula)


def _n(*factors: int) -> str:
    return " x ".join(f"{factor:,}" for factor in factors)
