"""At Phi-4's widths: the bytes of llama-quantize, in bounded memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import phi4_widths as maker
import pytest
from oracle import GOLDEN, contents, weights_sha256

PRESETS = ("Q4_K_M", "Q8_0")
DISK_BYTES = 8 * 10**9
RSS_LIMIT = 1 << 30

# Runs a command and says its peak resident size in bytes (ru_maxrss: bytes on macOS, else KiB).  It is a process of its
# own because a child's peak starts at its parent's size, and pytest's may be large by then.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)
"""


def peak_rss(*command: str | Path) -> int:
    """The peak resident size in bytes of a Python run with these arguments; its stdout must be empty."""
    measure = [sys.executable, "-c", _MEASURE, sys.executable, *command]
    return int(subprocess.run(measure, check=True, stdout=subprocess.PIPE).stdout)


@pytest.fixture(scope="module")
def phi4_widths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint with Phi-4's widths and two layers, 3.4 GB, with room for what is made of it."""
    parent = tmp_path_factory.mktemp("checkpoint")
    free = shutil.disk_usage(parent).free
    if free < DISK_BYTES:
        pytest.skip(f"needs {DISK_BYTES} bytes of disk, {free} are free")
    maker.write(parent / "phi4_widths")
    yield parent / "phi4_widths"
    shutil.rmtree(parent)


def test_measure_sees_memory() -> None:
    nbytes = 300 << 20
    assert nbytes <= peak_rss("-c", f"b'1' * {nbytes}") < nbytes + (100 << 20)


def test_bytes_and_memory(phi4_widths: Path) -> None:
    golden = json.loads((GOLDEN / "files" / "phi4_widths.json").read_text("utf-8"))
    if weights_sha256(phi4_widths) != golden["weights_sha256"]:
        pytest.fail("the maker of phi4_widths no longer makes the weights that the golden data is of")
    template = phi4_widths.parent / "{type}.gguf"
    types = [argument for preset in PRESETS for argument in ("-t", preset)]
    rss = peak_rss("-m", "quantkit", "convert", phi4_widths, *types, "-o", template, "-q")
    for preset in PRESETS:
        assert contents(template.with_name(f"{preset}.gguf")) == golden["quantize"][preset]
    assert rss <= RSS_LIMIT
