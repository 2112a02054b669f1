"""Which of the measured files to take: the best that fits, and what else there is to know before taking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.units import size


@dataclass(frozen=True)
class Option:
    """One candidate in one run.

    card_bytes  that the run needs on the card
    ppl         perplexity
    kld         mean KL divergence from the base, nats
    """

    name: str
    card_bytes: int
    ppl: float
    kld: float


@dataclass(frozen=True)
class Pick:
    """What was chosen.

    best       the lowest KLD of all that fit; of equals the smallest
    runner_up  the best of the others that fit
    step       the smallest of those that do not fit and are better than the best
    larger     the smallest of those that do not fit
    """

    best: Option
    runner_up: Option | None
    step: Option | None
    larger: Option | None
    vram_bytes: int

    def sentence(self, context: int) -> str:
        """All of it in one sentence; context is the run's, in tokens."""
        best, parts = self.best, []
        parts.append(
            f"{best.name} is the best that fits: {size(best.card_bytes)} of {size(self.vram_bytes)} with {context:,} "
            f"tokens of context, mean KLD {best.kld:.5f} nats, PPL {best.ppl:.4f}"
        )
        if self.runner_up:
            other = self.runner_up
            parts.append(f"the runner-up {other.name} takes {size(other.card_bytes)} and has KLD {other.kld:.5f}")
        if self.step:
            more = size(self.step.card_bytes - self.vram_bytes)
            parts.append(f"with {more} more memory {self.step.name} would fit, KLD {self.step.kld:.5f}")
        elif self.larger:
            more = size(self.larger.card_bytes - self.vram_bytes)
            parts.append(f"{more} more memory, for {self.larger.name}, would buy nothing: KLD {self.larger.kld:.5f}")
        return "; ".join(parts) + "."


def pick(options: Sequence[Option], vram_bytes: int) -> Pick | None:
    """The choice among options for a card of vram_bytes, or None where nothing fits."""

    def quality(option: Option) -> tuple[float, int, str]:
        return option.kld, option.card_bytes, option.name

    def smallness(option: Option) -> tuple[int, float, str]:
        return option.card_bytes, option.kld, option.name

    fitting = sorted((option for option in options if option.card_bytes <= vram_bytes), key=quality)
    if not fitting:
        return None
    too_large = sorted((option for option in options if option.card_bytes > vram_bytes), key=smallness)
    better = [option for option in too_large if option.kld < fitting[0].kld]
    return Pick(
        fitting[0],
        fitting[1] if len(fitting) > 1 else None,
        better[0] if better else None,
        too_large[0] if too_large else None,
        vram_bytes,
    )
