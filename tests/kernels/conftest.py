"""The candidates: the NumPy text and every instruction set of the C kernels that this processor has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit import kernels

sys.path.insert(0, str(Path(__file__).parent))  # for contract.py, fills.py and million.py
pytest.register_assert_rewrite("contract")

from contract import NATIVE, NATIVE_NAMES, Candidate  # noqa: E402


@pytest.fixture(params=["numpy", *NATIVE_NAMES])
def candidate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Candidate]:
    """quantkit.kernels with one backend, whatever the environment asks for."""
    name: str = request.param
    native = None if name == "numpy" else NATIVE
    monkeypatch.setattr(kernels, "_native", lambda: native)
    if native:
        native.use(name)
    yield Candidate(name, kernels.encode, kernels.decode)
    if native:
        native.use(None)
