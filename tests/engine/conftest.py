"""The engine for each test.  Where there is none, tests are skipped, or fail if QUANTKIT_REQUIRE_ENGINE=1."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from engine import Engine, missing


@pytest.fixture
def engine() -> Iterator[Engine]:
    if reason := missing():
        end = pytest.fail if os.environ.get("QUANTKIT_REQUIRE_ENGINE") == "1" else pytest.skip
        end(reason)
    with Engine() as running:
        yield running
