"""Sizes on the command line: always with their unit, so that GB and GiB cannot be mixed up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

import click


class Size(click.ParamType[int]):
    """Bytes as a number with one of the units, in any letter case; a bare number is refused.

    units     bytes of each
    examples  of values, for the error
    least     bytes
    """

    name = "size"

    def __init__(self, units: Mapping[str, int], examples: str, *, least: int = 1) -> None:
        self._units = {unit.upper(): nbytes for unit, nbytes in units.items()}
        self._examples = examples
        self._least = least

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([A-Z]+)", value.upper(), re.ASCII)
        nbytes = int(Decimal(found[1]) * self._units[found[2]]) if found and found[2] in self._units else -1
        if nbytes < self._least:
            self.fail(f"{value!r} is not a size such as {self._examples}", param, ctx)
        return nbytes


_MEMORY_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
MEMORY = Size(_MEMORY_UNITS, "12GiB or 12GB")
OVERHEAD = Size(_MEMORY_UNITS, "512MiB or 0MiB", least=0)
SPLIT = Size({"M": 10**6, "G": 10**9}, "4G or 500M")  # as llama.cpp's gguf-split takes it: powers of 1000
