"""Shards: named, numbered and filled as llama.cpp's gguf-split does, and never half there."""

from __future__ import annotations

import itertools
from pathlib import Path

import gguf
import numpy as np
import pytest
import small

from quantkit.checkpoint import open_checkpoint
from quantkit.convert import convert
from quantkit.gguf_io import Kind, read_gguf
from quantkit.osio import AtomicFile
from quantkit.plan import make_plan, output_paths
from quantkit.recipe import preset

LIMIT = 200_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("splits") / "small")


def run(source: Path, out: Path, split_max_bytes: int | None) -> list[Path]:
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, [preset("Q4_K_M")], split_max_bytes=split_max_bytes, warn=pytest.fail)
        (paths,) = output_paths(plan.outputs, checkpoint.name, out)
        convert(checkpoint, plan, paths)
    return paths


def test_shards_are_named_and_numbered(source: Path, tmp_path: Path) -> None:
    paths = run(source, tmp_path, LIMIT)
    n = len(paths)
    assert n > 2
    assert [path.name for path in paths] == [f"small-Q4_K_M-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)]
    assert sorted(tmp_path.iterdir()) == paths
    shards = [read_gguf(path) for path in paths]
    for number, shard in enumerate(shards):
        split = {key: (field.kind, field.value) for key, field in shard.fields.items() if key.startswith("split.")}
        assert split == {
            "split.no": (Kind.U16, number),
            "split.count": (Kind.U16, n),
            "split.tensors.count": (Kind.I32, 3 + 6 * small.LAYERS),
        }
        assert (len(shard.fields) > 3) == (number == 0), "all other keys are in the first shard alone"


def test_shards_hold_what_one_file_holds(source: Path, tmp_path: Path) -> None:
    (whole,) = run(source, tmp_path / "whole.gguf", None)
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in gguf.GGUFReader(whole).tensors}
    found = {}
    for path in run(source, tmp_path / "shards.gguf", LIMIT):
        for tensor in gguf.GGUFReader(path).tensors:
            assert tensor.name not in found
            found[tensor.name] = np.asarray(tensor.data)
    assert list(found) == list(tensors)
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_a_shard_takes_what_fits_and_a_larger_tensor_stands_alone(source: Path, tmp_path: Path) -> None:
    shards = [read_gguf(path) for path in run(source, tmp_path, LIMIT)]
    for shard, following in itertools.pairwise(shards):
        size = sum(-(-tensor.nbytes // 32) * 32 for tensor in shard.tensors.values())
        first = next(iter(following.tensors.values()))
        assert size <= LIMIT or len(shard.tensors) == 1
        assert size + first.nbytes > LIMIT


def test_the_first_shard_appears_last(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Path] = []
    publish = AtomicFile.publish

    def noting(file: AtomicFile) -> None:
        publish(file)
        if file.path.suffix == ".gguf":
            order.append(file.path)

    monkeypatch.setattr(AtomicFile, "publish", noting)
    paths = run(source, tmp_path, LIMIT)
    assert order == paths[::-1]
