"""Facts of the machine that this process runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """The model of the processor, as the system calls it; its architecture where there is no more to know."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes of memory that a process can take without another's going to disk; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not POSIX, or not this name
        return None


_cpu_limit: int | None = None


def cpu_count() -> int:
    """Processors this process may run on, at least 1; no more than limit_cpus() has left it."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(n, _cpu_limit or n)


def limit_cpus(n: int) -> None:
    """Let this process take n processors at most, of those it may run on."""
    global _cpu_limit
    _cpu_limit = n
