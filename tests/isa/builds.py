"""csrc/check/ built with the kernels by several compilers and for several machines, and how to ask it.

Flags are read from CMakeLists.txt: what is tested is what is shipped.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "build" / "isa"
CMAKE = (REPOSITORY / "CMakeLists.txt").read_text()

# machine: its instruction sets, a file in csrc/isa each
INSTRUCTION_SETS = {"x86_64": ("scalar", "baseline", "avx2", "avx512"), "aarch64": ("scalar", "neon")}
HERE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Build:
    """One way to build pack.

    name       as printed; unique
    compiler   the command, with what chooses its target
    flags      beside those of CMakeLists.txt, and after them
    machine    what it makes code for
    isas       the instruction sets built in
    runner     the command that runs it, or nothing
    """

    name: str
    compiler: tuple[str, ...]
    flags: tuple[str, ...] = ()
    machine: str = HERE
    isas: tuple[str, ...] = INSTRUCTION_SETS.get(HERE, ("scalar", "baseline"))
    runner: tuple[str, ...] = ()

    @property
    def binary(self) -> Path:
        return FOLDER / re.sub(r"\W+", "-", self.name) / "pack"

    def obstacle(self) -> str | None:
        """Why this machine cannot make or run it: a tool or a library that is not here. None where it can."""
        for tool in (self.compiler[0], *self.runner):
            if not shutil.which(tool):
                return f"{tool} is not here"
        command = [*self.compiler, *self.flags, "-x", "c", "-", "-lm", "-o", os.devnull]
        linked = subprocess.run(command, input="int main(void) { return 0; }", capture_output=True, text=True)
        return linked.stderr.strip().splitlines()[0] if linked.returncode else None

    def make(self) -> None:
        """Compile and link, the compiler's words on stderr; raises CalledProcessError."""
        self.binary.parent.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in (
            "check/pack.c",
            "check/bench.c",
            "check/low_rank.c",
            "check/feedback.c",
            "dispatch.c",
            *(f"isa/{isa}.c" for isa in self.isas),
        ):
            objects.append(self.binary.parent / f"{Path(source).stem}.o")
            flags = ("-std=c11", *common_flags(), *own_flags(source), *self.flags)
            command = [*self.compiler, *flags, "-c", REPOSITORY / "csrc" / source, "-o", objects[-1]]
            subprocess.run(command, check=True)
        subprocess.run([*self.compiler, *self.flags, *objects, "-lm", "-o", self.binary], check=True)

    def present_isas(self) -> tuple[str, ...]:
        """Those of `isas` that the processor, or its emulator, can run."""
        names = self.call(("--list",)).decode().split()
        assert set(names) <= set(self.isas), names
        return tuple(names)

    def call(self, arguments: tuple[str, ...], given: bytes = b"") -> bytes:
        """Run pack on given; returns its stdout. Raises CalledProcessError, with its stderr, where it fails."""
        command = [*self.runner, self.binary, *arguments]
        return subprocess.run(command, input=given, capture_output=True, check=True).stdout


Variant = tuple[Build, str]  # a build, and an instruction set of its


def variants(builds: Iterable[Build]) -> list[Variant]:
    """Make the builds; what they have that can run here. What cannot is printed with its reason."""
    found = []
    for build in builds:
        if obstacle := build.obstacle():
            print(f"skipped  {build.name}: {obstacle}")
            continue
        build.make()
        present = build.present_isas()
        for isa in build.isas:
            if isa in present:
                found.append((build, isa))
            else:
                print(f"skipped  {build.name} {isa}: this {build.machine} processor cannot run it")
    for machine in INSTRUCTION_SETS.keys() - {build.machine for build, _ in found}:
        print(f"skipped  {', '.join(INSTRUCTION_SETS[machine])} of {machine}: nothing here runs them")
    return found


def common_flags() -> list[str]:
    """The flags of every file of the kernels."""
    return _only(r"add_compile_options\(([^)]*)\)").split()


def own_flags(source: str) -> list[str]:
    """The flags of one file of csrc, beside the common ones."""
    if f"set_source_files_properties(csrc/{source} " not in CMAKE:
        return []
    return _only(rf'properties\(csrc/{re.escape(source)} PROPERTIES COMPILE_OPTIONS\s+"([^"]*)"\)').split(";")


def _only(pattern: str) -> str:
    """The group of the one place in CMakeLists.txt that the pattern matches."""
    (found,) = re.findall(pattern, CMAKE)
    return str(found)
