"""The perplexity regression test: the trained checkpoint's files are no worse than recorded, on the first windows.

`make ppl` runs all of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from quantkit.evaluate import (
    Arithmetic,
    Baseline,
    Model,
    conditions,
    evaluate,
    open_model,
    read_baseline,
    sample,
    shipped,
)

BASELINE = Path(__file__).parents[1] / "baselines" / "real_small.json"
WINDOWS = 2
EXACT = Arithmetic()


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    return read_baseline(BASELINE)


@pytest.fixture(scope="module")
def models(trained_files: dict[str, Path]) -> Iterator[list[Model]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_model(path, pytest.fail)) for path in trained_files.values()]


@pytest.fixture(scope="module")
def result(trained: Model, models: list[Model], baseline: Baseline) -> dict[str, Any]:
    chosen = sample([trained, *models], shipped("eval.txt"), 512, WINDOWS)
    baseline.check_comparable(conditions(chosen, EXACT, trained), WINDOWS, [model.name for model in models], BASELINE)
    return evaluate(models, chosen, base=trained, how=EXACT)


def test_all_types_are_recorded_on_all_of_the_text(trained: Model, models: list[Model], baseline: Baseline) -> None:
    assert list(baseline.models) == [model.name for model in models]
    assert baseline.windows == len(sample([trained], shipped("eval.txt"), 512, None).windows)


def test_no_file_is_worse(result: dict[str, Any], baseline: Baseline) -> None:
    findings = baseline.compare(result)
    assert len(findings) == 2 * len(baseline.models)
    assert [str(finding) for finding in findings if finding.worse] == []


def test_a_worse_file_would_be_found(result: dict[str, Any], baseline: Baseline) -> None:
    """Each type under the name of the one above it."""
    swapped = [
        worse | {"name": better["name"]} for better, worse in zip(result["models"], result["models"][1:], strict=False)
    ]
    findings = baseline.compare(result | {"models": swapped})
    assert {finding.model for finding in findings if finding.worse} == {model["name"] for model in swapped}
