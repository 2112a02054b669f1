"""The figures against their definitions."""

from __future__ import annotations

import math

import numpy as np

from quantkit.evaluate.score import Scores
from quantkit.evaluate.statistics import summary

RNG = np.random.default_rng(3)
BASE = Scores(RNG.exponential(2, 900))
KLD = RNG.exponential(0.1, 900)
QUANT = Scores(BASE.nll + 0.1 * RNG.standard_normal(900) + 0.05, KLD, RNG.random(900) < 0.9)


def test_perplexity() -> None:
    figures = summary(BASE, None)
    nll = BASE.nll
    error = math.sqrt((np.mean(nll**2) - np.mean(nll) ** 2) / (len(nll) - 1))  # perplexity.cpp:641 of llama.cpp
    assert figures.keys() == {"ppl", "ppl_stderr"}
    assert math.isclose(figures["ppl"], math.exp(np.mean(nll)))
    assert math.isclose(figures["ppl_stderr"], figures["ppl"] * error)


def test_against_a_base() -> None:
    figures = summary(QUANT, BASE)
    assert QUANT.agree is not None
    kld = np.sort(KLD)
    assert math.isclose(figures["kld"]["mean"], KLD.mean())
    assert math.isclose(figures["kld"]["stderr"], KLD.std(ddof=1) / 30)
    assert figures["kld"]["max"] == kld[-1]
    assert math.isclose(figures["kld"]["median"], (kld[449] + kld[450]) / 2)
    assert figures["kld"]["median"] < figures["kld"]["p90"] < figures["kld"]["p95"] < figures["kld"]["p99"]
    assert kld[-2] < figures["kld"]["p999"] < kld[-1]
    assert figures["same_top"] == QUANT.agree.mean()
    assert math.isclose(figures["delta_p_rms"] ** 2, np.mean((np.exp(-QUANT.nll) - np.exp(-BASE.nll)) ** 2))


def test_the_ratio_keeps_pairs_together() -> None:
    figures = summary(QUANT, BASE)
    difference = QUANT.nll - BASE.nll
    assert math.isclose(figures["ppl_ratio"], math.exp(difference.mean()))
    assert math.isclose(figures["ppl_ratio_stderr"], figures["ppl_ratio"] * difference.std(ddof=1) / 30)
    assert figures["ppl_ratio_stderr"] < figures["ppl_stderr"] / figures["ppl"] / 10
