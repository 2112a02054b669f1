"""Files that are read: positioned reads, from any thread."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from quantkit.errors import DiskError, InputError
from quantkit.osio.calls import ALWAYS, MAX_CALL_BYTES, PathLike, as_bytes, reason, seek_lock

_READ_FLAGS = os.O_RDONLY | ALWAYS | getattr(os, "O_NONBLOCK", 0)
_HASHED_AT_ONCE = 1 << 22


def is_file(path: Path) -> bool:
    """Whether path is a regular file, or a link to one; raises InputError where that cannot be found out."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether path is a folder, or a link to one; raises InputError where that cannot be found out."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """The file mode of path, 0 for nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"cannot be looked up: {reason(error)}", file=path) from error


def _pread_seek(fd: int, out: memoryview, offset: int) -> int:
    """One positioned read where the system has none: the file's position is shared, so one thread at a time."""
    with seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(out))
    out[: len(data)] = data
    return len(data)


def _pread_vector(fd: int, out: memoryview, offset: int) -> int:
    """One positioned read straight into out."""
    return os.preadv(fd, [out], offset)


_pread: Callable[[int, memoryview, int], int] = _pread_vector if hasattr(os, "preadv") else _pread_seek


def pread_into(fd: int, out: memoryview, offset: int, *, file: PathLike | None = None) -> None:
    """Fill out with the bytes at offset; safe to call from many threads on one descriptor.

    out     writable, C order, any shape; filled to its end, over as many system calls as that takes (Python repeats
            one that a signal interrupts, PEP 475)
    file    the name to put into an error
    raises  DiskError  the read fails, or the file ends first
    """
    out = as_bytes(out)
    done = 0
    while done < len(out):
        try:
            n = _pread(fd, out[done : done + MAX_CALL_BYTES], offset + done)
        except OSError as error:
            raise DiskError(f"reading failed: {reason(error)}", file=file, offset=offset + done) from error
        if n == 0:
            raise DiskError(
                "the file ends too early",
                hint="it was cut or replaced while being read; fetch it again and leave it alone meanwhile",
                file=file,
                offset=offset + done,
                expected=f"{len(out) - done} more bytes",
                found=0,
            )
        done += n


class InputFile:
    """A regular file opened for reading; use it in a `with` block or close() it.

    path    the name it was opened by
    size    bytes it had then
    raises  InputError  missing, unreadable, or something else than a regular file (folder, device, FIFO)
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        try:
            self._fd = os.open(path, _READ_FLAGS)
        except FileNotFoundError:
            raise InputError("no such file", file=path) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise InputError(f"cannot be opened: {reason(error)}", file=path) from error
        status = os.fstat(self._fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise InputError("is not a regular file", file=path)

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill out with the bytes at offset, from any thread; raises DiskError, also where the file ends first."""
        pread_into(self._fd, out, offset, file=self.path)

    def read(self, nbytes: int, offset: int = 0) -> bytearray:
        """The nbytes at offset; raises DiskError."""
        data = bytearray(nbytes)
        self.read_into(memoryview(data), offset)
        return data

    def sha256(self, offset: int = 0, nbytes: int | None = None) -> str:
        """Of the nbytes at offset, None for all that follow; raises DiskError."""
        digest = hashlib.sha256()
        stop = self.size if nbytes is None else offset + nbytes
        for start in range(offset, stop, _HASHED_AT_ONCE):
            digest.update(self.read(min(_HASHED_AT_ONCE, stop - start), start))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file; no thread may be reading it. Closing twice is allowed."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def file_sha256(path: PathLike) -> str:
    """Of a file's bytes; raises InputError, DiskError."""
    with InputFile(path) as file:
        return file.sha256()
