"""The benchmark of the kernels without Python (csrc/check/bench.c): the first half of `make bench`."""

from __future__ import annotations

import subprocess
import sys

from builds import Build

from quantkit.bench import SHAPE, TURN_SECONDS

BUILDS = (Build("gcc", ("gcc",)), Build("clang", ("clang",)))


def main() -> int:
    """With the first compiler that is here."""
    obstacles = {build: build.obstacle() for build in BUILDS}
    for build, obstacle in obstacles.items():
        if obstacle:
            print(f"skipped  {build.name}: {obstacle}", flush=True)
            continue
        build.make()
        print(f"{build.name}: ", end="", flush=True)
        return subprocess.run([build.binary, "--bench", *map(str, (*SHAPE, TURN_SECONDS))]).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
