"""Checkpoints and the files made of them, once a session for all tests; what is large goes when the session ends."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import layouts
import phi4_mini_tiny as phi4_mini_tiny_maker
import phi4_widths
import pytest
import real_small as real_small_maker
from oracle import PRESETS

from quantkit.checkpoint import open_checkpoint
from quantkit.convert import convert
from quantkit.plan import make_plan, output_paths
from quantkit.recipe import preset


@pytest.fixture(scope="session")
def real_small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of trained weights, 458 MB."""
    folder = tmp_path_factory.mktemp("checkpoint") / "real_small"
    real_small_maker.write(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def phi4_tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint with Phi-4's whole vocabulary and one small layer of random weights, 104 MB."""
    folder = tmp_path_factory.mktemp("checkpoint") / "phi4_tiny"
    phi4_widths.write(folder, phi4_widths.TINY)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def phi4_tiny_v5(phi4_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """phi4_tiny as transformers 5 saves it; the weights are links."""
    folder = tmp_path_factory.mktemp("checkpoint") / "phi4_tiny_v5"
    shutil.copytree(phi4_tiny, folder, copy_function=_copy_or_link)
    layouts.transformers_5(folder)
    return folder


def _copy_or_link(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


@pytest.fixture(scope="session")
def phi4_mini_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with Phi-4-mini's traits, random weights, 22 MB."""
    folder = tmp_path_factory.mktemp("checkpoint") / "phi4_mini_tiny"
    phi4_mini_tiny_maker.write(folder)
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], dict[str, Path]]]:
    """A function from a checkpoint to its GGUF file by preset; all are made in one pass, when first asked for."""
    folder = tmp_path_factory.mktemp("converted")

    @functools.cache
    def files(checkpoint: Path) -> dict[str, Path]:
        with open_checkpoint(checkpoint) as opened:
            plan = make_plan(opened, [preset(name) for name in PRESETS], warn=pytest.fail)
            paths = [path for (path,) in output_paths(plan.outputs, opened.name, folder)]
            convert(opened, plan, paths)
        return dict(zip(PRESETS, paths, strict=True))

    yield files
    shutil.rmtree(folder)
