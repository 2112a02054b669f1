"""model.safetensors.index.json: which shard holds which tensor, and whether the shards agree.

`metadata.total_size` is not compared: savers disagree on how it counts tied weights, and each shard's size is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from quantkit.checkpoint.header import TensorInfo, check_tensor_name
from quantkit.checkpoint.json_file import read_json, shown
from quantkit.errors import FormatError, TensorError, UnsafeError
from quantkit.osio import is_file

# Names that Windows opens as devices whatever their folder and extension; refused everywhere, so that a checkpoint
# means the same on every system.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def read_index(index: Path) -> dict[str, str]:
    """The map from tensor name to shard file name; the shards are there.

    Shards are judged by name, not by where a link leads: in a hub cache every file is a link out of its folder.

    raises  InputError   the index is missing or unreadable
            FormatError  it is no index, or a shard it names is not in its folder
            UnsafeError  it names a shard by more than a plain file name
    """
    weight_map = _weight_map(index)
    for shard in sorted(set(weight_map.values())):
        if not is_file(index.parent / shard):
            hint = "fetch the checkpoint again, all of its files"
            raise FormatError("the index names a shard that is missing", hint=hint, file=index, found=shown(shard))
    return weight_map


def shard_names(index: Path) -> list[str]:
    """The shards that an index names, whether or not they are there; raises as read_index does."""
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            "is not an index of shards",
            file=index,
            key="weight_map",
            expected="an object of tensor names and shard names",
            found=shown(weight_map),
        )
    for tensor, shard in weight_map.items():
        check_tensor_name(tensor, index)
        if not isinstance(shard, str):
            raise FormatError("a shard's name is not a string", file=index, tensor=tensor, found=shown(shard))
        if not is_plain_name(shard):
            raise UnsafeError(
                "a shard's name is not a plain file name",
                hint="shards stand beside their index; do not trust this checkpoint",
                file=index,
                tensor=tensor,
                found=shown(shard),
            )
    return weight_map


def is_plain_name(name: str) -> bool:
    """Whether name is a file in its own folder on Linux, macOS and Windows: no path, drive, stream, device."""
    return (
        name.isprintable()  # no NUL, no line end, no sign that turns the reading direction
        and not set(name) & set("/\\:")
        and not name.endswith((".", " "))  # Windows drops these, so "..  " is ".."
        and name.split(".")[0].strip().lower() not in _DEVICES | {""}
    )


def merge_shards(
    weight_map: Mapping[str, str], shards: Mapping[str, Mapping[str, TensorInfo]], index: Path
) -> dict[str, TensorInfo]:
    """The tensors of all shards in one table, which is exactly what the index promises.

    shards  the header of each shard by file name
    raises  TensorError  a tensor stands in two shards, in another shard than the index says, in none, or in no index
    """
    copies = Counter(name for header in shards.values() for name in header)
    tensors: dict[str, TensorInfo] = {}
    for shard, header in shards.items():
        for name, tensor in header.items():
            if copies[name] > 1:
                found = ", ".join(other for other, names in shards.items() if name in names)
                raise TensorError("a tensor stands in more than one shard", file=index, tensor=name, found=found)
            if name not in weight_map:
                raise TensorError("a tensor is missing from the index", file=index, tensor=name, found=f"it in {shard}")
            if weight_map[name] != shard:
                raise TensorError(
                    "a tensor stands in another shard", file=index, tensor=name, expected=weight_map[name], found=shard
                )
            tensors[name] = tensor
    for name in weight_map:
        if name not in tensors:
            raise TensorError("a tensor is missing", file=index.parent / weight_map[name], tensor=name)
    return tensors
