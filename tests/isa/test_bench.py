"""`pack --bench`: every type and instruction set has its figures, and none is printed where bytes differ."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from builds import Build

from quantkit.bench import TYPES, Mode

GCC = Build("gcc", ("gcc",))
QUICK = ("1", "512", "0")  # rows, columns, seconds of a turn

# Linked in place of the kernels' interface, with the linker's --wrap: one bit is wrong on one instruction set.
FAULT = """
#include <string.h>
#include "quantkit.h"
qk_status __real_qk_encode(qk_type, const float *, int64_t, int64_t, const float *, float, uint8_t *, int64_t *);
qk_status __real_qk_decode(qk_type, const uint8_t *, int64_t, int64_t, float *);
qk_status __wrap_qk_encode(qk_type type, const float *rows, int64_t n, int64_t k, const float *importance, float limit,
                           uint8_t *blocks, int64_t *unfit) {
    const qk_status status = __real_qk_encode(type, rows, n, k, importance, limit, blocks, unfit);
    if (type == QK_Q5_K && MODE == (importance != NULL) && strcmp(qk_isa(), "baseline") == 0)
        blocks[n * qk_row_bytes(type, k) - 1] ^= 1;
    return status;
}
qk_status __wrap_qk_decode(qk_type type, const uint8_t *blocks, int64_t n, int64_t k, float *rows) {
    const qk_status status = __real_qk_decode(type, blocks, n, k, rows);
    if (type == QK_Q5_K && MODE == 2 && strcmp(qk_isa(), "baseline") == 0) rows[n * k - 1] += 1;
    return status;
}
"""

pytestmark = [
    pytest.mark.skipif(GCC.obstacle() is not None, reason=f"{GCC.obstacle()}: pack was not built"),
    pytest.mark.skipif("baseline" not in GCC.isas, reason="written for x86-64's instruction sets"),
]


@pytest.fixture(scope="module")
def build() -> Build:
    GCC.make()
    return GCC


def test_a_figure_for_every_type_mode_and_instruction_set(build: Build) -> None:
    first, *tables = build.call(("--bench", *QUICK)).decode().split("\n\n")
    assert first == "million weights a second, 1 x 512, one thread; every answer equals that of scalar"
    isas = build.present_isas()
    assert [table.splitlines()[0].split()[: -len(isas)] for table in tables] == [mode.value.split() for mode in Mode]
    for table in tables:
        title, *lines = table.splitlines()
        assert tuple(title.split()[-len(isas) :]) == isas
        assert {line.split()[0] for line in lines} == {qtype.name for qtype in TYPES}
        for line in lines:
            figures = [int(figure) for figure in line.split()[1:]]
            assert len(figures) == len(isas)
            assert min(figures) > 0


@pytest.mark.parametrize("mode", range(len(Mode)), ids=list(Mode))
def test_bytes_that_differ_end_it_before_any_figure(build: Build, tmp_path: Path, mode: int) -> None:
    source, fault = tmp_path / "fault.c", tmp_path / "fault.o"
    source.write_text(FAULT)
    csrc = Path(__file__).parents[2] / "csrc"
    subprocess.run(["gcc", "-std=c11", "-c", f"-DMODE={mode}", f"-I{csrc}", source, "-o", fault], check=True)
    objects = sorted(build.binary.parent.glob("*.o"))
    wraps = ("-Wl,--wrap=qk_encode", "-Wl,--wrap=qk_decode")
    subprocess.run(["gcc", *wraps, *objects, fault, "-lm", "-o", tmp_path / "pack"], check=True)
    ended = subprocess.run([tmp_path / "pack", "--bench", *QUICK], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"pack: baseline and scalar differ in Q5_K, {list(Mode)[mode]}\n"


@pytest.mark.parametrize("shape", (("0", "512"), ("1", "0"), ("1", "100"), ("-1", "256")))
def test_a_shape_that_is_none_is_refused(build: Build, shape: tuple[str, str]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        build.call(("--bench", *shape, "0"))
    assert caught.value.stderr == b"pack: the benchmark takes rows of whole blocks of 256\n"
