"""From what the head is given to how well the next token was predicted, and how far a model is from another.

The head is applied to a slab of tokens at a time, so that the logits of a whole vocabulary never stand side by side.
Over the slabs run, for every position: the largest logit m, the sum of exp(l - m), and against a base model b the sum
of exp(l_b - m_b) * (l_b - l), from which

    KL(b || q) = sum_v p_b(v) * (log p_b(v) - log p_q(v)) = sum_v p_b(v) * (l_b(v) - l_q(v)) - log Z_b + log Z_q.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantkit.errors import NotFiniteError
from quantkit.evaluate.network import Arithmetic, Weights, head_rows

F64Array = npt.NDArray[np.float64]

SLAB_TOKENS = 4096  # of the vocabulary
TILE_POSITIONS = 512  # with the slab, logits that stay in a cache: 8 MiB


@dataclass(frozen=True)
class Scores:
    """One model at n positions.

    nll    float64 (n,): -log p(next token), nats
    kld    float64 (n,): KL divergence from the base's prediction, nats; None of the base itself
    agree  bool (n,): the likeliest token is the base's; likewise
    """

    nll: F64Array
    kld: F64Array | None = None
    agree: npt.NDArray[np.bool_] | None = None


def score(
    models: Sequence[Weights],
    states: Sequence[Tensor],
    targets: npt.NDArray[np.int64],
    how: Arithmetic,
    *,
    has_base: bool,
    progress: Callable[[], None] = lambda: None,
) -> list[Scores]:
    """The scores of each model.

    models    of one vocabulary; the first is the base if has_base; one may stand for several that share its head
    states    of each model: float32 (n, hidden), from network.run
    targets   int64 (n,): the next token at each position
    progress  called after each slab of the vocabulary
    raises    NotFiniteError  logits that are no numbers
    """
    n_tokens = models[0].network.vocabulary
    wanted = torch.from_numpy(targets).to(how.device)
    sums = [_LogitSums(len(targets), how.device) for _ in models]
    for start in range(0, n_tokens, SLAB_TOKENS):
        stop = min(start + SLAB_TOKENS, n_tokens)
        rows = {model: head_rows(model, how, start, stop) for model in dict.fromkeys(models)}
        heads = [rows[model] for model in models]
        for first in range(0, len(targets), TILE_POSITIONS):
            tile = slice(first, first + TILE_POSITIONS)
            base = None
            for head, state, its_sums in zip(heads, states, sums, strict=True):
                slab = its_sums.add(tile, head(state[tile]), start, wanted[tile])
                if has_base and base is not None:
                    its_sums.add_across(tile, slab, base)
                base = base or slab
        progress()
    for model, its_sums in zip(models, sums, strict=True):
        if not its_sums.finite():
            raise NotFiniteError("the logits are not finite numbers", file=model.path, tensor=model.head)
    base_sums = sums[0] if has_base else None
    return [its_sums.scores(None if its_sums is base_sums else base_sums) for its_sums in sums]


@dataclass(frozen=True)
class _Slab:
    """The logits of some positions for some tokens, and what the sums made of them.

    logits     float32 (positions, tokens)
    exponents  exp(logits - the largest so far)
    rescale    (positions,): what sums with the largest before are to be multiplied by
    """

    logits: Tensor
    exponents: Tensor
    rescale: Tensor


class _LogitSums:
    """The sums of one model over the slabs so far, each (n,)."""

    def __init__(self, n: int, device: str) -> None:
        self._largest = torch.full((n,), -torch.inf, device=device)
        self._likeliest = torch.zeros(n, dtype=torch.int64, device=device)
        self._wanted = torch.zeros(n, device=device)
        self._sum = torch.zeros(n, dtype=torch.float64, device=device)
        self._across = torch.zeros(n, dtype=torch.float64, device=device)

    def add(self, tile: slice, logits: Tensor, start: int, wanted: Tensor) -> _Slab:
        """Take in the logits of the positions in tile for the tokens from start on."""
        before = self._largest[tile]
        largest, at = logits.max(dim=-1)
        self._likeliest[tile] = torch.where(largest > before, at + start, self._likeliest[tile])
        largest = torch.maximum(largest, before)
        rescale = (before - largest).double().exp()
        exponents = (logits - largest[:, None]).exp_()
        self._sum[tile] = self._sum[tile] * rescale + exponents.sum(dim=-1, dtype=torch.float64)
        self._largest[tile] = largest
        here = (start <= wanted) & (wanted < start + logits.shape[1])
        own = logits.gather(-1, (wanted - start).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self._wanted[tile] = torch.where(here, own, self._wanted[tile])
        return _Slab(logits, exponents, rescale)

    def add_across(self, tile: slice, own: _Slab, base: _Slab) -> None:
        """Take in the differences from the base model's logits of the same slab."""
        terms = (base.logits - own.logits).mul_(base.exponents).sum(dim=-1, dtype=torch.float64)
        self._across[tile] = self._across[tile] * base.rescale + terms

    def finite(self) -> bool:
        """Whether all logits were: one that was not spoils a sum."""
        return bool(torch.isfinite(self.log_sum() - self._wanted + self._across).all())

    def log_sum(self) -> Tensor:
        """log Z."""
        return self._largest.double() + self._sum.log()

    def scores(self, base: _LogitSums | None) -> Scores:
        nll = (self.log_sum() - self._wanted.double()).cpu().numpy()
        if base is None:
            return Scores(nll)
        kld = self._across / base._sum - base.log_sum() + self.log_sum()
        return Scores(nll, kld.cpu().numpy(), (self._likeliest == base._likeliest).cpu().numpy())
