"""`quantkit inspect`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.units import size

if TYPE_CHECKING:
    from quantkit.gguf_io import Field, GGUFFile

SCHEMA = {"name": "quantkit.inspect", "version": 1}
_SHOWN_ITEMS = 3
_SHOWN_CHARACTERS = 80


@click.command("inspect", short_help="Show what a GGUF file holds.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Everything, arrays in full, as JSON on stdout.")
def command(file: Path, tensors: bool, as_json: bool) -> None:
    """Show the keys and tensors of the GGUF file FILE, after checking that its structure is sound."""
    from quantkit.gguf_io import read_gguf

    gguf = read_gguf(file)
    if as_json:
        click.echo(json.dumps(_as_json(gguf), indent=2))
        return
    types = Counter(tensor.qtype.name for tensor in gguf.tensors.values())
    n_weights = sum(tensor.n_weights for tensor in gguf.tensors.values())
    mix = ", ".join(f"{count} {name}" for name, count in types.most_common())
    bits = 8 * sum(tensor.nbytes for tensor in gguf.tensors.values()) / max(n_weights, 1)
    click.echo(f"{file}: GGUF {gguf.version}, {size(gguf.file_bytes)}, {n_weights:,} weights, {bits:.2f} bits/weight")
    click.echo(f"{len(gguf.tensors)} tensors: {mix}\n")
    width = max((len(key) for key in gguf.fields), default=0)
    for field in gguf.fields.values():
        click.echo(f"{field.key.ljust(width)}  {_shown(field)}")
    if tensors:
        click.echo()
        for tensor in gguf.tensors.values():
            shape = " x ".join(map(str, tensor.shape))
            click.echo(f"{tensor.qtype.name:7} {size(tensor.nbytes):>10}  {tensor.name}  {shape}")


def _shown(field: Field) -> str:
    if field.item_kind is None:
        text = json.dumps(field.value, ensure_ascii=False)
        return (
            text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(field.value)} characters)"
        )
    some = ", ".join(json.dumps(item, ensure_ascii=False) for item in field.value[:_SHOWN_ITEMS])
    more = ", …" if len(field.value) > _SHOWN_ITEMS else ""
    return f"[{some}{more}] ({len(field.value)} {field.item_kind.name.lower()})"


def _as_json(gguf: GGUFFile) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "version": gguf.version,
        "file_bytes": gguf.file_bytes,
        "data_offset": gguf.data_offset,
        "fields": {
            field.key: {"kind": (field.item_kind or field.kind).name, "value": field.value}
            for field in gguf.fields.values()
        },
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.qtype.name,
                "shape": list(tensor.shape),
                "offset": tensor.offset,
                "nbytes": tensor.nbytes,
            }
            for tensor in gguf.tensors.values()
        ],
    }
