"""The small checkpoint as a GGUF file, and edited copies of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import small

from quantkit.convert import convert
from quantkit.gguf_io import Field, Kind, data_bytes, header, place, read_gguf
from quantkit.plan import make_plan, output_paths
from quantkit.qtypes import QType
from quantkit.recipe import preset
from quantkit.source import open_source


@dataclass
class Model:
    """What a GGUF file is made of.

    fields   by key, in file order
    tensors  NumPy shape, type and bytes by name, in file order
    """

    fields: dict[str, Field] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], QType, bytes]] = field(default_factory=dict)

    def set(self, key: str, kind: Kind, value: object) -> None:
        """Give key another value, in place or at the end."""
        self.fields[key] = Field(key, kind, value)


def read(path: Path) -> Model:
    file, content = read_gguf(path), path.read_bytes()
    model = Model(dict(file.fields))
    for tensor in file.tensors.values():
        start = file.data_offset + tensor.offset
        model.tensors[tensor.name] = (tensor.shape, tensor.qtype, content[start : start + tensor.nbytes])
    return model


def write(path: Path, model: Model) -> Path:
    placed = place((name, shape, qtype) for name, (shape, qtype, _) in model.tensors.items())
    section = bytearray(data_bytes(placed))
    for entry in placed:
        section[entry.offset : entry.offset + entry.nbytes] = model.tensors[entry.name][2]
    path.write_bytes(header(list(model.fields.values()), placed) + section)
    return path


def edited(base: Path, path: Path, edit: Callable[[Model], object]) -> Path:
    """Write a copy of base to path, after edit changed what it is made of."""
    model = read(base)
    edit(model)
    return write(path, model)


def run(source: Path, out: Path, types: Sequence[str], **options: object) -> dict[str, Path]:
    """Convert source into the folder out, `<TYPE>.gguf` for each type; options are make_plan's."""
    out.mkdir(parents=True, exist_ok=True)
    with open_source(source) as weights:
        recipes = [preset(name) for name in types]
        plan = make_plan(weights, recipes, warn=pytest.fail, **options)  # type: ignore[arg-type]
        paths = [path for (path,) in output_paths(plan.outputs, weights.name, out / "{type}.gguf")]
        convert(weights, plan, paths)
    return dict(zip(types, paths, strict=True))


def make(folder: Path, kind: str = "BF16", dtype: str = "bfloat16") -> Path:
    """The small checkpoint, its weights of dtype, as a GGUF file of that kind in folder."""
    checkpoint = small.write(folder / f"small_{dtype}", dtype=dtype)
    return run(checkpoint, folder, [kind])[kind].rename(folder / f"small-{dtype}-{kind}.gguf")
