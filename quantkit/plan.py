"""Every byte of the outputs, decided before a weight is read: headers, types, offsets, and the work to fill them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from functools import cached_property
from pathlib import Path

from quantkit import __version__
from quantkit.checkpoint import Checkpoint, TensorInfo, Weights
from quantkit.errors import TensorError
from quantkit.gguf_io import (
    COUNT_KEY,
    Field,
    Kind,
    TensorEntry,
    data_bytes,
    header,
    overridden,
    place,
    shard_name,
    split_fields,
)
from quantkit.imatrix import USUALLY_WITHOUT, Imatrix, Values, coverage
from quantkit.qtypes import Q2_K, QType
from quantkit.recipe import Facts, Recipe, layer_of
from quantkit.source import GGUFWeights, read_source
from quantkit.strategy import REFERENCE, STRATEGY_KEY, Strategy

SOURCE_KEY = "quantkit.source."
LORA_KEY = "quantkit.lora."
ORIGIN_KEYS = ("quantkit.source.repo", "quantkit.source.revision")
PENDING = "0" * 64  # where a SHA-256 will stand


@dataclass(frozen=True)
class OutputFile:
    """One file to be written: a whole output, or a shard of it.

    fields    with PENDING where a digest of the source will stand
    tensors   in the order of their bytes
    """

    fields: tuple[Field, ...]
    tensors: tuple[TensorEntry, ...]

    @cached_property
    def header(self) -> bytes:
        """All bytes before the data section."""
        return header(self.fields, self.tensors)

    def finished_fields(self, digests: Mapping[str, str]) -> list[Field]:
        """The fields with the digest of each source shard, by name, in its place."""
        names = {field.key: field.value for field in self.fields if field.key.startswith(SOURCE_KEY)}
        return [
            replace(field, value=digests[names[field.key.replace(".sha256", ".name")]])
            if field.key.startswith(SOURCE_KEY) and field.value == PENDING
            else field
            for field in self.fields
        ]

    def finished_header(self, digests: Mapping[str, str]) -> bytes:
        """The header with finished_fields."""
        finished = header(self.finished_fields(digests), self.tensors)
        assert len(finished) == len(self.header), "digests are as long as their place"
        return finished

    @property
    def nbytes(self) -> int:
        return len(self.header) + data_bytes(self.tensors)


@dataclass(frozen=True)
class Output:
    """What one recipe gives.

    name    of the recipe
    files   one, or the shards in order
    """

    name: str
    files: tuple[OutputFile, ...]

    @property
    def tensors(self) -> tuple[TensorEntry, ...]:
        return tuple(tensor for file in self.files for tensor in file.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(data_bytes(file.tensors) for file in self.files)

    @property
    def file_bytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / sum(tensor.n_weights for tensor in self.tensors)

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each type, most first."""
        return dict(Counter(tensor.qtype.name for tensor in self.tensors).most_common())


@dataclass(frozen=True)
class Target:
    """Where a tensor goes: the file's number among all files, the type, and the offset of its first byte there."""

    file: int
    qtype: QType
    offset: int


@dataclass(frozen=True)
class Job:
    """One tensor: its rows, packed once for each distinct type among the targets.

    name      in GGUF
    sources   the tensors whose rows it has, one after another
    values    the whole tensor, float32, where there are no sources
    importance   of each column, float32 (n_columns,), or None
    """

    name: str
    n_rows: int
    n_columns: int
    sources: tuple[TensorInfo, ...]
    values: tuple[float, ...]
    importance: Values | None = dataclass_field(compare=False)
    targets: tuple[Target, ...]

    def rows(self, start: int, stop: int) -> Iterator[tuple[TensorInfo, int, int]]:
        """Where rows start to stop come from: (tensor, first row, end row), in order."""
        first = 0
        for source in self.sources:
            low, high = max(start, first), min(stop, first + source.n_rows)
            if low < high:
                yield source, low - first, high - first
            first += source.n_rows

    def source_of(self, row: int) -> tuple[TensorInfo, int]:
        """The tensor that a row comes from, and its number there."""
        source, first, _ = next(self.rows(row, row + 1))
        return source, first


@dataclass(frozen=True)
class Plan:
    """The outputs, a job for each tensor in the order of the outputs' bytes, and how their matrices are packed."""

    outputs: tuple[Output, ...]
    jobs: tuple[Job, ...]
    strategy: Strategy = REFERENCE

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """All files of all outputs, as targets number them."""
        return tuple(file for output in self.outputs for file in output.files)

    @property
    def source_bytes(self) -> int:
        return sum(source.nbytes for job in self.jobs for source in job.sources)


def make_plan(
    weights: Checkpoint | GGUFWeights,
    recipes: Sequence[Recipe],
    *,
    name: str | None = None,
    fix_special_tokens: bool = False,
    chat_template: str | None = None,
    imatrix: Imatrix | None = None,
    overrides: Mapping[str, str] | None = None,
    split_max_bytes: int | None = None,
    strategy: Strategy = REFERENCE,
    warn: Callable[[str], None],
) -> Plan:
    """Plan one output for each recipe.

    name                general.name, in place of the source's own
    fix_special_tokens  repair eos and pad where they disagree with the chat template
    chat_template       in place of the source's own
    imatrix             importance of the columns, for every matrix that it has an entry for
    overrides           metadata by key, as `fields.overridden` takes it
    split_max_bytes     begin another shard where a file's tensors would take more
    strategy            how the codes of matrices are found
    warn                called with each warning about the source
    raises              InputError in its kinds: whatever is wrong with the source or does not fit together
                        UsageError: a recipe needs an importance matrix, or tokens of a GGUF file are to be repaired
    """
    source = read_source(
        weights, name=name, fix_special_tokens=fix_special_tokens, chat_template=chat_template, warn=warn
    )
    tensors = sorted(source.tensors, key=lambda tensor: (layer_of(tensor.gguf), tensor.gguf))
    facts = Facts(
        n_layers=source.network.layers,
        n_gqa=source.network.n_gqa,
        imatrix=imatrix is not None,
        tied=source.network.tied,
    )
    for recipe in recipes:
        recipe.check(facts)
    columns = {tensor.gguf: tensor.shape[-1] for tensor in tensors if len(tensor.shape) > 1}
    if imatrix:
        coverage(imatrix, columns.items(), warn)
    importance = {
        tensor.gguf: imatrix.of(tensor.gguf, tensor.shape[-1]) if imatrix and len(tensor.shape) > 1 else None
        for tensor in tensors
    }

    types = [{t.gguf: recipe.type_of(t.gguf, t.shape, facts) for t in tensors} for recipe in recipes]
    of_strategy = strategy.check(columns, types, warn)

    def output(recipe: Recipe, types: Mapping[str, QType]) -> Output:
        typed = [(t.gguf, t.shape, types[t.gguf]) for t in tensors]
        fallen = sum(recipe.wanted(name, shape, facts) is not qtype for name, shape, qtype in typed)
        if fallen:
            warn(f"{recipe.name}: {fallen} tensors get a fallback type, as their rows do not divide into its blocks")
        if recipe.needs_imatrix:
            _check_importance(recipe, typed, importance)
        fields = (
            *source.fields(recipe.file_type),
            Field("quantkit.version", Kind.STRING, __version__),
            Field("quantkit.recipe.name", Kind.STRING, recipe.name),
            Field("quantkit.recipe.sha256", Kind.STRING, recipe.sha256),
            Field(STRATEGY_KEY, Kind.STRING, strategy.name),
            *of_strategy,
            *_imatrix_fields(imatrix),
            *_source_fields(weights),
            *_lora_fields(weights),
        )
        return Output(recipe.name, _split(overridden(fields, overrides or {}), typed, split_max_bytes))

    outputs = tuple(map(output, recipes, types))
    files = [file for out in outputs for file in out.files]
    targets: dict[str, list[Target]] = {}
    for number, file in enumerate(files):
        for entry in file.tensors:
            target = Target(number, entry.qtype, len(file.header) + entry.offset)
            targets.setdefault(entry.name, []).append(target)
    jobs = tuple(
        Job(
            tensor.gguf,
            math.prod(tensor.shape[:-1]),
            tensor.shape[-1],
            tuple(weights.tensors[name] for name, _ in tensor.sources),
            tensor.values,
            importance[tensor.gguf],
            tuple(targets[tensor.gguf]),
        )
        for tensor in tensors
    )
    return Plan(outputs, jobs, strategy)


def _split(
    fields: tuple[Field, ...], typed: Sequence[tuple[str, tuple[int, ...], QType]], max_bytes: int | None
) -> tuple[OutputFile, ...]:
    """One file, or shards as llama.cpp's gguf-split makes them: the first has all keys, each has the split.* ones."""
    if max_bytes is None:
        return (OutputFile(fields, place(typed)),)
    shards: list[list[tuple[str, tuple[int, ...], QType]]] = [[]]
    for tensor in typed:
        if shards[-1] and data_bytes(place([*shards[-1], tensor])) > max_bytes:
            shards.append([])
        shards[-1].append(tensor)

    return tuple(
        OutputFile((*(fields if number == 0 else ()), *split_fields(number, len(shards), len(typed))), place(shard))
        for number, shard in enumerate(shards)
    )


def _check_importance(
    recipe: Recipe,
    typed: Sequence[tuple[str, tuple[int, ...], QType]],
    importance: Mapping[str, Values | None],
) -> None:
    """Every matrix in Q2_K has importance, the embedding and the head aside, as llama-quantize asks; TensorError."""
    for name, _, qtype in typed:
        if qtype is Q2_K and importance[name] is None and name not in USUALLY_WITHOUT:
            raise TensorError(f"{recipe.name} needs importance for this matrix", tensor=name)


def _imatrix_fields(imatrix: Imatrix | None) -> Iterator[Field]:
    """What importance went in: llama-quantize's keys but those that name a path, and the file's digest."""
    if imatrix is not None:
        yield Field("quantize.imatrix.entries_count", Kind.U32, len(imatrix.entries))
        yield Field("quantize.imatrix.chunks_count", Kind.U32, imatrix.chunk_count)
        yield Field("quantkit.imatrix.sha256", Kind.STRING, imatrix.sha256)


def _source_fields(weights: Weights) -> Iterator[Field]:
    """Repository and commit, if they are known; name and digest of each shard, taken while its tensors are read."""
    if weights.origin:
        for key, value in zip(ORIGIN_KEYS, (weights.origin.repo, weights.origin.revision), strict=True):
            yield Field(key, Kind.STRING, value)
    for number, shard in enumerate(weights.shards):
        yield Field(f"{SOURCE_KEY}{number}.name", Kind.STRING, shard.name)
        yield Field(f"{SOURCE_KEY}{number}.sha256", Kind.STRING, PENDING)


def _lora_fields(weights: Weights) -> Iterator[Field]:
    """Digest of each adapter's tensors, and the scale that it was asked for with."""
    for number, adapter in enumerate(weights.adapters):
        yield Field(f"{LORA_KEY}{number}.sha256", Kind.STRING, adapter.sha256)
        yield Field(f"{LORA_KEY}{number}.scale", Kind.F32, adapter.scale)


def shard_digests(weights: Weights, tensors: Mapping[str, str]) -> dict[str, str]:
    """The digest of each shard by file name: SHA-256 over a line "<sha256 of its bytes>  <name>" for each tensor of it
    that was read, sorted by name.

    tensors   the SHA-256 of each tensor's bytes, by name
    """
    files = {tensor.name: tensor.file for tensor in weights.tensors.values()}
    lines: dict[str, list[str]] = {shard.name: [] for shard in weights.shards}
    for name in sorted(tensors):
        if files[name] in weights.shards:  # and not in an adapter's file, which has a digest of its own
            lines[files[name].name].append(f"{tensors[name]}  {name}\n")
    return {shard: hashlib.sha256("".join(text).encode()).hexdigest() for shard, text in lines.items()}


def output_paths(
    outputs: Sequence[Output], source_name: str, wanted: Path | None, *, is_folder: bool = False
) -> list[list[Path]]:
    """The files of each output; shards are `<prefix>-00001-of-00003.gguf`.

    wanted     None: `<source>-<TYPE>.gguf` in the current folder; a name with "{type}": that template; a folder (or,
               for several outputs, a name without it): those default names there; else the file itself
    is_folder  wanted is one, though it may not be there yet
    """
    default = f"{source_name}-{{type}}.gguf"
    if wanted is None:
        template = Path(default)
    elif "{type}" not in wanted.name and (len(outputs) > 1 or is_folder or wanted.is_dir()):
        template = wanted / default
    else:
        template = wanted

    def shards(output: Output) -> list[Path]:
        path = template.with_name(template.name.replace("{type}", output.name))
        count = len(output.files)
        if COUNT_KEY not in {field.key for field in output.files[0].fields}:
            return [path]
        prefix = path.name.removesuffix(".gguf")
        return [path.with_name(shard_name(prefix, number, count)) for number in range(count)]

    return [shards(output) for output in outputs]
