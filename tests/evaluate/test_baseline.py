"""The gate: what counts as worse, what cannot be compared, what is no baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.errors import FormatError, InputError, UsageError
from quantkit.evaluate import Baseline, Finding, read_baseline, write_baseline
from quantkit.osio import AtomicFile

RNG = np.random.default_rng(11)
NLL, KLD = RNG.normal(2.5, 0.6, 20), RNG.normal(0.2, 0.05, 20)
NOISE = RNG.standard_normal(20)
NOISE -= NOISE.mean()
CONDITIONS = {
    "text_sha256": "aa",
    "vocabulary_sha256": "bb",
    "window": 512,
    "activations": "f32",
    "dtype": "float32",
    "base_sha256": "cc",
}


def result(nll: Any = NLL, kld: Any = KLD) -> dict[str, Any]:
    """What evaluate() returns of one model, as far as it matters here."""
    by_window = {"nll_by_window": list(map(float, nll))}
    if kld is not None:
        by_window["kld_by_window"] = list(map(float, kld))
    model = {"name": "m.gguf", "file_sha256": "dd", "ppl": 0.0, **by_window}
    schema = {"name": "quantkit.eval", "version": 1}
    base = {"base_sha256": "cc" if kld is not None else None}
    return {"schema": schema, "quantkit": "0.1", **CONDITIONS, **base, "device": "cpu", "models": [model]}


def recorded(path: Path, of: dict[str, Any]) -> Baseline:
    with AtomicFile(path) as out:
        write_baseline(out, of)
    return read_baseline(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.json"


@pytest.fixture
def baseline(file: Path) -> Baseline:
    return recorded(file, result())


def verdicts(baseline: Baseline, now: dict[str, Any]) -> list[str]:
    return ["worse" if finding.worse else "moved" if finding.moved else "same" for finding in baseline.compare(now)]


def test_the_same_again(baseline: Baseline) -> None:
    ppl, kld = baseline.compare(result())
    assert (ppl.figure, ppl.before, ppl.now) == ("PPL", pytest.approx(np.exp(NLL.mean())), ppl.before)
    assert (kld.figure, kld.before, kld.now) == ("KLD", pytest.approx(KLD.mean()), kld.before)
    assert verdicts(baseline, result()) == ["same", "same"]
    assert "as recorded" in str(ppl)


SPREAD = NOISE * 0.01  # what a change does to single windows
ERROR = SPREAD.std() / np.sqrt(19)
FEW = np.eye(20)
CHANGES = {
    "another order of addition": (NLL + 1e-7, KLD + 1e-7, ["same", "same"]),
    "within the error": (NLL + SPREAD + 2.5 * ERROR, KLD + SPREAD + 2.5 * ERROR, ["moved", "moved"]),
    "beyond the error": (NLL + SPREAD + 3.5 * ERROR, KLD + SPREAD + 3.5 * ERROR, ["worse", "worse"]),
    "the KLD alone": (NLL, KLD + SPREAD + 3.5 * ERROR, ["same", "worse"]),
    "everywhere a little": (NLL + 1e-3, KLD + 1e-3, ["worse", "worse"]),
    "six windows of twenty": (NLL + 0.1 * FEW[:6].sum(0), KLD + 0.1 * FEW[:6].sum(0), ["moved", "moved"]),
    "seven windows of twenty": (NLL + 0.1 * FEW[:7].sum(0), KLD + 0.1 * FEW[:7].sum(0), ["worse", "worse"]),
    "better": (NLL - 1e-2, KLD - 1e-2, ["moved", "moved"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_worse(baseline: Baseline, change: str) -> None:
    nll, kld, expected = CHANGES[change]
    assert verdicts(baseline, result(nll, kld)) == expected


@pytest.mark.parametrize("error", [math.inf, math.nan])
@pytest.mark.parametrize("now", [2.0, 3.0])
def test_a_tolerance_that_is_no_number_tolerates_nothing(error: float, now: float) -> None:
    assert Finding("m.gguf", "KLD", 2.0, now, now - 2.0, error).worse


def test_the_worst_that_logits_can_give_is_recorded(file: Path) -> None:
    worst = result([1e39] * 20, [1e39] * 20)
    assert verdicts(recorded(file, worst), worst) == ["same", "same"]


def test_fewer_windows_are_held_against_the_first(baseline: Baseline) -> None:
    now = result(NLL[:6], KLD[:6])
    baseline.check_comparable(CONDITIONS, 6, ["m.gguf"], Path("m.json"))
    assert verdicts(baseline, now) == ["same", "same"]
    assert baseline.compare(now)[0].before == pytest.approx(np.exp(NLL[:6].mean()))


def test_without_a_base(file: Path) -> None:
    without = recorded(file, result(kld=None))
    assert verdicts(without, result(NLL + 0.1, kld=None)) == ["worse"]
    with pytest.raises(UsageError, match="base_sha256"):
        without.check_comparable(CONDITIONS, 20, ["m.gguf"], file)


@pytest.mark.parametrize("key", CONDITIONS)
def test_another_measurement_is_refused(baseline: Baseline, file: Path, key: str) -> None:
    baseline.check_comparable(CONDITIONS, 20, ["m.gguf"], file)
    with pytest.raises(UsageError) as caught:
        baseline.check_comparable(CONDITIONS | {key: "other"}, 20, ["m.gguf"], file)
    assert caught.value.details == {"file": file, "key": key, "expected": CONDITIONS[key], "found": "other"}


def test_more_windows_and_other_models_are_refused(baseline: Baseline, file: Path) -> None:
    with pytest.raises(UsageError, match="fewer windows"):
        baseline.check_comparable(CONDITIONS, 21, ["m.gguf"], file)
    with pytest.raises(UsageError, match="no such model"):
        baseline.check_comparable(CONDITIONS, 20, ["m.gguf", "n.gguf"], file)


def test_nothing_local_is_recorded(baseline: Baseline, file: Path) -> None:
    assert file.parent.name not in file.read_text()
    assert json.loads(file.read_text()).keys() == {"schema", "quantkit", "models", *CONDITIONS}


def deleted(*keys: str) -> Callable[[Any], None]:
    def edit(content: Any) -> None:
        *path, last = keys
        for key in path:
            content = content[key]
        del content[last]

    return edit


def changed(value: Any, *keys: str) -> Callable[[Any], None]:
    def edit(content: Any) -> None:
        *path, last = keys
        for key in path:
            content = content[key]
        content[last] = value

    return edit


MODEL = ("models", "m.gguf")
# an edit of the JSON: the key that the error names
BROKEN: dict[str, tuple[Callable[[Any], None], str | None]] = {
    "a result": (changed({"name": "quantkit.eval", "version": 1}, "schema"), "schema.name"),
    "a later version": (changed(2, "schema", "version"), "schema.version"),
    "no schema": (deleted("schema"), "schema"),
    "a schema without a name": (deleted("schema", "name"), "schema.name"),
    "a schema without a version": (deleted("schema", "version"), "schema.version"),
    "no version of quantkit": (deleted("quantkit"), "quantkit"),
    "an empty table of models": (changed({}, "models"), "models"),
    "an NLL below zero": (changed([-0.1, 1.0], *MODEL, "nll_by_window"), "models.m.gguf.nll_by_window.0"),
    "an NLL beyond squares": (changed([1.0, 1e308], *MODEL, "nll_by_window"), "models.m.gguf.nll_by_window.1"),
    "a KLD below rounding": (changed([-0.1, 1.0], *MODEL, "kld_by_window"), "models.m.gguf.kld_by_window.0"),
    "a KLD beyond squares": (changed([1.0, 1e308], *MODEL, "kld_by_window"), "models.m.gguf.kld_by_window.1"),
    "no schema's name": (changed({}, "schema", "name"), "schema.name"),
    "no text": (deleted("text_sha256"), "text_sha256"),
    "a text for a number": (changed("512", "window"), "window"),
    "no models": (deleted("models"), "models"),
    "a list of models": (changed([], "models"), "models"),
    "a model that is none": (changed(3, *MODEL), "models.m.gguf"),
    "no figures": (deleted(*MODEL, "nll_by_window"), "models.m.gguf.nll_by_window"),
    "one window": (changed([1.0], *MODEL, "nll_by_window"), "models.m.gguf.nll_by_window"),
    "a window that is a text": (changed([1.0, "2"], *MODEL, "nll_by_window"), "models.m.gguf.nll_by_window.1"),
    "lists of two lengths": (changed([1.0, 2.0], *MODEL, "kld_by_window"), None),
    "no KLD against a base": (changed(None, *MODEL, "kld_by_window"), None),
    "a key too many": (changed(1, "other"), "other"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_baseline_is_refused(baseline: Baseline, file: Path, case: str) -> None:
    edit, key = BROKEN[case]
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="is no baseline") as caught:
        read_baseline(file)
    assert caught.value.details.get("key") == key
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", '{"schema": NaN}', "\xff"])
def test_what_is_no_json_object_is_refused(file: Path, text: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError):
        read_baseline(file)


def test_no_file(file: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_baseline(file)
