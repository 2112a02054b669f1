"""Values of config.json, asked for by key and type."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from quantkit.checkpoint.json_file import shown
from quantkit.errors import ConfigError

T = TypeVar("T", bool, int, float, str, list[Any], dict[str, Any])

_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def require(config: Mapping[str, Any], key: str, kind: type[T], file: Path) -> T:
    """The value of key.

    kind     bool, int, float, str, list or dict; a float may be written without a point, a bool is no number
    file     where config comes from, for the error
    returns  the value, of type kind
    raises   ConfigError  the key is missing or its value is of another type
    """
    if key not in config:
        raise ConfigError("a needed key is missing", file=file, key=key, expected=_WORDS[kind], found="nothing")
    value = config[key]
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) is not kind:
        found = shown(config[key])
        raise ConfigError("a value has the wrong type", file=file, key=key, expected=_WORDS[kind], found=found)
    result: T = value
    return result
