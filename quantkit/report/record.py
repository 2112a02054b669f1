"""report.json as it is read back: every figure where it is expected and possible, every text fit to be shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import pydantic

from quantkit.checkpoint.json_file import read_json, shown
from quantkit.errors import FormatError, UnsupportedError
from quantkit.osio import is_folder
from quantkit.qtypes import by_name

JSON = "report.json"
_MOST_TENSORS = 1 << 14


def _printable(text: str) -> str:
    """Nothing that a terminal obeys, that XML forbids, or that turns a line's direction."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _known(name: str) -> str:
    try:
        return by_name(name).name
    except UnsupportedError as error:
        raise ValueError(error.message) from None


_Text = Annotated[str, pydantic.AfterValidator(_printable)]
_Type = Annotated[str, pydantic.AfterValidator(_known)]
_Bytes = Annotated[int, pydantic.Field(ge=0, lt=1 << 63)]
_Count = Annotated[int, pydantic.Field(ge=1, lt=1 << 63)]
# What finite float32 logits can give is below 4 * 3.4e38; of zero, rounding alone leaves something below it.
_NLL = Annotated[float, pydantic.Field(ge=0, le=1e40)]
_KLD = Annotated[float, pydantic.Field(ge=-1e-3, le=1e40)]
_PPL = Annotated[float, pydantic.Field(ge=0)]
_Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class _Table(pydantic.BaseModel):
    """An object of the JSON.  Keys that are not shown are let be: a newer sweep may know more of them."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class _Schema(_Table):
    name: Literal["quantkit.sweep"]
    version: Literal[1]


class Term(_Table):
    """One part of the memory that is needed."""

    name: _Text
    nbytes: _Bytes = pydantic.Field(alias="bytes")
    formula: _Text


class Memory(_Table):
    """What the run needs, on the card and in the host's memory; left_bytes is below 0 where it does not fit."""

    card_bytes: _Bytes
    host_bytes: _Bytes
    left_bytes: int
    fits: bool
    longest_context: int
    card: list[Term]
    host: list[Term]


class Divergence(_Table):
    """From the base, in nats."""

    mean: _KLD
    stderr: _KLD
    p99: _KLD
    max: _KLD


class Candidate(_Table):
    """One that was measured.

    tensor_types   of every tensor, by GGUF name
    predicted_kld  of a mix that was reckoned out: what it was to have
    """

    name: _Text = pydantic.Field(alias="type", min_length=1)
    file_bytes: _Bytes
    bits_per_weight: float = pydantic.Field(ge=0)
    types: dict[_Type, _Count]
    tensor_types: dict[_Text, _Type] = pydantic.Field(max_length=_MOST_TENSORS)
    memory: Memory
    ppl: _PPL
    ppl_stderr: _PPL
    kld: Divergence
    same_top: _Share
    ppl_ratio: _PPL
    ppl_ratio_stderr: _PPL
    nll_by_window: list[_NLL]
    kld_by_window: list[_KLD]
    predicted_kld: _KLD | None = None


class Base(_Table):
    """What the candidates are held against: the source itself."""

    ppl: _PPL
    ppl_stderr: _PPL
    nll_by_window: list[_NLL]


class Run(_Table):
    """How llama.cpp would be run: the arguments of memory.Run."""

    context: _Count
    kv_type: _Text
    parallel: _Count
    ubatch: _Count
    gpu_layers: _Count | None
    overhead_bytes: _Bytes


class Pick(_Table):
    """Which of the candidates was picked, and why."""

    name: _Text = pydantic.Field(alias="type")
    sentence: _Text


class Matrix(_Table):
    """What one matrix costs where it alone is quantized; or is reckoned to cost, from those of other layers."""

    kld: _KLD
    interpolated: bool


class Mix(_Table):
    """What was found for a budget; gap is the optimality gap, 0 to 1."""

    name: _Text = pydantic.Field(alias="type")
    budget_bytes: _Bytes
    used_bytes: _Bytes
    gap: float


class Optimized(_Table):
    """How mixes were found: on what text, within what bounds."""

    text: list[_Text]
    text_sha256: _Text
    windows: _Count
    keep: list[_Text]
    min_type: _Text | None
    same_type: list[_Text]
    matrices: dict[_Text, Matrix] = pydantic.Field(max_length=_MOST_TENSORS)
    mixes: list[Mix]

    @property
    def n_probed(self) -> int:
        return sum(not matrix.interpolated for matrix in self.matrices.values())


class Adapter(_Table):
    """One that was merged into the source."""

    name: _Text
    sha256: _Text
    scale: float

    def __str__(self) -> str:
        return self.name + (f":{self.scale:g}" if self.scale != 1 else "")


class Merged(_Table):
    """What the source was made of."""

    base: _Text
    lora: list[Adapter]


class Recorded(_Table):
    """A strategy other than the reference, as files record it."""

    name: _Text = pydantic.Field(alias="quantkit.strategy")
    covariance_sha256: _Text = pydantic.Field(alias="quantkit.covariance.sha256")


class Report(_Table):
    """What a sweep found."""

    schema_: _Schema = pydantic.Field(alias="schema")
    quantkit: _Text
    source: _Text
    source_bytes: _Bytes
    text: list[_Text]
    text_sha256: _Text
    vocabulary_sha256: _Text
    base_sha256: _Text
    imatrix_sha256: _Text | None
    strategy: Recorded | None = None
    recipe: _Text
    window: _Count
    windows: _Count
    scored: _Count
    activations: _Text
    dtype: _Text
    device: _Text
    vram_bytes: _Count
    run: Run
    base: Base
    candidates: list[Candidate] = pydantic.Field(min_length=1, max_length=256)
    pick: Pick
    optimized: Optimized | None = None
    merged: Merged | None = None

    @pydantic.model_validator(mode="after")
    def _of_one_piece(self) -> Self:
        names = [candidate.name for candidate in self.candidates]
        if len(names) != len({*names}):
            raise ValueError("two candidates have one name")
        if self.pick.name not in names:
            raise ValueError("what is picked is no candidate")
        lists = [self.base.nll_by_window]
        lists += [figures for one in self.candidates for figures in (one.nll_by_window, one.kld_by_window)]
        if {len(figures) for figures in lists} != {self.windows}:
            raise ValueError("not all lists are of the same windows")
        if len({tuple(term.name for term in one.memory.card) for one in self.candidates}) != 1:
            raise ValueError("not all have the same terms of memory")
        return self

    @property
    def picked(self) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.name == self.pick.name)

    @property
    def mixes(self) -> list[Candidate]:
        """The candidates that were reckoned out."""
        return [candidate for candidate in self.candidates if candidate.predicted_kld is not None]

    @property
    def frontier(self) -> list[Candidate]:
        """Those that no other beats both in memory on the card and in mean KLD, smallest first."""
        best: list[Candidate] = []
        for candidate in sorted(self.candidates, key=lambda one: (one.memory.card_bytes, one.kld.mean, one.name)):
            if not best or candidate.kld.mean < best[-1].kld.mean:
                best.append(candidate)
        return best


def read_report(path: Path) -> Report:
    """The report at path, a folder that a sweep has written to or the report.json itself.

    raises  InputError   no such file
            FormatError  no report (names the key)
            DiskError    reading fails
    """
    file = path / JSON if is_folder(path) else path
    try:
        return Report.model_validate(read_json(file))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise FormatError(
            f"is no report of a sweep: {first['msg']}",
            hint="`quantkit sweep` writes one",
            file=file,
            key=".".join(map(str, first["loc"])) or None,
            found=shown(first["input"]),
        ) from None
