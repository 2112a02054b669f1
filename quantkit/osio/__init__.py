"""The operating system: positioned reads and writes, files that appear whole or not at all, facts of the machine.

No other module of quantkit asks which system it runs on.  Linux and macOS are the systems it is written for; where
Windows lacks a call, the substitute stands beside it.
"""

from __future__ import annotations

from quantkit.osio.calls import PathLike
from quantkit.osio.machine import available_memory, cpu_count, cpu_name, limit_cpus
from quantkit.osio.reading import InputFile, file_sha256, is_file, is_folder, pread_into
from quantkit.osio.writing import AtomicFile, allocated_bytes, free_space, make_folder, pwrite_all, refuse_replacing

__all__ = [
    "AtomicFile",
    "InputFile",
    "PathLike",
    "allocated_bytes",
    "available_memory",
    "cpu_count",
    "cpu_name",
    "file_sha256",
    "free_space",
    "is_file",
    "is_folder",
    "limit_cpus",
    "make_folder",
    "pread_into",
    "pwrite_all",
    "refuse_replacing",
]
