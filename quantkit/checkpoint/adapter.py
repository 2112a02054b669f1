"""A LoRA adapter on disk, as PEFT saves it: adapter_config.json, and its tensors in one safetensors file.

Names of tensors, behind "base_model.model."; the adapter's own name may stand in them, as in ".lora_A.default.weight":

    MODULE.lora_A.weight             (rank, inputs)     MODULE.lora_B.weight        (outputs, rank)
    MODULE.lora_embedding_A          (rank, tokens)     MODULE.lora_embedding_B     (width, rank)
    MODULE.lora_magnitude_vector     (outputs,)         with DoRA
    MODULE.weight, MODULE.modules_to_save.weight        a whole tensor: it takes the place of the model's
    MODULE.base_layer.weight                            likewise, and a pair is added to it
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from quantkit.checkpoint.adapter_config import ADAPTER_CONFIG, AdapterConfig, read_adapter_config
from quantkit.checkpoint.header import TensorInfo, read_header
from quantkit.checkpoint.json_file import shown
from quantkit.checkpoint.snapshot import origin_of
from quantkit.checkpoint.weights import Weights
from quantkit.errors import ConfigError, InputError, TensorError, UnsafeError, UnsupportedError, UsageError
from quantkit.osio import InputFile, is_file, is_folder

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_LARGEST_F32 = 3.4028234663852886e38

_OWN_NAME = r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?"
_PART = re.compile(
    r"base_model\.model\.(?P<module>.+?)\."
    rf"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector){_OWN_NAME}(?:\.weight)?"
)
_WHOLE = re.compile(
    rf"base_model\.model\.(?P<module>.+?)(?:(?P<under>\.base_layer)|\.modules_to_save{_OWN_NAME})?\.weight"
)


@dataclass(frozen=True)
class Lora:
    """An adapter that is asked for.

    path   its folder
    scale  what its change is multiplied by, beside what its config says
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Raises UsageError."""
        if not abs(self.scale) <= _LARGEST_F32:
            raise UsageError("the scale of an adapter is no float32 number", file=self.path, found=self.scale)

    def __str__(self) -> str:
        """As --lora takes it: "DIR", or "DIR:SCALE" with every digit of the scale."""
        return str(self.path) if self.scale == 1 else f"{self.path}:{self.scale!r}"


@dataclass(frozen=True)
class Pair:
    """The change of one module's matrix: scale * (b x a), or its transpose for an embedding.

    a           (rank, inputs); of an embedding (rank, tokens)
    b           (outputs, rank); of an embedding (width, rank)
    scale       with the adapter's
    magnitude   of each row, with DoRA
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    of_embedding: bool
    magnitude: TensorInfo | None


@dataclass(frozen=True)
class Whole:
    """A tensor that takes the place of the model's.

    under  a pair is added to it; what else has the model's tensor keeps this one
    """

    tensor: TensorInfo
    under: bool


class Adapter(Weights):
    """An open adapter.

    config  adapter_config.json
    scale   that it was asked for with, a float32 number
    pairs   by the module's name in the model: "model.layers.0.mlp.down_proj"
    wholes  by the tensor's name in the model: "lm_head.weight"
    """

    def __init__(self, folder: Path, config: AdapterConfig, scale: float, file: InputFile) -> None:
        origin = origin_of(folder)
        name = origin.name if origin else folder.resolve().name
        super().__init__(folder, name, read_header(file), {file.path: file}, origin)
        self.config = config
        (self.scale,) = struct.unpack("<f", struct.pack("<f", scale))
        self.pairs, self.wholes = _sorted_out(self.tensors, config, self.scale)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that decide what it changes."""
        return (*self.shards, self.config.file)

    @cached_property
    def sha256(self) -> str:
        """Of the lines "<sha256 of a tensor's bytes>  <its name>", sorted by name; raises DiskError."""
        lines = (f"{self.tensor_sha256(self.tensors[name])}  {name}\n" for name in sorted(self.tensors))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def tensor_sha256(self, tensor: TensorInfo) -> str:
        """Of a tensor's bytes; raises DiskError."""
        return self._files[tensor.file].sha256(tensor.offset, tensor.nbytes)


def is_adapter(path: Path) -> bool:
    """Whether path is the folder of an adapter."""
    return is_folder(path) and is_file(path / ADAPTER_CONFIG)


def open_adapter(lora: Lora) -> Adapter:
    """Open an adapter and check all that can be checked without its model.

    The folder may also be one that holds the adapter's own, as PEFT makes one for each adapter that has a name.

    raises  InputError   no folder, or a file is missing from it
            ConfigError, FormatError, TensorError, UnsupportedError
                         the config or the tensors are not sound, contradict each other, or are of another kind
            UnsafeError  tensors only as a pickle
            DiskError    reading fails
    """
    folder = _find(lora.path)
    config = read_adapter_config(folder / ADAPTER_CONFIG)
    if not is_file(folder / ADAPTER_WEIGHTS) and is_file(folder / _PICKLE):
        raise UnsafeError(
            "the adapter is a pickle, which runs code when it is loaded",
            hint="if you trust it, load it with PEFT and save it again: save_pretrained(DIR) writes safetensors",
            file=folder / _PICKLE,
            expected=ADAPTER_WEIGHTS,
        )
    with ExitStack() as on_failure:
        file = on_failure.enter_context(InputFile(folder / ADAPTER_WEIGHTS))
        adapter = Adapter(folder, config, lora.scale, file)
        on_failure.pop_all()
    return adapter


def _find(folder: Path) -> Path:
    """The folder with the adapter: this one, or the only one in it that has one."""
    if not is_folder(folder):
        raise InputError("is not a folder", hint=f"name the folder that holds {ADAPTER_CONFIG}", file=folder)
    if is_adapter(folder):
        return folder
    try:
        inside = sorted(path for path in folder.iterdir() if is_adapter(path))
    except OSError as error:
        raise InputError(f"cannot be listed: {error.strerror}", file=folder) from error
    if len(inside) == 1:
        return inside[0]
    names = ", ".join(shown(path.name) for path in inside)
    raise InputError(
        "several adapters are in this folder" if inside else "no adapter is in this folder",
        hint="name the folder of one of them" if inside else "it is not the model but what PEFT saves beside it",
        file=folder,
        expected=ADAPTER_CONFIG,
        found=names or None,
    )


@dataclass
class _Parts:
    """The tensors of one module as they are found, by what they are."""

    found: dict[str, TensorInfo] = field(default_factory=dict)

    def pair(self, module: str, config: AdapterConfig, scale: float) -> Pair:
        """They make a pair of the rank that the config says; raises TensorError, ConfigError."""
        kinds = self.found.keys() - {"lora_magnitude_vector"}
        any_one = next(iter(self.found.values()))
        needed = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in kinds else ("lora_A", "lora_B")
        if kinds != set(needed):
            raise TensorError(
                "a module's tensors are no pair",
                file=any_one.file,
                tensor=any_one.name,
                expected=" and ".join(needed),
                found=", ".join(sorted(self.found)),
            )
        a, b = (self.found[name] for name in needed)
        rank = config.rank_of(module)
        for tensor, dimension in ((a, 0), (b, 1)):
            if len(tensor.shape) != 2 or tensor.shape[dimension] != rank:
                expected = f"[{rank}, ...]" if dimension == 0 else f"[..., {rank}]"
                raise TensorError(
                    f"the shape contradicts the rank in {ADAPTER_CONFIG}",
                    file=tensor.file,
                    tensor=tensor.name,
                    expected=expected,
                    found=list(tensor.shape),
                )
        total = config.scale_of(module) * scale
        if not abs(total) <= _LARGEST_F32:
            raise ConfigError(
                "alpha is so large that the scale is no float32 number",
                file=config.file,
                tensor=a.name,
                expected=f"at most {_LARGEST_F32:g}",
                found=total,
            )
        return Pair(a, b, total, needed[0] == "lora_embedding_A", self._magnitude(any_one, config))

    def _magnitude(self, any_one: TensorInfo, config: AdapterConfig) -> TensorInfo | None:
        magnitude = self.found.get("lora_magnitude_vector")
        if config.dora != (magnitude is not None):
            raise TensorError(
                f"use_dora in {ADAPTER_CONFIG} and the tensors contradict each other",
                file=any_one.file,
                tensor=any_one.name,
                expected="a lora_magnitude_vector" if config.dora else "none",
                found=", ".join(sorted(self.found)),
            )
        return magnitude


def _sorted_out(
    tensors: Mapping[str, TensorInfo], config: AdapterConfig, scale: float
) -> tuple[dict[str, Pair], dict[str, Whole]]:
    """The pairs by module and the whole tensors by name; raises TensorError, ConfigError, UnsupportedError."""
    parts: dict[str, _Parts] = {}
    wholes: dict[str, Whole] = {}
    own_names = set()
    for tensor in tensors.values():
        match = _PART.fullmatch(tensor.name) or _WHOLE.fullmatch(tensor.name)
        if match is None:
            raise UnsupportedError(
                "an adapter's tensor of no known kind",
                hint="biases cannot be merged, as the matrices of the base have none"
                if tensor.name.endswith("bias")
                else "PEFT's names are base_model.model.<module>.lora_A.weight and so on",
                file=tensor.file,
                tensor=tensor.name,
            )
        module = match["module"]
        own_names.add(match["adapter"])
        if "part" in match.groupdict():
            known, name = parts.setdefault(module, _Parts()).found, match["part"]
            twice = known.setdefault(name, tensor)
        else:
            twice = wholes.setdefault(f"{module}.weight", Whole(tensor, match["under"] is not None)).tensor
        if twice is not tensor:
            raise TensorError(
                "two tensors mean the same",
                hint="save each adapter of the model by itself" if len(own_names - {None}) > 1 else None,
                file=tensor.file,
                tensor=tensor.name,
                found=twice.name,
            )
    if len(own_names - {None}) > 1:
        found = ", ".join(sorted(shown(name) for name in own_names if name))
        raise UnsupportedError(
            "several adapters are in one file",
            hint="save each adapter of the model by itself",
            file=next(iter(tensors.values())).file,
            found=found,
        )
    return {module: found.pair(module, config, scale) for module, found in parts.items()}, wholes
