"""Models in several GGUF files, as llama.cpp's gguf-split cuts them: all keys are in the first, split.* in each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from quantkit.errors import FormatError, TensorError
from quantkit.gguf_io.fields import Field, Kind
from quantkit.gguf_io.reader import GGUFFile, read_open_gguf
from quantkit.osio import InputFile

COUNT_KEY = "split.count"


def shard_name(prefix: str, number: int, count: int) -> str:
    """The file name of shard `number`, from 0, of `count`; llama.cpp finds the others of a first shard by it."""
    return f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"


def split_fields(number: int, count: int, n_tensors: int) -> tuple[Field, ...]:
    """The keys of shard `number`, from 0, of `count`, where all have n_tensors together."""
    return (
        Field("split.no", Kind.U16, number),
        Field(COUNT_KEY, Kind.U16, count),
        Field("split.tensors.count", Kind.I32, n_tensors),
    )


def open_shards(path: Path, opened: ExitStack) -> list[tuple[InputFile, GGUFFile]]:
    """Open a GGUF file, or the model that a first shard begins, and check the headers against each other.

    path     of the file or the first shard; the other shards are found beside it by its name
    opened   closes the files
    returns  each open file with what its header says, in order
    raises   InputError   a file is missing
             FormatError, UnsupportedError, TensorError
                          a file is no sound GGUF, contradicts the other shards, or is a shard and not the first
             DiskError    reading fails
    """
    file = opened.enter_context(InputFile(path))
    shards = [(file, read_open_gguf(file))]
    for other in shard_paths(shards[0][1])[1:]:
        file = opened.enter_context(InputFile(other))
        shards.append((file, read_open_gguf(file)))
    if len(shards) > 1:
        check_shards([header for _, header in shards])
    return shards


def shard_paths(first: GGUFFile) -> list[Path]:
    """The files of the model that `first` begins: itself alone, or all shards, in its own folder and in order.

    raises  FormatError  it is a shard, and not by name the first
    """
    field = first.fields.get(COUNT_KEY)
    if field is None or field.kind is not Kind.U16 or field.value < 2:
        return [first.path]
    ending = shard_name("", 0, field.value)
    if not first.path.name.endswith(ending):
        hint = "name the first shard; the others are found beside it"
        raise FormatError("is not the first shard", hint=hint, file=first.path, expected=f"a name with {ending}")
    prefix = first.path.name.removesuffix(ending)
    return [first.path.with_name(shard_name(prefix, number, field.value)) for number in range(field.value)]


def check_shards(shards: Sequence[GGUFFile]) -> None:
    """Shards, in order, are what their keys say, and no tensor stands in two; raises FormatError, TensorError."""
    n_tensors = sum(len(shard.tensors) for shard in shards)
    seen: set[str] = set()
    for number, shard in enumerate(shards):
        for expected in split_fields(number, len(shards), n_tensors):
            found = shard.fields.get(expected.key)
            if found != expected:
                raise FormatError(
                    "a shard does not fit the others",
                    hint="fetch all shards again, from one place",
                    file=shard.path,
                    key=expected.key,
                    expected=f"{expected.kind.name} {expected.value}",
                    found=f"{found.kind.name} {found.value}" if found and found.kind is not Kind.ARRAY else "none",
                )
        for name in shard.tensors:
            if name in seen:
                raise TensorError("a tensor stands in more than one shard", file=shard.path, tensor=name)
            seen.add(name)
