"""The gate: figures recorded once, and whether a new measurement is worse.

Both were measured on the same windows, so they are compared window by window: the text's own ups and downs cancel out.
A figure is worse if the mean of these differences is above zero by more than TOLERANCE of its standard errors, and the
figure differs in the digits that people see; what another processor's order of addition changes is below those.  A
measurement of fewer windows is held against the first ones of the record.

The limit of this: harm to a few windows alone passes for noise.  Where k of n windows are worse by the same amount and
the others are as recorded, difference / error is sqrt(k (n - 1) / (n - k)).  To be above TOLERANCE = 3 that takes
k > 9 n / (n + 8): 8 windows of 52, and never more than 9.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic

from quantkit.checkpoint.json_file import read_json, shown
from quantkit.errors import FormatError, UsageError
from quantkit.evaluate.score import F64Array
from quantkit.evaluate.statistics import mean_and_error, perplexity
from quantkit.osio import AtomicFile

TOLERANCE = 3.0  # standard errors
DIGITS = 4
_FIGURES = {"PPL": "nll_by_window", "KLD": "kld_by_window"}

# What finite float32 logits can give is below 4 * 3.4e38; squares of it are finite in float64.
_LARGEST = 1e40
_NLL = Annotated[float, pydantic.Field(ge=0, le=_LARGEST)]
# Below zero by rounding alone: 6e-8 of logits of 10,000, which are larger than any network's.
_KLD = Annotated[float, pydantic.Field(ge=-1e-3, le=_LARGEST)]


class _Table(pydantic.BaseModel):
    """An object of the JSON: no key but those named, no value converted to another type."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class _Schema(_Table):
    name: Literal["quantkit.baseline"]
    version: Literal[1]


class _Record(_Table):
    """One model: mean NLL and, if there was a base, mean KLD of each window, nats."""

    file_sha256: str
    nll_by_window: list[_NLL] = pydantic.Field(min_length=2)
    kld_by_window: list[_KLD] | None


class Baseline(_Table):
    """What was recorded: the conditions of a measurement (evaluation.conditions), and models by their files' names."""

    schema_: _Schema = pydantic.Field(alias="schema")
    quantkit: str
    text_sha256: str
    vocabulary_sha256: str
    window: int
    activations: str
    dtype: str
    base_sha256: str | None
    models: dict[str, _Record] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _same_windows(self) -> Self:
        lengths = {len(record.nll_by_window) for record in self.models.values()}
        for record in self.models.values():
            if (record.kld_by_window is None) != (self.base_sha256 is None):
                raise ValueError("kld_by_window belongs to a measurement against a base")
            lengths.add(len(record.kld_by_window or record.nll_by_window))
        if len(lengths) > 1:
            raise ValueError("not all lists are of the same windows")
        return self

    @property
    def windows(self) -> int:
        return len(next(iter(self.models.values())).nll_by_window)

    def check_comparable(self, conditions: Mapping[str, Any], windows: int, models: Sequence[str], path: Path) -> None:
        """Raises UsageError unless a measurement under these conditions can be held against this, which stands at path.

        windows  that it has
        models   their names
        """
        for key, value in conditions.items():
            if value != getattr(self, key):
                raise UsageError(
                    "the baseline is of another measurement",
                    hint="measure with the same text, options and base, or record anew: --update",
                    file=path,
                    key=key,
                    expected=getattr(self, key),
                    found=value,
                )
        if windows > self.windows:
            raise UsageError(
                "the baseline is of fewer windows",
                hint=f"--windows {self.windows}",
                file=path,
                expected=f"at most {self.windows}",
                found=windows,
            )
        for name in models:
            if name not in self.models:
                raise UsageError(
                    "the baseline has no such model", file=path, expected=" or ".join(self.models), found=name
                )

    def compare(self, result: Mapping[str, Any]) -> list[Finding]:
        """Every figure of a result beside its record; check_comparable holds for it."""
        findings = []
        for model in result["models"]:
            record = self.models[model["name"]]
            for figure, key in _FIGURES.items():
                if key in model:
                    now = np.array(model[key])
                    before = np.array(getattr(record, key)[: len(now)])
                    findings.append(_finding(model["name"], figure, before, now))
        return findings


@dataclass(frozen=True)
class Finding:
    """One figure of one model beside its record.

    before, now  PPL, or mean KLD in nats
    difference   mean over the windows, of NLL or KLD in nats; and its standard error
    """

    model: str
    figure: str
    before: float
    now: float
    difference: float
    error: float

    @property
    def moved(self) -> bool:
        return f"{self.before:.{DIGITS}g}" != f"{self.now:.{DIGITS}g}"

    @property
    def worse(self) -> bool:
        if not math.isfinite(self.error):  # a tolerance that nothing is beyond
            return True
        return self.moved and self.difference > TOLERANCE * self.error

    def __str__(self) -> str:
        verdict = "worse" if self.worse else "moved, within tolerance" if self.moved else "as recorded"
        allowed = TOLERANCE * self.error
        return (
            f"{self.model}  {self.figure} {self.before:.{DIGITS}g} -> {self.now:.{DIGITS}g}: {verdict} "
            f"({self.difference:+.2g} nats a token, tolerance {allowed:.2g})"
        )


def _finding(model: str, figure: str, before: F64Array, now: F64Array) -> Finding:
    value = perplexity if figure == "PPL" else float
    return Finding(model, figure, value(before.mean()), value(now.mean()), *mean_and_error(now - before))


def write_baseline(out: AtomicFile, result: Mapping[str, Any]) -> None:
    """Record what a result needs to be compared with; raises OutputError, DiskError.

    out  opened before the measurement, so that a name that cannot be written to is refused first
    """
    kept = ("file_sha256", *_FIGURES.values())
    recorded = Baseline(
        schema=_Schema(name="quantkit.baseline", version=1),
        **{key: value for key, value in result.items() if key in Baseline.model_fields.keys() - {"models"}},
        models={model["name"]: _Record(**{key: model.get(key) for key in kept}) for model in result["models"]},
    )
    out.write((json.dumps(recorded.model_dump(by_alias=True), indent=1) + "\n").encode(), 0)
    out.publish()


def read_baseline(path: Path) -> Baseline:
    """The baseline in the file at path.

    raises  InputError   no such file
            FormatError  no baseline (names the key)
    """
    content = read_json(path)
    try:
        return Baseline.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise FormatError(
            f"is no baseline: {first['msg']}",
            hint="--check FILE --update writes one",
            file=path,
            key=".".join(map(str, first["loc"])) or None,
            found=shown(first["input"]),
        ) from None
