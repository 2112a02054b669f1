"""require(): a value of config.json by key and type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.config import require
from quantkit.errors import ConfigError

FILE = Path("config.json")
VALUES: dict[type, Any] = {bool: True, int: 7, float: 0.5, str: "silu", list: [1], dict: {"a": 1}}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("given", [*VALUES, type(None)])
def test_each_kind_takes_its_own_only(kind: Any, given: type) -> None:
    value = VALUES.get(given)
    if given is kind or (kind is float and given is int):
        result = require({"key": value}, "key", kind, FILE)
        assert type(result) is kind
        assert result == value
        return
    with pytest.raises(ConfigError) as caught:
        require({"key": value}, "key", kind, FILE)
    assert caught.value.exit_code == 65
    assert caught.value.details.keys() == {"file", "key", "expected", "found"}


def test_missing_key() -> None:
    with pytest.raises(ConfigError, match=r"config.json, key hidden_size: .*expected a whole number, found nothing"):
        require({"hidden": 1}, "hidden_size", int, FILE)


def test_number_beyond_every_float() -> None:
    with pytest.raises(ConfigError, match="expected a number, found 1000"):
        require({"rope_theta": 10**400}, "rope_theta", float, FILE)
