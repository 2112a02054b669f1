"""`quantkit eval` as a function: models and a text in, figures out, with everything that makes them comparable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit import __version__, kernels
from quantkit.errors import UsageError
from quantkit.evaluate.measure import Measurement, measure
from quantkit.evaluate.model import Model
from quantkit.evaluate.network import Arithmetic
from quantkit.evaluate.score import Scores
from quantkit.evaluate.statistics import summary
from quantkit.evaluate.text import Text
from quantkit.evaluate.tokens import Tokenizer, fingerprint, windows_of

SCHEMA = {"name": "quantkit.eval", "version": 1}


@dataclass(frozen=True)
class Sample:
    """A text as tokens in windows.

    windows     int64 (n, positions)
    n_tokens    of the whole text
    vocabulary  its fingerprint
    among       of the first so many windows they are some, evenly over them; None: they are the first
    """

    text: Text
    windows: npt.NDArray[np.int64]
    n_tokens: int
    vocabulary: str
    among: int | None = None


def sample(models: Sequence[Model], text: Text, window: int, most: int | None) -> Sample:
    """The text in the models' own tokens.

    window  positions of a window
    most    windows at most
    raises  UsageError        the models' vocabularies differ, a window is longer than the context that a model was
                              trained on, or the text is shorter than two windows
            UnsupportedError  another kind of vocabulary than byte-level BPE
            VocabularyError   it cannot encode the text
    """
    _check_fits(models, window)
    prints = {model: fingerprint(model.fields, model.path) for model in models}
    first = models[0]
    for other in models[1:]:
        if prints[other] != prints[first]:
            raise UsageError(
                f"its vocabulary is not that of {first.name}, so that their predictions cannot be compared",
                hint="measure models of one vocabulary together",
                file=other.path,
                expected=prints[first][:16],
                found=prints[other][:16],
            )
    tokenizer = Tokenizer(first.fields, first.path)
    ids = tokenizer.encode(text.text)
    return Sample(text, windows_of(ids, window, tokenizer.bos, most), len(ids), prints[first])


def evenly(chosen: Sample, most: int) -> Sample:
    """At most so many windows of a sample, evenly over it; the sample itself where it has no more."""
    n = len(chosen.windows)
    if n <= most:
        return chosen
    return replace(chosen, windows=chosen.windows[(2 * np.arange(most) + 1) * n // (2 * most)], among=n)


def _check_fits(models: Sequence[Model], window: int) -> None:
    for model in models:
        if window > model.network.rope.original_context:
            raise UsageError(
                "the window is longer than the context that the model was trained on",
                file=model.path,
                expected=f"at most {model.network.rope.original_context} tokens",
                found=window,
            )


def conditions(chosen: Sample, how: Arithmetic, base: Model | None) -> dict[str, Any]:
    """What two results must have in common to be compared.

    The number of windows is none of it where they are the first of the text: figures are kept window by window.
    """
    return ({"evenly": [len(chosen.windows), chosen.among]} if chosen.among else {}) | {
        "text_sha256": chosen.text.sha256,
        "vocabulary_sha256": chosen.vocabulary,
        "window": chosen.windows.shape[1],
        "activations": how.activations,
        "dtype": str(how.dtype).removeprefix("torch."),
        "base_sha256": base.sha256 if base else None,
    }


def evaluate(
    models: Sequence[Model],
    chosen: Sample,
    *,
    base: Model | None = None,
    how: Arithmetic,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measure models on a sample; against a base too, if there is one.  Only their vocabularies have to be the same.

    returns  the result of `quantkit eval`: see README.md.  After a KeyboardInterrupt it is of the groups of windows
             that were finished, and `complete` is false.
    raises   NotFiniteError     values that are no numbers (names the file and the layer where they begin)
             KeyboardInterrupt  it came before the first group was finished
    """
    every = [base, *models] if base else list(models)
    files = [{"name": model.name, "file_bytes": model.file_bytes, "file_sha256": model.sha256} for model in every]
    done: Measurement | None = None
    try:
        for so_far in measure(every, chosen.windows, how, has_base=base is not None, progress=progress):
            done = so_far
    except KeyboardInterrupt:
        if done is None:
            raise
    assert done is not None
    scores = [done.scores(i) for i in range(len(every))]
    figures = [
        file | summary(its_scores, scores[0]) | _by_window(its_scores, done.scored)
        for file, its_scores in zip(files, scores, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "quantkit": __version__,
        "complete": done.complete,
        "text": chosen.text.names,
        **conditions(chosen, how, base),
        "n_tokens": chosen.n_tokens,
        "windows": done.n_done,
        "scored": done.scored,
        "device": how.device,
        "backend": kernels.backend(),
        "base": figures[0] if base else None,
        "models": figures[1:] if base else figures,
    }


def _by_window(scores: Scores, scored: int) -> dict[str, list[float]]:
    """The means of each window."""
    columns = {"nll_by_window": scores.nll, "kld_by_window": scores.kld}
    return {
        name: values.reshape(-1, scored).mean(axis=1).tolist() for name, values in columns.items() if values is not None
    }
