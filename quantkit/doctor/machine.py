"""Does quantkit work here?  The kernels against their NumPy text, room to work in, and the optional libraries."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quantkit import kernels, qtypes
from quantkit.doctor.finding import Check, Finding, failed, ok, skipped, warning
from quantkit.errors import OutputError
from quantkit.osio import AtomicFile, available_memory, cpu_count, cpu_name, free_space
from quantkit.slabs import memory_bytes
from quantkit.units import size

_PHI4_Q4_BYTES = 9 << 30  # Phi-4 in Q4_K_M, rounded up
_SECONDS_TO_IMPORT = 120.0
_TORCH = "import torch; assert float((torch.ones(4, 4) @ torch.ones(4))[0]) == 4"


class Extra(NamedTuple):
    """An optional part: what it is for, its libraries, and a program that uses them."""

    purpose: str
    libraries: tuple[str, ...]
    program: str


_EXTRAS = {
    "eval": Extra("eval, imatrix and sweep", ("tokenizers", "torch"), f"import tokenizers; {_TORCH}"),
    "report": Extra("reports, and a look at chat templates", ("jinja2", "matplotlib"), "import jinja2, matplotlib"),
    "optimize": Extra("sweep --optimize", ("highspy",), "import highspy"),
    "ray": Extra("sweep --ray", ("ray",), "import ray"),
}


def machine_checks(folder: Path) -> tuple[tuple[str, Check], ...]:
    """The checks of this installation; folder is where files would be written."""
    isas = tuple((f"kernels {backend}", _kernel_check(backend)) for backend in kernels.backends() if backend != "numpy")
    extras = tuple((f"extra {extra}", _extra_check(extra)) for extra in _EXTRAS)
    return (
        ("python", _python),
        ("processor", lambda: ok(f"{cpu_name()}, {cpu_count()} of its threads")),
        ("kernels", _kernels),
        *isas,
        ("memory", _memory),
        ("disk", lambda: _disk(folder)),
        *extras,
    )


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()}, quantkit {metadata.version('quantkit')}"
    if sys.maxsize < 1 << 32:
        return failed(f"{found}, 32 bits: files of this size cannot be addressed", "use a 64-bit Python")
    return ok(found)


def _kernels() -> Finding:
    in_use = kernels.backend()
    if len(kernels.backends()) == 1:
        cure = "with a C compiler there, pip install --force-reinstall --no-deps quantkit"
        return warning("there are no C kernels: NumPy gives the same bytes, twenty to forty times slower", cure)
    if in_use == "numpy":
        return warning("the C kernels are not used, as QUANTKIT_BACKEND says", "unset QUANTKIT_BACKEND")
    fastest = kernels.backends()[-1]
    if in_use != fastest:
        return warning(f"{in_use} is used, as QUANTKIT_ISA says, and {fastest} is to be had", "unset QUANTKIT_ISA")
    return ok(f"{in_use} is used")


def _kernel_check(backend: str) -> Check:
    def check() -> Finding:
        """Every type, packed with and without importance and unpacked, by this backend and by the NumPy text."""
        both = zip(_packed(backend), _packed("numpy"), strict=True)
        wrong = [name for (name, ours), (_, text) in both if ours != text]
        if wrong:
            cure = f"QUANTKIT_ISA={backend.removeprefix('native/')} must not be used here; please report it"
            return failed(f"other bytes than NumPy's: {', '.join(wrong)}", cure)
        return ok(f"the bytes of {len(qtypes.ALL)} types are NumPy's")

    return check


def _packed(backend: str) -> Iterator[tuple[str, list[bytes]]]:
    """Of each type: rows packed, packed with importance, and unpacked again."""
    rng = np.random.default_rng(4)
    rows, importance = rng.standard_normal((2, 512), np.float32), rng.random(512, np.float32)
    for qtype in qtypes.ALL:
        with kernels.using(backend):
            packed, weighted = kernels.encode(rows, qtype), kernels.encode(rows, qtype, importance)
            yield qtype.name, [array.tobytes() for array in (packed, weighted, kernels.decode(packed, qtype))]


def _memory() -> Finding:
    free, needed = available_memory(), memory_bytes()
    if free is None:
        return skipped("this system does not tell")
    if free < needed:
        return failed(f"{size(free)} are free and a conversion takes {size(needed)}", "close something, or --threads 1")
    return ok(f"{size(free)} are free; a conversion takes about {size(needed)}")


def _disk(folder: Path) -> Finding:
    try:
        with AtomicFile(folder / "quantkit-doctor") as file:
            file.write(b"written and removed", 0)
    except OutputError as error:
        return warning(f"nothing can be written here: {error.message}", "work in another folder, or use -o")
    free = free_space(folder)
    if free < _PHI4_Q4_BYTES:
        return warning(f"{size(free)} are free here, and Phi-4 in Q4_K_M takes 8.4 GiB", "use another disk: -o")
    return ok(f"{size(free)} are free here")


def _extra_check(name: str) -> Check:
    extra, install = _EXTRAS[name], f"'quantkit[{name}]'"

    def check() -> Finding:
        """In a process of its own: a broken library may take it along, and a large one its time."""
        versions = {library: _version(library) for library in extra.libraries}
        if missing := [library for library, version in versions.items() if version is None]:
            return skipped(f"no {' and no '.join(missing)}: for {extra.purpose}", f"pip install {install}")
        command = [sys.executable, "-P", "-c", extra.program]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_TO_IMPORT)
        except subprocess.TimeoutExpired:
            return failed(f"importing it took more than {_SECONDS_TO_IMPORT:.0f} s", "try again on an idle machine")
        if run.returncode:
            said = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1][:200]
            return failed(f"installed, but it does not work: {said}", f"pip install --force-reinstall {install}")
        return ok(", ".join(f"{library} {version}" for library, version in versions.items()))

    return check


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
