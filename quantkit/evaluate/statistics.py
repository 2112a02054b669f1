"""The figures that a list of scores comes down to, as llama.cpp's perplexity tool reports them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.evaluate.score import Scores

LARGEST_EXPONENT = 650.0  # of what is printed: a model so bad has no perplexity, but its number stays one
PERCENTILES = {"median": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}


def summary(scores: Scores, base: Scores | None) -> dict[str, Any]:
    """The figures of one model.

    ppl, ppl_stderr              exp(mean NLL), and its standard error by the delta method
    and against a base, of the same tokens:
    kld                          nats: mean, stderr, median, p90, p95, p99, p999, max
    same_top                     share of positions whose likeliest token is the base's
    delta_p_rms                  root mean square of the change of p(next token)
    ppl_ratio, ppl_ratio_stderr  to the base's, exp(mean difference of NLL) and its standard error, pairs kept together
    """
    mean, error = mean_and_error(scores.nll)
    figures: dict[str, Any] = {"ppl": perplexity(mean), "ppl_stderr": perplexity(mean) * error}
    if base is None or scores.kld is None or scores.agree is None:
        return figures
    kld_mean, kld_error = mean_and_error(scores.kld)
    ratio, ratio_error = mean_and_error(scores.nll - base.nll)
    change = np.exp(-scores.nll) - np.exp(-base.nll)
    return figures | {
        "kld": {"mean": kld_mean, "stderr": kld_error}
        | {name: float(np.percentile(scores.kld, share)) for name, share in PERCENTILES.items()}
        | {"max": float(scores.kld.max())},
        "same_top": float(scores.agree.mean()),
        "delta_p_rms": float(np.sqrt(np.mean(change**2))),
        "ppl_ratio": perplexity(ratio),
        "ppl_ratio_stderr": perplexity(ratio) * ratio_error,
    }


def perplexity(nll: float) -> float:
    """Of a mean NLL in nats, or the ratio of two of their difference."""
    return math.exp(min(nll, LARGEST_EXPONENT))


def mean_and_error(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The mean, and its standard error as llama.cpp has it: sqrt((mean square - square of mean) / (n - 1))."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values) - 1))
