"""What a GGUF file says of its own making, and the plan that makes it again."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from quantkit.checkpoint import Adapter, Checkpoint
from quantkit.errors import InputError, UnsupportedError, UsageError
from quantkit.gguf_io import GGUFFile, Kind, TensorEntry, open_shards
from quantkit.imatrix import Imatrix
from quantkit.osio import InputFile
from quantkit.plan import LORA_KEY, Job, Output, Plan, Target, make_plan
from quantkit.qtypes import ALL
from quantkit.recipe import Recipe, Rule, families, preset, presets
from quantkit.source import GGUFWeights
from quantkit.strategy import REFERENCE, STRATEGIES, STRATEGY_KEY, Strategy, by_name

VERSION_KEY = "quantkit.version"
IMATRIX_KEY = "quantkit.imatrix.sha256"
_IMATRIX_KEYS = (IMATRIX_KEY, "quantize.imatrix.entries_count")  # of either maker, where importance went in


class Recorded:
    """An open GGUF file, or all shards of one; use it in a `with` block or close() it.

    path     the file, or the first shard
    files    open, in order
    headers  what each says of itself
    fields   of the first, by key
    maker    "quantkit" and its version; None for a file of another program
    """

    def __init__(self, path: Path) -> None:
        """Open it; raises InputError in its kinds, DiskError, as gguf_io.open_shards does."""
        self.path = path
        with ExitStack() as opened:
            shards = open_shards(path, opened)
            self._opened = opened.pop_all()
        self.files: list[InputFile] = [file for file, _ in shards]
        self.headers: list[GGUFFile] = [header for _, header in shards]
        self.fields = self.headers[0].fields
        version = self.text(VERSION_KEY)
        self.maker = f"quantkit {version}" if version is not None else None

    def text(self, key: str) -> str | None:
        """The value of a key that holds a string, or None."""
        field = self.fields.get(key)
        return field.value if field is not None and field.kind is Kind.STRING else None

    @property
    def adapters(self) -> list[tuple[str, float]]:
        """The SHA-256 and the scale of each adapter that was merged into the source, in order."""
        found: list[tuple[str, float]] = []
        while (sha256 := self.text(f"{LORA_KEY}{len(found)}.sha256")) is not None:
            scale = self.fields.get(f"{LORA_KEY}{len(found)}.scale")
            found.append((sha256, scale.value if scale is not None and scale.kind is Kind.F32 else 0.0))
        return found

    def tensors(self) -> Iterator[tuple[int, TensorEntry]]:
        """Every tensor with the number of its file, in the order of their bytes."""
        for number, header in enumerate(self.headers):
            for tensor in header.tensors.values():
                yield number, tensor

    def close(self) -> None:
        """Close the files; closing twice is allowed."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Remaking:
    """The work that makes a file again.

    output    as the source, and the recipe where it is a known one, would have it
    recipe    the preset that the file records, or None: then its types and general.file_type are taken as they are
    jobs      for the tensors that the file has, in the order of their bytes; each with its one place in the file
    strategy  how the codes of its matrices are found
    """

    output: Output
    recipe: Recipe | None
    jobs: tuple[Job, ...]
    strategy: Strategy

    @property
    def source_bytes(self) -> int:
        return sum(source.nbytes for job in self.jobs for source in job.sources)


def remake(
    weights: Checkpoint | GGUFWeights,
    recorded: Recorded,
    *,
    name: str | None = None,
    fix_special_tokens: bool = False,
    chat_template: str | None = None,
    imatrix: Imatrix | None = None,
    covariance: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    warn: Callable[[str], None],
) -> Remaking:
    """Plan the file anew from its source: the types are those of its own table, the strategy the one it records.

    covariance  the folder of second moments that its conversion was given, if its strategy needs one
    the other arguments as of make_plan: what its conversion was given
    raises    UsageError        the file was made with an importance matrix, second moments or adapters and none are
                                given, or the other way round
              InputError        the importance matrix or the adapters are others than the file records
              UnsupportedError  its strategy, or a type in its table, cannot be made
              and what make_plan raises
    """
    _check_imatrix(recorded, imatrix)
    _check_adapters(recorded, weights.adapters)
    strategy = _strategy(recorded, covariance)
    known = _known_recipe(recorded)
    plan = make_plan(
        weights,
        [_table_as_recipe(recorded), *([known] if known else [])],
        name=name,
        fix_special_tokens=fix_special_tokens,
        chat_template=chat_template,
        imatrix=imatrix,
        strategy=strategy,
        overrides=overrides,
        warn=warn,
    )
    return Remaking(plan.outputs[-1], known, tuple(_placed(plan, recorded)), strategy)


def _strategy(recorded: Recorded, covariance: Path | None) -> Strategy:
    """The strategy that the file records; another program's is ggml's own."""
    name = recorded.text(STRATEGY_KEY) or REFERENCE.name
    if name not in STRATEGIES:
        raise UnsupportedError(
            "was made by an unknown strategy",
            file=recorded.path,
            key=STRATEGY_KEY,
            expected=" or ".join(STRATEGIES),
            found=name,
        )
    return by_name(name, covariance, any_types=True)


def _placed(plan: Plan, recorded: Recorded) -> Iterator[Job]:
    """The plan's jobs, each with the place that its tensor has in the recorded file, in the order of the file."""
    jobs = {job.name: job for job in plan.jobs}
    for number, tensor in recorded.tensors():
        if tensor.name in jobs:
            place = Target(number, tensor.qtype, recorded.headers[number].data_offset + tensor.offset)
            yield replace(jobs[tensor.name], targets=(place,))


def _table_as_recipe(recorded: Recorded) -> Recipe:
    """A recipe with a rule for each tensor: the type that it has; what the file does not have is F32."""
    rules = []
    for number, tensor in recorded.tensors():
        if tensor.qtype not in ALL:
            raise UnsupportedError(
                f"{tensor.qtype} is only read, so this file cannot be made again",
                hint=f"types: {', '.join(qtype.name for qtype in ALL)}",
                file=recorded.headers[number].path,
                tensor=tensor.name,
            )
        rules.append(Rule(match=glob.escape(tensor.name), type=tensor.qtype.name))
    file_type = recorded.fields.get("general.file_type")
    return Recipe(
        name=recorded.text("quantkit.recipe.name") or "",
        file_type=file_type.value if file_type is not None and file_type.kind is Kind.U32 else 0,
        rules=(*rules, Rule(match="*", type="F32")),
        sha256=recorded.text("quantkit.recipe.sha256") or "",
    )


def _known_recipe(recorded: Recorded) -> Recipe | None:
    """The preset that the file records, of whatever family; None for a mix of a user's."""
    name, sha256 = recorded.text("quantkit.recipe.name"), recorded.text("quantkit.recipe.sha256")
    candidates = (preset(name, family) for family in families() if name in presets(family))
    return next((recipe for recipe in candidates if recipe.sha256 == sha256), None)


def _check_imatrix(recorded: Recorded, imatrix: Imatrix | None) -> None:
    stated = recorded.text(IMATRIX_KEY)
    with_one = any(key in recorded.fields for key in _IMATRIX_KEYS)
    if with_one and imatrix is None:
        raise UsageError(
            "the file was made with an importance matrix",
            hint="give the same one: --imatrix FILE",
            file=recorded.path,
            expected=stated and f"the one with SHA-256 {stated}",
        )
    if imatrix is not None and not with_one:
        raise UsageError("the file was made without an importance matrix", hint="leave it out", file=recorded.path)
    if imatrix is not None and stated is not None and stated != imatrix.sha256:
        raise InputError(
            "another importance matrix than the file was made with",
            file=recorded.path,
            key=IMATRIX_KEY,
            expected=stated,
            found=imatrix.sha256,
        )


def _check_adapters(recorded: Recorded, adapters: Sequence[Adapter]) -> None:
    """A scale of another value is seen in the keys and the weights."""
    stated, given = [sha256 for sha256, _ in recorded.adapters], [adapter.sha256 for adapter in adapters]
    if stated == given or recorded.maker is None:
        return
    if not given:
        raise UsageError(
            "adapters were merged into the file's source",
            hint="give the same ones, in the same order: --lora DIR[:SCALE]",
            file=recorded.path,
            expected=", ".join(stated),
        )
    if not stated:
        raise UsageError("the file was made without adapters", hint="leave --lora out", file=recorded.path)
    raise InputError(
        "other adapters than the file was made with",
        file=recorded.path,
        key=f"{LORA_KEY}0.sha256",
        expected=", ".join(stated),
        found=", ".join(given),
    )
