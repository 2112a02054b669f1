"""Files and folders that are written: whole or not at all, certain when they are there, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from quantkit.errors import BusyError, DiskError, OutputError, UsageError
from quantkit.osio.calls import ALWAYS, MAX_CALL_BYTES, PathLike, as_bytes, reason, seek_lock
from quantkit.osio.reading import pread_into

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PART_FLAGS = os.O_RDWR | os.O_CREAT | ALWAYS | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)

# Network and FUSE file systems may know neither locks nor fsync of a folder; there is nothing better to do then.
_NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOTTY}


def _pwrite_seek(fd: int, data: memoryview, offset: int) -> int:
    """One positioned write where the system has none."""
    with seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


_pwrite: Callable[[int, memoryview, int], int] = getattr(os, "pwrite", _pwrite_seek)


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int, *, file: PathLike | None = None) -> None:
    """Write all of data at offset; safe to call from many threads on one descriptor.

    data    C order, any shape
    file    the name to put into an error
    raises  DiskError  the disk is full, a limit is reached, or the write fails
    """
    rest = as_bytes(data)
    while rest:
        try:
            n = _pwrite(fd, rest[:MAX_CALL_BYTES], offset)
        except OSError as error:
            raise _write_error(DiskError, "writing failed", error, file=file, offset=offset) from error
        rest, offset = rest[n:], offset + n


class AtomicFile:
    """A file that appears under its final name whole or not at all, and replaces an older one only then.

        with AtomicFile(path) as out:
            out.write(data, offset)
            out.publish()

    The bytes go to `<path>.part` beside it, locked against a second run.  Leaving the block without publish() or keep()
    removes the part, whatever the reason; after a kill it stays.  The next run empties it unless it was told to go on
    from it.  A symbolic link under the final name is replaced, not followed.

    path       the final name
    go_on      leave in a part that is there already what it holds
    part_path  where the bytes are until publish()
    raises     OutputError  no such folder, no permission, the final name is taken by a folder or device, or another run
                            writes the same file
    """

    def __init__(self, path: PathLike, *, go_on: bool = False) -> None:
        self.path = Path(path)
        _refuse_non_file(self.path)
        self.part_path = _part_path(self.path)
        self._fd = _open_part(self.part_path)
        if not go_on:
            self.resize(0)

    @property
    def size(self) -> int:
        """Bytes of the part."""
        return os.fstat(self._fd).st_size

    def resize(self, nbytes: int) -> None:
        """Cut or extend the part to nbytes, with zeros; raises DiskError."""
        try:
            os.ftruncate(self._fd, nbytes)
        except OSError as error:
            raise _write_error(DiskError, "cannot be resized", error, file=self.part_path) from error

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill out with the part's bytes at offset, from any thread; raises DiskError."""
        pread_into(self._fd, out, offset, file=self.part_path)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write data at offset, from any thread; raises DiskError."""
        pwrite_all(self._fd, data, offset, file=self.part_path)

    def sync(self) -> None:
        """Wait until what was written is on the medium; raises DiskError."""
        try:
            _sync(self._fd)
        except OSError as error:
            raise _write_error(DiskError, "cannot be brought to disk", error, file=self.part_path) from error

    def publish(self) -> None:
        """Put the file under its final name, its bytes on disk first; raises DiskError, OutputError."""
        self.sync()
        _refuse_non_file(self.path)  # a device could have come up there since; replace() would remove it
        if fcntl is None:  # Windows does not rename an open file
            self._close()
        try:
            self.part_path.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):  # here, since discard() leaves a closed file alone
                self.part_path.unlink()
            raise _write_error(OutputError, "cannot be put in place", error, file=self.path) from error
        self._close()  # gives up the lock, so only after the part's name is gone
        _sync_folder(self.path.parent)

    def keep(self) -> None:
        """Close the part and leave it for a later run."""
        self._close()

    def discard(self) -> bool:
        """Remove the part, unless it was published or kept; whether it was removed."""
        if self._fd < 0:
            return False
        with contextlib.suppress(OSError):
            if _still_named(self._fd, self.part_path):
                if fcntl is None:
                    self._close()
                self.part_path.unlink()
        self._close()
        return True

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with contextlib.suppress(OSError):  # what was published is synced, the rest is not wanted
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def refuse_replacing(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise UsageError if writing an output would replace an input, under whatever name it was given, or empty it.

    outputs  final names of AtomicFiles
    inputs   files that are read; those that are not there are passed over
    """
    read = list(inputs)
    for output in outputs:
        for written in (output, _part_path(output)):
            for file in read:
                if _is_same_file(written, file):
                    raise UsageError("the output would replace an input", hint="name another output", file=file)


def _is_same_file(a: Path, b: Path) -> bool:
    """Whether both are there and one: by way of links, or of a file system that takes upper case for lower."""
    try:
        return a.samefile(b)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


def _part_path(path: Path) -> Path:
    """Where the bytes of an AtomicFile are until it is published."""
    return path.with_name(path.name + ".part")


def _refuse_non_file(path: Path) -> None:
    """Raise OutputError if path is something that a file must not replace."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be created: {reason(error)}", file=path) from error
    if stat.S_ISDIR(mode):
        raise OutputError("a folder stands in its place", hint="name a file", file=path)
    if not stat.S_ISREG(mode):
        raise OutputError("is not a regular file", hint="name a file; output cannot go to a device or pipe", file=path)


def _open_part(path: Path) -> int:
    """Create or take over a part file, locked; raises OutputError, DiskError."""
    while True:
        try:
            fd = os.open(path, _PART_FLAGS, 0o666)
        except FileNotFoundError:
            raise OutputError("the folder does not exist", hint="create it first", file=path.parent) from None
        except OSError as error:
            raise _write_error(OutputError, "cannot be created", error, file=path) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OutputError("is not a regular file", hint="remove it", file=path)
            _lock(fd, path)
            if _still_named(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its former owner renamed or removed it between our open and our lock


def _lock(fd: int, path: Path) -> None:
    """Lock an open file against other processes until it is closed; raises OutputError if one holds it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        hint = "wait for it, or name another output"
        raise BusyError("another run is writing this file", hint=hint, file=path) from None
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise OutputError(f"cannot be locked: {reason(error)}", file=path) from error


def _still_named(fd: int, path: Path) -> bool:
    """Whether path is still the file that fd has open."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _sync(fd: int) -> None:
    """Wait until the file's bytes are on the medium; raises OSError."""
    if fcntl is not None and hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync leaves them in the drive's cache
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
    os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    """Wait until a rename in folder is on the medium; raises DiskError."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | ALWAYS)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        # EACCES: a folder may be open to writing and closed to reading
        if error.errno not in _NOT_OFFERED | {errno.EACCES}:
            raise _write_error(DiskError, "cannot be brought to disk", error, file=folder) from error


_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def _write_error(
    kind: type[DiskError | OutputError],
    what: str,
    error: OSError,
    *,
    file: PathLike | None,
    offset: int | None = None,
) -> DiskError | OutputError:
    """The typed error for a failed write: of kind, but a full or broken disk is a DiskError in any case."""
    if error.errno in _FULL | {errno.EIO}:
        kind = DiskError
    hint = "free some space, or write to another disk" if error.errno in _FULL else None
    return kind(f"{what}: {reason(error)}", hint=hint, file=file, offset=offset)


def free_space(folder: PathLike) -> int:
    """Bytes that this user can still write into folder; raises OutputError if there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"cannot be written to: {reason(error)}", file=folder) from error


def allocated_bytes(path: Path) -> int:
    """Bytes of disk that a file takes, 0 where there is none or the system does not say."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return getattr(status, "st_blocks", 0) * 512


def make_folder(path: Path) -> None:
    """Make a folder if there is none; raises OutputError."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder cannot be made: {reason(error)}", file=path) from error
