"""A candidate is the file that convert would write: the same matrices, the same figures, and no needless work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import small_gguf

from quantkit import kernels
from quantkit.checkpoint import open_checkpoint
from quantkit.checkpoint.weights import Weights
from quantkit.convert import convert
from quantkit.errors import MagnitudeError
from quantkit.evaluate import Arithmetic, Text, evaluate, measure_group, open_model, sample, score
from quantkit.gguf_io import read_gguf
from quantkit.imatrix import read_imatrix
from quantkit.plan import make_plan
from quantkit.recipe import preset
from quantkit.strategy import by_name
from quantkit.sweep import Request, Sweep, sweep
from quantkit.sweep import candidates as module
from quantkit.sweep.candidates import Base, Candidate

TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_1", "Q6_K", "Q8_0", "F16", "F32")
IDS = np.array([104, 3, 257, 3, 9, 104, 0])


@pytest.mark.parametrize(("source", "weighted"), [("little", False), ("little", True), ("phi4_mini_tiny", False)])
def test_its_matrices_are_those_of_the_file(
    source: str,
    weighted: bool,
    imatrix: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SLAB_WEIGHTS", 40 * small.HIDDEN)  # many slabs, the last of them short
    path: Path = request.getfixturevalue(source)
    options = {"imatrix": read_imatrix(imatrix)} if weighted else {}
    files = small_gguf.run(path, tmp_path / "gguf", TYPES, **options)
    asked = Request(path, tmp_path / "out", 1 << 40, 1024, types=TYPES, imatrix=imatrix if weighted else None)
    weighed = 0
    with Sweep.open(asked, pytest.fail) as opened:
        importance = opened.measurements.importance
        base = Base(opened._model, importance)
        for planned in opened.candidates:
            candidate = Candidate(base, opened._model, planned.types)
            with open_model(files[planned.output.name], pytest.fail) as file:
                assert candidate.head == file.head
                for name in file.tensors:
                    assert candidate.qtype(name) is file.qtype(name)
                    assert np.array_equal(candidate.matrix(name), file.matrix(name)), (planned.output.name, name)
                    weighed += importance[name] is not None
                assert np.array_equal(candidate.matrix(file.head, 100, 111), file.matrix(file.head, 100, 111))
                assert np.array_equal(candidate.embed(IDS), file.embed(IDS))
                assert (candidate.epsilon, candidate.rotation.factor) == (file.epsilon, file.rotation.factor)
                frequencies = [model.rotation.inverse_frequencies for model in (candidate, file)]
                assert np.array_equal(*frequencies)
    assert bool(weighed) == weighted


@pytest.mark.usefixtures("groups_of_two")
@pytest.mark.parametrize("weighted", [False, True])
def test_its_figures_are_those_that_eval_has_of_the_file(
    ask: Callable[..., Request], little: Path, imatrix: Path, text: Text, tmp_path: Path, weighted: bool
) -> None:
    asked = ask(types=TYPES, imatrix=imatrix if weighted else None)
    report = sweep(asked, write=False, warn=pytest.fail)
    assert report is not None
    files = small_gguf.run(little, tmp_path / "gguf", TYPES, **({"imatrix": read_imatrix(imatrix)} if weighted else {}))
    with open_model(little, pytest.fail) as base:
        opened = [open_model(path, pytest.fail) for path in files.values()]
        chosen = sample([base, *opened], text, asked.window, asked.windows)
        evaluated = evaluate(opened, chosen, base=base, how=Arithmetic())
        for model in opened:
            model.close()
    of_files = dict(zip(files, evaluated["models"], strict=True))
    assert len(report["candidates"]) == len(TYPES)
    for candidate in report["candidates"]:
        theirs = of_files[candidate["type"]]
        for key in theirs.keys() - {"name", "file_sha256"}:
            assert candidate[key] == theirs[key], (candidate["type"], key)
    assert report["base"]["nll_by_window"] == evaluated["base"]["nll_by_window"]
    for key in ("text_sha256", "vocabulary_sha256", "base_sha256", "window", "windows", "scored", "n_tokens", "dtype"):
        assert report[key] == evaluated[key]


@pytest.mark.usefixtures("groups_of_two")
def test_with_error_feedback_too(
    ask: Callable[..., Request], little: Path, imatrix: Path, moments: Path, text: Text, tmp_path: Path
) -> None:
    """Figures are those of the file, and are kept beside the reference's; the file that is picked is that one."""
    strategy = by_name("feedback", moments)
    asked = ask(types=("Q3_K_M", "Q8_0"), imatrix=imatrix, strategy=strategy, vram_bytes=1 << 40)
    plain = sweep(ask(types=("Q3_K_M", "Q8_0"), imatrix=imatrix, vram_bytes=1 << 40), write=False, warn=pytest.fail)
    report = sweep(asked, warn=pytest.fail)
    assert report is not None
    assert plain is not None
    assert "strategy" not in plain
    assert report["strategy"]["quantkit.strategy"] == "feedback"
    fed, other = ({one["type"]: one["nll_by_window"] for one in found["candidates"]} for found in (report, plain))
    assert fed["Q3_K_M"] != other["Q3_K_M"]
    assert fed["Q8_0"] == other["Q8_0"]
    with open_checkpoint(little) as source:
        plan = make_plan(source, [preset("Q3_K_M")], imatrix=read_imatrix(imatrix), strategy=strategy, warn=pytest.fail)
        convert(source, plan, [tmp_path / "file.gguf"])
    with open_model(little, pytest.fail) as base, open_model(tmp_path / "file.gguf", pytest.fail) as model:
        chosen = sample([base, model], text, asked.window, asked.windows)
        evaluated = evaluate([model], chosen, base=base, how=Arithmetic())
    assert evaluated["models"][0]["nll_by_window"] == fed["Q3_K_M"]
    (written,) = asked.out.glob("*.gguf")
    assert read_gguf(written).fields["quantkit.strategy"].value == "feedback"


def test_side_by_side_is_as_one_after_another(little: Path, tmp_path: Path, text: Text) -> None:
    files = small_gguf.run(little, tmp_path, ["Q2_K", "Q8_0"])
    with open_model(little, pytest.fail) as base, open_model(files["Q2_K"], pytest.fail) as quant:
        windows = sample([base, quant], text, 64, 5).windows
        models = [base, quant, base]
        found = [
            measure_group(models, windows, Arithmetic(), has_base=True, together=together) for together in (True, False)
        ]
    for side_by_side, alone in zip(*found, strict=True):
        assert np.array_equal(side_by_side.nll, alone.nll)
        assert np.array_equal(side_by_side.kld, alone.kld)
        assert np.array_equal(side_by_side.agree, alone.agree)


@pytest.mark.usefixtures("groups_of_two")
def test_nothing_is_read_or_packed_twice(ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """In each of three passes: every tensor once, and of it every type once."""
    n_read: dict[str, int] = {}
    n_packed: dict[str, int] = {}
    read_rows, encode = Weights.read_rows, kernels.encode

    def counted_read(self: Weights, info: Any, start: int, stop: int, out: Any) -> None:
        n_read[info.name] = n_read.get(info.name, 0) + stop - start
        read_rows(self, info, start, stop, out)

    def counted_encode(rows: Any, qtype: Any, *rest: Any, **options: Any) -> Any:
        n_packed[qtype.name] = n_packed.get(qtype.name, 0) + rows.size
        return encode(rows, qtype, *rest, **options)

    monkeypatch.setattr(Weights, "read_rows", counted_read)
    monkeypatch.setattr(kernels, "encode", counted_encode)
    with Sweep.open(ask(types=("Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")), pytest.fail) as opened:
        rows = {info.name: info.n_rows for info in opened._weights.tensors.values()}
        types = [candidate.types for candidate in opened.candidates]
        sizes = {name: int(np.prod(shape)) for name, shape in opened._model.tensors.items()}
        opened.measure()
    embedding = "model.embed_tokens.weight"
    del rows[embedding]
    assert n_read.pop(embedding) < 3 * small.VOCABULARY
    assert n_read == {name: 3 * n for name, n in rows.items()}
    expected: dict[str, int] = {}
    for name in sizes.keys() - {"token_embd.weight"}:
        for qtype in {one[name] for one in types}:
            expected[qtype.name] = expected.get(qtype.name, 0) + 3 * sizes[name]
    embedded = {one["token_embd.weight"].name for one in types}
    for qtype_name, n in n_packed.items():
        extra = n - expected.get(qtype_name, 0)
        assert (extra > 0) if qtype_name in embedded else (extra == 0), qtype_name


def test_of_what_was_read_half_a_layer_is_kept(ask: Callable[..., Request], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[str]] = []
    known = Base._known

    def watched(self: Base, name: str, read: Any) -> Any:
        rows = known(self, name, read)
        kept.append({*self._rows} | {name for name, _ in self._blocks})
        return rows

    monkeypatch.setattr(Base, "_known", watched)
    sweep(ask(), write=False)
    halves = {name.partition("_")[0] for names in kept for name in names if name.startswith("blk.")}
    assert halves == {f"blk.{i}.{half}" for i in range(small.LAYERS) for half in ("attn", "ffn")}
    for names in kept:
        assert len({name.partition("_")[0] if name.startswith("blk.") else name for name in names}) == 1


PEAK = """
import re, sys
from pathlib import Path
from quantkit.sweep import Request, Sweep
asked = Request(Path(sys.argv[1]), Path(sys.argv[2]), 1 << 40, 1024, types=sys.argv[3:], window=128, windows=4)
with Sweep.open(asked, print) as opened:
    said = opened.memory_bytes()
    opened.measure()
# Not ru_maxrss: a process begins with that of the one it was forked from.
print(said, int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def test_it_takes_no_more_memory_than_it_says(phi4_tiny: Path, tmp_path: Path) -> None:
    """Kept to the end, this checkpoint's rows alone would be 200 MB beside the 700 that are said."""
    command = [sys.executable, "-c", PEAK, str(phi4_tiny), str(tmp_path / "out"), "Q2_K", "Q4_K_M", "Q6_K", "Q8_0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    said, peak = map(int, run.stdout.split())
    assert said / 2 < peak < said


@pytest.mark.parametrize(
    ("tensor", "name", "row"),
    [("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight", 77), ("lm_head.weight", "output.weight", 70)],
)
def test_a_weight_that_cannot_be_packed_is_named(
    ask: Callable[..., Request], tmp_path: Path, tensor: str, name: str, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(tensors: small.Tensors) -> None:
        small.lively(tensors)
        tensors[tensor][row, 5] = 1e6

    monkeypatch.setattr(module, "SLAB_WEIGHTS", 20 * small.HIDDEN)
    monkeypatch.setattr(score, "SLAB_TOKENS", 50)
    source = small.write(tmp_path / "large", edit_tensors=plant)
    with pytest.raises(MagnitudeError) as caught:
        sweep(ask(source=source, types=("F16",), vram_bytes=1 << 30))
    found = {key: caught.value.details[key] for key in ("file", "tensor", "row", "column")}
    assert found == {"file": source, "tensor": name, "row": row, "column": 5}


def test_an_embedding_that_cannot_be_packed_is_named(ask: Callable[..., Request], tmp_path: Path) -> None:
    def plant(tensors: small.Tensors) -> None:
        tensors["model.embed_tokens.weight"][ord("e"), 5] = 1e6

    with pytest.raises(MagnitudeError) as caught:
        sweep(ask(source=small.write(tmp_path / "large", edit_tensors=plant), types=("F16",), vram_bytes=1 << 30))
    assert (caught.value.details["tensor"], caught.value.details["row"]) == ("token_embd.weight", ord("e"))
