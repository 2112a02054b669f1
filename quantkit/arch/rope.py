"""Rotary position embedding: what config.json says of it, wherever it says it.

transformers 4 writes `rope_theta` and `partial_rotary_factor` beside `rope_scaling`, transformers 5 all of it into
`rope_parameters`.  As in llama.cpp's converter (conversion/base.py, TextModel.__init__) the object counts where it has
a key, and the top level fills in the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import ConfigError, UnsupportedError

PLAIN = "default"
# What attention logits are multiplied by, from s = context / original context and the latter
# (conversion/phi.py, generate_extra_tensors).
_ATTENTION_FACTORS: Mapping[str, Callable[[float, int], float]] = {
    "longrope": lambda s, original: math.sqrt(1 + math.log(s) / math.log(original)),
    "su": lambda s, original: _ATTENTION_FACTORS["longrope"](s, original),  # its first name
    "yarn": lambda s, original: 0.1 * math.log(s) + 1,
}
_FROM_TOP_LEVEL = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
_KNOWN = {*_FROM_TOP_LEVEL, "type", "rope_type", "long_factor", "short_factor", "factor"}


@dataclass(frozen=True)
class Rope:
    """How positions enter a network.

    theta             base of the frequencies
    rotary            dimensions of a head that are rotated, an even number
    context           positions it is made for
    original_context  positions it was first trained for
    long_factors      divisors of the frequencies, rotary / 2 of them, beyond the original context; () for none
    short_factors     likewise within it
    attention_factor  of the logits, where there are factors
    """

    theta: float
    rotary: int
    context: int
    original_context: int
    long_factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()
    attention_factor: float | None = None


def read_rope(config: Mapping[str, Any], file: Path, *, hidden: int, heads: int) -> Rope:
    """The rotary embedding of a config.json; raises ConfigError, UnsupportedError.

    hidden, heads  hidden / heads is the width of a head
    """
    place = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = dict(require(config, place, dict, file)) if config.get(place) else {}
    for key in _FROM_TOP_LEVEL:
        if config.get(key) is not None:
            rope.setdefault(key, config[key])
    rope.setdefault("partial_rotary_factor", 1.0)
    for key in sorted(rope.keys() - _KNOWN):
        if rope[key] is not None:
            raise UnsupportedError("GGUF has no such setting for this architecture", file=file, key=f"{place}.{key}")

    context = _count(config, "max_position_embeddings", file)
    original = _count(rope, "original_max_position_embeddings", file)
    theta = require(rope, "rope_theta", float, file)
    partial = require(rope, "partial_rotary_factor", float, file)
    rotary = int(partial * hidden) // heads if 0 < partial <= 1 else 0
    if rotary < 2 or rotary % 2:
        raise ConfigError(
            "rotates an impossible part of a head",
            file=file,
            key="partial_rotary_factor",
            expected=f"an even number of its {hidden // heads} dimensions",
            found=partial,
        )
    kind = rope.get("rope_type", rope.get("type", PLAIN))
    if not rope.get("long_factor"):
        if kind != PLAIN:
            raise _unknown(kind, place, file)
        return Rope(theta, rotary, context, original)
    if not (isinstance(kind, str) and kind in _ATTENTION_FACTORS):
        raise _unknown(kind, place, file)
    if original < 2:
        raise ConfigError(
            "is no length to scale from", file=file, key="original_max_position_embeddings", found=original
        )
    long_factors, short_factors = (_factors(rope, key, rotary // 2, file) for key in ("long_factor", "short_factor"))
    scale = context / original
    attention_factor = _ATTENTION_FACTORS[kind](scale, original) if scale > 1 else 1.0
    return Rope(theta, rotary, context, original, long_factors, short_factors, attention_factor)


def _count(config: Mapping[str, Any], key: str, file: Path) -> int:
    value = require(config, key, int, file)
    if not 0 < value < 1 << 31:
        raise ConfigError("an impossible length", file=file, key=key, expected="1 to 2147483647", found=value)
    return value


def _factors(rope: Mapping[str, Any], key: str, n_factors: int, file: Path) -> tuple[float, ...]:
    values = require(rope, key, list, file)
    if len(values) != n_factors:
        raise ConfigError(
            "must have a factor for each pair of rotated dimensions",
            file=file,
            key=key,
            expected=n_factors,
            found=len(values),
        )
    for value in values:
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise ConfigError("a factor is no positive number", file=file, key=key, found=shown(value))
    return tuple(map(float, values))


def _unknown(kind: Any, place: str, file: Path) -> UnsupportedError:
    return UnsupportedError(
        "this scaling of the rotary embedding is not supported",
        hint=f"supported today: none, or long_factor and short_factor with {', '.join(sorted(_ATTENTION_FACTORS))}",
        file=file,
        key=f"{place}.type" if place == "rope_scaling" else f"{place}.rope_type",
        found=shown(kind),
    )
