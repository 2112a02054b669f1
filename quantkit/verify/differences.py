"""What in a file is not as its source gives it: in the keys and the table of tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from quantkit.checkpoint.json_file import shown
from quantkit.errors import GateError
from quantkit.gguf_io import Field, GGUFFile, Kind, TensorEntry, header, spelled
from quantkit.osio import InputFile

# Keys in which files of llama.cpp's tools may differ from ours of the same model: not there, and there instead.
_OURS_ALONE = ("quantkit.", "tokenizer.ggml.eot_token_id")
_THEIRS_ALONE = ("quantize.imatrix.file", "quantize.imatrix.dataset")
_SHOWN_CHARACTERS = 64  # on either side of where two texts part


@dataclass(frozen=True)
class Difference:
    """One thing in a file that is not as its source gives it.

    message  what it is
    place    file, tensor, row, column, key, offset, expected, found: those that apply, as errors have them
    """

    message: str
    place: Mapping[str, Any] = field(default_factory=dict)

    def error(self, hint: str | None = None) -> GateError:
        """The difference as an error."""
        return GateError(self.message, hint=hint, **self.place)

    def __str__(self) -> str:
        return str(self.error())


def differs(message: str, **place: Any) -> Difference:
    """A difference with its place."""
    return Difference(message, place)


def compare_tables(
    expected: Sequence[TensorEntry], found: Sequence[tuple[Path, TensorEntry]], *, ours: bool
) -> tuple[list[Difference], list[Difference]]:
    """Hold a file's tensors against those that its source gives.

    ours     their order is compared, too
    returns  those with which no weights can be compared: a tensor too few or too many, or of another shape;
             and other types than the recipe asks for, or another order
    """
    structure, types = [], []
    known = {tensor.name: tensor for tensor in expected}
    for path, tensor in found:
        wanted = known.pop(tensor.name, None)
        if wanted is None:
            structure.append(differs("a tensor that the source does not give", file=path, tensor=tensor.name))
        elif wanted.shape != tensor.shape:
            shapes = {"expected": list(wanted.shape), "found": list(tensor.shape)}
            structure.append(differs("another shape", file=path, tensor=tensor.name, **shapes))
        elif wanted.qtype is not tensor.qtype:
            message = "another type than the file's recipe gives"
            types.append(differs(message, file=path, tensor=tensor.name, expected=wanted.qtype, found=tensor.qtype))
    structure += [differs("a tensor is missing", file=found[0][0], tensor=name) for name in known]
    if ours and not structure:
        pairs = zip(expected, found, strict=True)
        moved = ((path, tensor.name) for wanted, (path, tensor) in pairs if wanted.name != tensor.name)
        types += [differs("the tensors stand in another order", file=path, tensor=name) for path, name in moved][:1]
    return structure, types


def compare_keys(
    expected: Sequence[Field], found: GGUFFile, *, ours: bool, claims: Collection[str] = ()
) -> list[Difference]:
    """Hold a file's keys against those that its conversion writes.

    ours    every key is compared, with its place; else those that llama.cpp's converter and llama-quantize write too
    claims  keys in which the file is taken at its word
    """
    wanted = {field.key: field for field in expected if field.key not in claims}
    fields = {key: field for key, field in found.fields.items() if key not in claims}
    differences = []
    for key in dict.fromkeys((*wanted, *fields)):
        here, there = wanted.get(key), fields.get(key)
        if here is None:
            if ours or key not in _THEIRS_ALONE:
                differences.append(differs("a key that the conversion does not write", file=found.path, key=key))
        elif there is None:
            if ours or not key.startswith(_OURS_ALONE):
                differences.append(differs("a key is missing", file=found.path, key=key))
        elif spelled(here) != spelled(there):
            differences.append(differs("another value", file=found.path, key=key, **_apart(here, there)))
    if ours and not differences and list(wanted) != list(fields):
        key = next(key for key, other in zip(wanted, fields, strict=True) if key != other)
        differences.append(differs("the keys stand in another order", file=found.path, key=key))
    return differences


def compare_spelling(file: InputFile, found: GGUFFile) -> Iterator[Difference]:
    """The header's bytes are those that its keys and table have, padding included, in the version that is written."""
    data = bytes(file.read(found.data_offset))
    respelled = header(list(found.fields.values()), list(found.tensors.values()))
    if data != respelled:
        at = next(i for i, (a, b) in enumerate(zip_longest(data, respelled)) if a != b)
        facts = {"expected": _byte(respelled, at), "found": _byte(data, at)}
        yield differs("the header is spelled in another way", file=found.path, offset=at, **facts)


def _apart(expected: Field, found: Field) -> dict[str, Any]:
    """Where and how two values part, for an error."""
    if (expected.kind, expected.item_kind) != (found.kind, found.item_kind):
        return {"expected": expected.kind.name, "found": found.kind.name}
    if expected.kind is Kind.STRING:
        at = next(i for i, (a, b) in enumerate(zip_longest(expected.value, found.value)) if a != b)
        around = slice(max(0, at - _SHOWN_CHARACTERS), at + _SHOWN_CHARACTERS)  # a digest whole, a template in part
        return {"expected": shown(expected.value[around]), "found": shown(found.value[around])}
    if expected.kind is Kind.ARRAY:
        pairs = enumerate(zip_longest(expected.value, found.value))
        at = next((i for i, (a, b) in pairs if a != b), 0)
        return {
            name: f"{shown(side.value[at]) if at < len(side.value) else 'none'} as item {at}"
            for name, side in (("expected", expected), ("found", found))
        }
    return {"expected": shown(expected.value), "found": shown(found.value)}


def _byte(data: bytes, at: int) -> str:
    return f"byte {data[at]:#04x}" if at < len(data) else "its end"
