"""kernels.backends() and kernels.using(): one backend for a while."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from quantkit import kernels, qtypes
from quantkit.errors import UsageError

ROWS = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)


def test_numpy_is_always_there_and_the_default_is_one_of_them() -> None:
    assert kernels.backends()[0] == "numpy"
    assert kernels.backend() in kernels.backends()


@pytest.mark.parametrize("name", kernels.backends())
def test_one_is_used_by_all_threads_and_only_within(name: str) -> None:
    before, seen = kernels.backend(), []
    with kernels.using(name):
        thread = threading.Thread(target=lambda: seen.append(kernels.backend()))
        thread.start()
        thread.join()
        packed = kernels.encode(ROWS, qtypes.Q4_K)
    assert seen == [name]
    assert kernels.backend() == before
    assert np.array_equal(packed, kernels.encode(ROWS, qtypes.Q4_K))


@pytest.mark.parametrize("outer", kernels.backends())
def test_the_one_before_comes_back_after_an_error_too(outer: str) -> None:
    for inner in kernels.backends():
        with kernels.using(outer):
            with pytest.raises(ZeroDivisionError), kernels.using(inner):
                assert kernels.backend() == inner
                raise ZeroDivisionError
            assert kernels.backend() == outer


def test_numpys_text_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(kernels.NUMPY_TEXTS, "Q4_K", (text, text))
    with kernels.using("numpy"), pytest.raises(ZeroDivisionError):
        kernels.encode(ROWS, qtypes.Q4_K)


def test_an_unknown_one_is_refused_with_the_known() -> None:
    with pytest.raises(UsageError, match="avx9") as caught, kernels.using("native/avx9"):
        pass
    assert caught.value.hint == ", ".join(kernels.backends())
