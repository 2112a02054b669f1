"""A GGUF file as a source: its own keys say which tensors it must have, and all of them are kept.

The result has the bytes that llama-quantize makes of the same file; its tensors are F32, F16 or BF16, since a second
rounding on top of another would lose quality.  A file that is only looked at may have any type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quantkit.arch import FAMILIES, Family, MappedTensor, Network
from quantkit.arch.rope import Rope
from quantkit.checkpoint import TensorInfo, Weights
from quantkit.checkpoint.header import DTYPES, check_tensor_name
from quantkit.checkpoint.json_file import shown
from quantkit.errors import FormatError, UnsupportedError
from quantkit.gguf_io import OURS, Field, GGUFFile, Kind, open_shards
from quantkit.osio import InputFile
from quantkit.source.record import QUANTIZATION_VERSION, Source, check_tensors

# The attributes of Network and Rope, each with its key behind "<architecture>.".
_NETWORK_KEYS = {
    "layers": "block_count",
    "hidden": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "feed_forward": "feed_forward_length",
}
_ROPE_KEYS = {
    "rotary": "rope.dimension_count",
    "context": "context_length",
    "original_context": "rope.scaling.original_context_length",
}
_ROPE_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
_ALIGNMENT_KEY = "general.alignment"  # of the data section that is left behind


class GGUFWeights(Weights):
    """An open GGUF file, or all shards of one.

    path    the file, or the first shard
    name    the file's, without what names its type or shard: model for model-BF16.gguf
    fields  by key, in file order
    """

    def __init__(
        self,
        path: Path,
        fields: Mapping[str, Field],
        tensors: Mapping[str, TensorInfo],
        files: Mapping[Path, InputFile],
    ) -> None:
        super().__init__(path, _model_name(path), tensors, files)
        self.fields = dict(fields)


def open_gguf(path: Path, *, any_type: bool = False) -> GGUFWeights:
    """Open a GGUF file, or the model that a first shard begins; its shards are found beside it by its name.

    any_type  let tensors have any type that can be decoded: the weights are not converted
    raises    InputError   a file is missing
              FormatError, TensorError
                           a file is no GGUF, contradicts itself or the other shards, or is a shard and not the first
              UnsupportedError  a tensor is of another type than F32, F16, BF16, or of one that cannot be decoded
              DiskError    reading fails
    """
    with ExitStack() as on_failure:
        shards = open_shards(path, on_failure)
        tensors = {tensor.name: tensor for _, header in shards for tensor in _tensors(header, any_type)}
        on_failure.pop_all()
    return GGUFWeights(path, shards[0][1].fields, tensors, {file.path: file for file, _ in shards})


def _tensors(file: GGUFFile, any_type: bool) -> list[TensorInfo]:
    for tensor in file.tensors.values():
        check_tensor_name(tensor.name, file.path)
        if not any_type and tensor.qtype not in DTYPES.values():
            raise UnsupportedError(
                "the file is quantized already, and quantizing again loses quality",
                hint=f"start from a file in {', '.join(DTYPES)}, or from the checkpoint",
                file=file.path,
                tensor=tensor.name,
                found=tensor.qtype,
            )
    return [
        TensorInfo(tensor.name, tensor.qtype, tensor.shape, file.path, file.data_offset + tensor.offset)
        for tensor in file.tensors.values()
    ]


def _model_name(path: Path) -> str:
    stem = re.sub(r"(?<=.)-[0-9]{5}-of-[0-9]{5}$", "", path.name.removesuffix(".gguf"))
    return re.sub(rf"(?i)(?<=.)[-._](?:{'|'.join(DTYPES)})$", "", stem)


def gguf_source(weights: GGUFWeights, name: str | None) -> Source:
    """The file with its network, its tensors checked.

    name    general.name, in place of the file's
    raises  FormatError, TensorError, UnsupportedError
    """
    family = find_gguf_family(weights)
    network = read_gguf_network(weights, family)
    shapes = {tensor.gguf: tensor.shape for tensor in family.map_tensors(network)}
    shapes |= {factors: (network.rope.rotary // 2,) for factors in _ROPE_FACTORS if factors in weights.tensors}
    tensors = [MappedTensor(tensor, shape, ((tensor, shape),)) for tensor, shape in shapes.items()]
    check_tensors(weights, tensors, stated_in="the file's keys")
    kept = {key: field for key, field in weights.fields.items() if key != _ALIGNMENT_KEY and not key.startswith(OURS)}
    if name is not None:
        kept["general.name"] = Field("general.name", Kind.STRING, name)

    def fields(file_type: int) -> list[Field]:
        own = (Field("general.file_type", Kind.U32, file_type), QUANTIZATION_VERSION)
        return list((kept | {field.key: field for field in own}).values())

    return Source(weights, network, tensors, fields)


def find_gguf_family(weights: GGUFWeights) -> Family:
    """The family that general.architecture names."""
    kind = weights.fields.get("general.type")
    if kind is not None and kind.value != "model":
        raise UnsupportedError(
            "is no model", file=weights.path, key=kind.key, expected="model", found=shown(kind.value)
        )
    name = needed(weights.fields, "general.architecture", Kind.STRING, weights.path)
    for family in FAMILIES:
        if family.gguf_name == name:
            return family
    raise UnsupportedError(
        "this architecture is not supported",
        hint=f"supported today: {', '.join(sorted({family.gguf_name for family in FAMILIES}))}",
        file=weights.path,
        key="general.architecture",
        found=shown(name),
    )


def read_gguf_network(weights: GGUFWeights, family: Family) -> Network:
    """The network that the keys describe; its rope is without factors, which are tensors of the file."""

    def sizes(keys: Mapping[str, str]) -> dict[str, int]:
        return {attribute: _size(weights, f"{family.gguf_name}.{key}") for attribute, key in keys.items()}

    network, rope = sizes(_NETWORK_KEYS), sizes(_ROPE_KEYS)
    theta: float = needed(weights.fields, f"{family.gguf_name}.rope.freq_base", Kind.F32, weights.path)
    if network["layers"] > len(weights.tensors):
        raise _impossible(weights, f"{family.gguf_name}.block_count", f"no more than {len(weights.tensors)} tensors")
    for attribute, whole in (("heads", network["hidden"]), ("kv_heads", network["heads"])):
        if whole % network[attribute]:
            raise _impossible(weights, f"{family.gguf_name}.{_NETWORK_KEYS[attribute]}", f"a divisor of {whole}")
    head_width = network["hidden"] // network["heads"]
    if rope["rotary"] % 2 or rope["rotary"] > head_width:
        key = f"{family.gguf_name}.{_ROPE_KEYS['rotary']}"
        raise _impossible(weights, key, f"an even number of the {head_width} dimensions of a head")
    return Network(
        **network,
        head_width=head_width,
        vocabulary=len(needed(weights.fields, "tokenizer.ggml.tokens", Kind.ARRAY, weights.path)),
        rope=Rope(theta, rope["rotary"], rope["context"], rope["original_context"]),
        tied=family.head.gguf not in weights.tensors,
    )


def _size(weights: GGUFWeights, key: str) -> int:
    value: int = needed(weights.fields, key, Kind.U32, weights.path)
    if not 0 < value < 1 << 31:
        raise _impossible(weights, key, "1 to 2147483647")
    return value


def needed(fields: Mapping[str, Field], key: str, kind: Kind, file: Path) -> Any:
    """The value of key, of that kind, as llama.cpp demands it; raises FormatError for none, or one of another kind."""
    field = fields.get(key)
    if field is None:
        raise FormatError("a needed key is missing", file=file, key=key, expected=kind.name, found="nothing")
    if field.kind is not kind:
        raise FormatError("a value has the wrong type", file=file, key=key, expected=kind.name, found=field.kind.name)
    return field.value


def _impossible(weights: GGUFWeights, key: str, expected: str) -> FormatError:
    found = weights.fields[key].value
    return FormatError("an impossible size", file=weights.path, key=key, expected=expected, found=found)
