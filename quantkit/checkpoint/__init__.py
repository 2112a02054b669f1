"""A fine-tuned checkpoint on disk: config.json, and weights in safetensors files read row by row."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quantkit.checkpoint.adapter import Adapter, Lora, Pair, Whole, is_adapter, open_adapter
from quantkit.checkpoint.header import TensorInfo, read_header
from quantkit.checkpoint.index import merge_shards, read_index
from quantkit.checkpoint.json_file import read_json, shown
from quantkit.checkpoint.snapshot import (
    INDEX,
    PICKLE_HINT,
    PICKLES,
    SINGLE,
    Origin,
    fetch_snapshot,
    is_hub_id,
    origin_of,
)
from quantkit.checkpoint.weights import Weights
from quantkit.errors import ConfigError, InputError, UnsafeError
from quantkit.osio import InputFile, is_file, is_folder

__all__ = [
    "INDEX",
    "SINGLE",
    "Adapter",
    "Checkpoint",
    "Lora",
    "Origin",
    "Pair",
    "TensorInfo",
    "Weights",
    "Whole",
    "is_adapter",
    "is_hub_id",
    "locate",
    "open_adapter",
    "open_checkpoint",
]

CONFIG = "config.json"


class Checkpoint(Weights):
    """An open checkpoint.

    path       the folder
    name       the folder's own name; of a snapshot from the hub, its repository's
    config     config.json
    tokenizer  the folder with the tokenizer's files
    """

    def __init__(
        self, path: Path, config: dict[str, Any], tensors: Mapping[str, TensorInfo], files: Mapping[Path, InputFile]
    ) -> None:
        origin = origin_of(path)
        own_name = path.resolve().name if path.name in ("", "..") else path.name
        super().__init__(path, origin.name if origin else own_name, tensors, files, origin)
        self.config = config
        self.tokenizer = path


def locate(source: Path, *, weights: bool = True) -> Path:
    """Where a source is on this machine: a hub id that is no local path is fetched, anything else stays as it is.

    weights  False leaves the weights on the hub
    raises   HubError, UnsafeError, InputError, UsageError, DiskError, Paused: as fetch_snapshot does
    """
    if is_file(source) or is_folder(source) or not is_hub_id(source.as_posix()):
        return source
    return fetch_snapshot(source.as_posix(), weights=weights)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder and check all that can be checked without reading weights.

    The weights are `model.safetensors`, or else the shards that `model.safetensors.index.json` names; where both exist
    the single file counts, as in transformers (`_get_resolved_checkpoint_files`).

    raises  InputError   no folder, or a file is missing from it
            ConfigError, FormatError, TensorError, UnsupportedError
                         config.json, the index or a shard is not sound, or holds what quantkit does not convert
            UnsafeError  weights only as pickles, or an index that points out of its folder
            DiskError    reading fails
    """
    if not is_folder(folder):
        hint = f"name the folder that holds {CONFIG} and the safetensors files"
        raise InputError("is not a folder", hint=hint, file=folder)
    config = _read_config(folder)
    with ExitStack() as on_failure:

        def opened(name: str) -> InputFile:
            return on_failure.enter_context(InputFile(folder / name))

        if is_file(folder / SINGLE):
            files = {SINGLE: opened(SINGLE)}
            tensors = read_header(files[SINGLE])
        elif is_file(folder / INDEX):
            weight_map = read_index(folder / INDEX)
            files = {name: opened(name) for name in sorted(set(weight_map.values()))}
            headers = {name: read_header(file) for name, file in files.items()}
            tensors = merge_shards(weight_map, headers, folder / INDEX)
        else:
            raise _no_weights(folder)
        on_failure.pop_all()
    return Checkpoint(folder, config, tensors, {file.path: file for file in files.values()})


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not is_file(path):
        hint = "this is an adapter: name its base model" if is_adapter(folder) else "copy it from the base model"
        raise InputError("no such file", hint=hint, file=path)
    config = read_json(path)
    if not isinstance(config, dict):
        raise ConfigError("is not an object", file=path, found=shown(config))
    return config


def _no_weights(folder: Path) -> InputError | UnsafeError:
    """The error for a folder without safetensors weights: what it holds instead decides which."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return InputError(f"cannot be listed: {error.strerror}", file=folder)
    tensors = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not tensors:
        return UnsafeError(
            "the weights are a pickle, which runs code when it is loaded",
            hint=PICKLE_HINT,
            file=folder,
            found=shown(pickles[0]),
        )
    return InputError(
        "no weights", file=folder, expected=f"{SINGLE} or {INDEX}", found=shown(tensors) if tensors else "neither"
    )
