"""Tensors in open files, read row by row: what every source of weights is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from quantkit.checkpoint.header import TensorInfo
from quantkit.checkpoint.snapshot import Origin
from quantkit.errors import ShapeError, UsageError
from quantkit.osio import InputFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Weights:
    """Tensors and the files that hold them; use it in a `with` block or close() it.

    Its files stay open between, so that what was checked is what is read.

    path     what was opened, a folder or a file
    name     what outputs are called after
    tensors  every tensor by name, by shard and then in the order of its bytes
    shards   the files, by name
    origin   the repository and commit they come from, if that is known
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
        self._files = dict(files)

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

    def close(self) -> None:
        """Close the files; no thread may be reading. Closing twice is allowed."""
        files, self._files = self._files, {}
        for file in files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
