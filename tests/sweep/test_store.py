"""What is kept comes back to the bit, and what is damaged does not come back at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.evaluate import Scores
from quantkit.osio import AtomicFile
from quantkit.sweep.store import Store, key

N = 7
FACTS: dict[str, Any] = {"window": 32, "types": {"a": "Q8_0", "b": "F32"}}
RNG = np.random.default_rng(3)
SCORES = Scores(RNG.random(N), RNG.random(N) * 1e-9, RNG.random(N) > 0.5)


def filled(folder: Path) -> Path:
    Store(folder, pytest.fail).put(FACTS, SCORES)
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("scores", [SCORES, Scores(SCORES.nll)], ids=["quant", "base"])
def test_what_is_kept_comes_back(tmp_path: Path, scores: Scores) -> None:
    store = Store(tmp_path, pytest.fail)
    assert store.get(FACTS, N) is None
    store.put(FACTS, scores)
    found = store.get(dict(reversed(FACTS.items())), N)
    assert found is not None
    for name in ("nll", "kld", "agree"):
        kept, before = getattr(found, name), getattr(scores, name)
        assert np.array_equal(kept, before) if before is not None else kept is None
    assert store.get(FACTS | {"window": 64}, N) is None


def test_every_changed_byte_is_seen(tmp_path: Path) -> None:
    path = filled(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        warnings: list[str] = []
        assert Store(tmp_path, warnings.append).get(FACTS, N) is None, at
        assert len(warnings) == 1 and path.name in warnings[0] and "measured again" in warnings[0]


@pytest.mark.parametrize("length", [0, 1, 64, 65, 100, -1])
def test_a_short_file_is_seen(tmp_path: Path, length: int) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    warnings: list[str] = []
    assert Store(tmp_path, warnings.append).get(FACTS, N) is None
    assert len(warnings) == 1


def test_another_measurement_under_its_name_is_seen(tmp_path: Path) -> None:
    path = filled(tmp_path)
    other = path.with_name(f"{key(FACTS | {'window': 64})}.scores")
    path.rename(other)
    warnings: list[str] = []
    assert Store(tmp_path, warnings.append).get(FACTS | {"window": 64}, N) is None
    assert "not what its name says" in warnings[0]


def test_of_another_length_it_is_seen(tmp_path: Path) -> None:
    filled(tmp_path)
    warnings: list[str] = []
    assert Store(tmp_path, warnings.append).get(FACTS, N + 1) is None
    assert len(warnings) == 1


def test_a_file_that_another_run_is_writing_is_left_to_it(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / f"{key(FACTS)}.scores") as theirs:
        Store(tmp_path, pytest.fail).put(FACTS, SCORES)
        theirs.keep()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]


def test_an_answer_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path, pytest.fail)
    assert store.recall(FACTS) is None
    store.remember(FACTS, "an answer")
    assert store.recall(FACTS) == "an answer"
    assert store.recall({}) is None
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        assert store.recall(FACTS) is None
