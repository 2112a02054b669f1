"""What is asked of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Lora
from quantkit.errors import UsageError
from quantkit.evaluate import Arithmetic, Text
from quantkit.strategy import REFERENCE, Strategy
from quantkit.sweep.mix import Optimized

USUAL_CONTEXT = 16384


@dataclass(frozen=True)
class Shard:
    """One of several runs that share the work.

    number  1 to count: it measures every count-th candidate, from this one on
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        """Raises UsageError."""
        if not 1 <= self.number <= self.count:
            raise UsageError("no such shard", expected="I/N with I from 1 to N", found=f"{self.number}/{self.count}")


@dataclass(frozen=True)
class Request:
    """What is asked of a sweep.

    source      checkpoint folder, or GGUF file in F32, F16 or BF16
    out         folder for the measurements, the report and the file that is chosen
    vram_bytes  of the card
    context     tokens of each sequence; None for the model's, at most USUAL_CONTEXT
    memory      the other arguments of memory.Run
    types       presets; none for all of the family that fit, and the smallest of those that do not
    recipe      family of the presets, or a TOML file beside those of the llama.cpp family
    imatrix     importance matrix, for all candidates
    text        None for the shipped eval text, on which no importance matrix of ours was collected
    window      tokens of a window
    windows     at most; None for all of the text
    how         the arithmetic of the measurement
    any_size    candidates that the card decides on may all be too large for it: a mix is yet to be found
    optimized   mixes that Optimizer found, candidates like the others
    lora        adapters to merge into the source
    strategy    how the codes of all candidates' matrices are found
    """

    source: Path
    out: Path
    vram_bytes: int
    context: int | None = None
    memory: Mapping[str, Any] = field(default_factory=dict)
    types: Sequence[str] = ()
    recipe: str = "llama.cpp"
    imatrix: Path | None = None
    text: Text | None = None
    window: int = 512
    windows: int | None = None
    how: Arithmetic = field(default_factory=Arithmetic)
    any_size: bool = False
    optimized: Optimized | None = None
    lora: Sequence[Lora] = ()
    strategy: Strategy = REFERENCE

    def is_mix(self, name: str) -> bool:
        """Whether a candidate is one of the mixes."""
        return self.optimized is not None and name in [mix.recipe.name for mix in self.optimized.mixes]
