"""A fine-tuned checkpoint on disk: config.json, and weights in safetensors files read row by row."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from quantkit.checkpoint.header import TensorInfo, read_header
from quantkit.checkpoint.index import merge_shards, read_index
from quantkit.checkpoint.json_file import read_json, shown
from quantkit.errors import ConfigError, InputError, ShapeError, UnsafeError, UsageError
from quantkit.osio import InputFile, is_file, is_folder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint:
    """An open checkpoint; use it in a `with` block or close() it.

    Its files stay open between, so that what was checked is what is read.

    path     the folder
    name     the folder's own name
    config   config.json
    tensors  every tensor by name, by shard and then in the order of its bytes
    shards   the safetensors files, by name
    """

    def __init__(
        self, path: Path, config: dict[str, Any], tensors: Mapping[str, TensorInfo], files: Mapping[Path, InputFile]
    ) -> None:
        self.path = path
        self.name = path.resolve().name if path.name in ("", "..") else path.name
        self.config = config
        self.tensors = dict(tensors)
        self.shards = tuple(files)
        self._files = dict(files)

    def read_rows(self, tensor: TensorInfo, start: int, stop: int, out: npt.NDArray[np.uint8]) -> None:
        """Read rows start to stop of a tensor into out, from any thread.

        out     uint8, C order, of (stop - start) * tensor.row_bytes bytes in any shape; filled
        raises  ShapeError  the tensor has no such rows, or out is not of that size
                DiskError   reading fails, or the file has become shorter
                UsageError  the checkpoint is closed
        """
        if not 0 <= start <= stop <= tensor.n_rows:
            raise ShapeError(
                "no such rows", tensor=tensor.name, expected=f"within 0 to {tensor.n_rows}", found=f"{start} to {stop}"
            )
        nbytes = (stop - start) * tensor.row_bytes
        view = out.data
        if view.nbytes != nbytes or not view.c_contiguous:
            expected = f"{nbytes} bytes in C order"
            raise ShapeError("the rows do not fill the array", tensor=tensor.name, expected=expected, found=view.nbytes)
        if tensor.file not in self._files:
            raise UsageError("the checkpoint is closed", file=self.path, tensor=tensor.name)
        self._files[tensor.file].read_into(view, tensor.offset + start * tensor.row_bytes)

    def close(self) -> None:
        """Close the files; no thread may be reading. Closing twice is allowed."""
        files, self._files = self._files, {}
        for file in files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
        adapter = is_file(folder / "adapter_config.json")
        hint = "this is an adapter: name its base model as the source" if adapter else "copy it from the base model"
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
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and not tensors:
        return UnsafeError(
            "the weights are a pickle, which runs code when it is loaded",
            hint="convert it with safetensors first",
            file=folder,
            found=shown(pickles[0]),
        )
    return InputError(
        "no weights", file=folder, expected=f"{SINGLE} or {INDEX}", found=shown(tensors) if tensors else "neither"
    )
