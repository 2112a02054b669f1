"""Reading the JSON objects that lie beside a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.checkpoint.json_file import read_json, shown
from quantkit.errors import ConfigError


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file; raises FormatError, ConfigError."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise ConfigError("is not a JSON object", file=path, expected="an object", found=shown(value))
    return value
