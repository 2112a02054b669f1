"""One GGUF file for all tests here, to read or to copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_gguf


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint as a BF16 GGUF file."""
    return small_gguf.make(tmp_path_factory.mktemp("base"))
