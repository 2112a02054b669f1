"""A small checkpoint, an importance matrix for it, and requests that are answered in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import small_moments
import synthetic_imatrix
from small_moments import COLUMNS

from quantkit.evaluate import Text, measure, shipped
from quantkit.sweep import Request

VRAM = 3 << 20
MEMORY = {"ubatch": 64, "overhead_bytes": 0}


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint, every tensor of which has its say."""
    return small.write(tmp_path_factory.mktemp("sweep") / "little", edit_tensors=small.lively)


@pytest.fixture(scope="session")
def imatrix(little: Path) -> Path:
    path = little.parent / "imatrix.gguf"
    names = [(f"blk.{i}.{name}.weight", k) for i in range(small.LAYERS) for name, k in COLUMNS.items()]
    synthetic_imatrix.write(path, "gguf", names)
    return path


@pytest.fixture(scope="session")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moments")
    small_moments.write(folder)
    return folder


@pytest.fixture(scope="session")
def text() -> Text:
    return shipped("eval.txt")


@pytest.fixture
def groups_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GROUP_TOKENS", 2 * 32)


@pytest.fixture
def ask(little: Path, tmp_path: Path) -> Callable[..., Request]:
    """A request of three types and five windows of 32 tokens, but for what is given."""

    def request(**changes: Any) -> Request:
        usual = {
            "source": little,
            "out": tmp_path / "out",
            "vram_bytes": VRAM,
            "context": 1024,
            "memory": MEMORY,
            "types": ("Q2_K", "Q4_K_M", "Q8_0"),
            "window": 32,
            "windows": 5,
        }
        return Request(**usual | changes)

    return request
