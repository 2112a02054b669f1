"""Tensors in open files, read row by row: what every source of weights is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from quantkit.checkpoint.header import TensorInfo
from quantkit.checkpoint.snapshot import Origin
from quantkit.errors import ShapeError, UsageError
from quantkit.osio import InputFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from quantkit.checkpoint.adapter import Adapter


class Change(Protocol):
    """What an adapter does to rows of one tensor of an output."""

    def apply(self, start: int, rows: npt.NDArray[np.float32]) -> None:
        """Change rows float32 (n, k) in place, which are start to start + n of the tensor; raises DiskError."""


class Weights:
    """Tensors and the files that hold them; use it in a `with` block or close() it.

    Its files stay open between, so that what was checked is what is read.

    path     what was opened, a folder or a file
    name     what outputs are called after
    tensors  every tensor by name, by shard and then in the order of its bytes
    shards   the files, by name
    origin   the repository and commit they come from, if that is known
    adapters what was merged into the weights, in order; they are closed with them
    changes  by those, of tensors by GGUF name
    warnings of the merging, for the user
    """

    def __init__(
        self,
        path: Path,
        name: str,
        tensors: Mapping[str, TensorInfo],
        files: Mapping[Path, InputFile],
        origin: Origin | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.tensors = dict(tensors)
        self.shards = tuple(files)
        self.origin = origin
        self.adapters: tuple[Adapter, ...] = ()
        self.changes: Mapping[str, Sequence[Change]] = {}
        self.warnings: tuple[str, ...] = ()
        self._files = dict(files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards, and the files of the adapters."""
        return (*self.shards, *(file for adapter in self.adapters for file in adapter.files))

    def read_rows(self, tensor: TensorInfo, start: int, stop: int, out: npt.NDArray[np.uint8]) -> None:
        """Read rows start to stop of a tensor into out, from any thread.

        out     uint8, C order, of (stop - start) * tensor.row_bytes bytes in any shape; filled
        raises  ShapeError  the tensor has no such rows, or out is not of that size
                DiskError   reading fails, or the file has become shorter
                UsageError  the files are closed
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
            raise UsageError("the weights are closed", file=self.path, tensor=tensor.name)
        self._files[tensor.file].read_into(view, tensor.offset + start * tensor.row_bytes)

    def transform(self, name: str, start: int, rows: npt.NDArray[np.float32]) -> None:
        """Hop 3 of a tensor's journey: merge what the adapters change, in place and from any thread.

        name    of the output's tensor, in GGUF
        start   number of the first row
        rows    float32 (n, k), C order
        raises  NotFiniteError  the adapter has NaN or infinity (names its tensor)
                DiskError       reading fails
        """
        for change in self.changes.get(name, ()):
            change.apply(start, rows)

    def adopt(self, adapters: Sequence[Adapter]) -> None:
        """Read the files of adapters as if they were these weights' own."""
        self.adapters += tuple(adapters)
        for adapter in adapters:
            self._files |= adapter._files

    def close(self) -> None:
        """Close the files; no thread may be reading. Closing twice is allowed."""
        files, self._files = self._files, {}
        for file in files.values():
            file.close()
        for adapter in self.adapters:
            adapter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
