"""Recipes: which tensor gets which type, as TOML.

    file_type = 15                      # general.file_type of the output

    [[rule]]                            # the first rule that matches decides; a matrix that none matches is an error
    match = "blk.*.ffn_down.weight"     # shell pattern on GGUF tensor names
    layers = "more_bits"                # optional: only these layers, see LAYERS
    type = "Q6_K"

Norms and every other one-dimensional tensor are F32 without a rule.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pydantic

from quantkit.errors import RecipeError, UnsupportedError, UsageError
from quantkit.qtypes import F32, QType, by_name

FAMILY = "llama.cpp"
# The installed package holds the recipes; a source checkout has them beside it.
_FOLDERS = (Path(__file__).parent / "recipes", Path(__file__).parents[1] / "recipes")


def more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth, and every third layer between (llama-quant.cpp:452)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _first_part(layer: int, layers: int, part: str) -> bool:
    return layer < layers // int(part)


def _in_ranges(layer: int, layers: int, ranges: str) -> bool:
    bounds = [(part.split("-") * 2)[:2] for part in ranges.split(",")]
    return any(int(low) <= layer <= int(high) for low, high in bounds)


# The spellings of `layers`; a pattern's group is handed to its function.
LAYERS: dict[str, Callable[..., bool]] = {
    r"more_bits": more_bits,
    r"first 1/([1-9]\d{0,3})": _first_part,
    r"(\d{1,4}(?:-\d{1,4})?(?:,\d{1,4}(?:-\d{1,4})?)*)": _in_ranges,
}


class Rule(pydantic.BaseModel):
    """One [[rule]]."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    match: str
    type: str
    layers: str | None = None

    @pydantic.field_validator("type")
    @classmethod
    def _known_type(cls, name: str) -> str:
        try:
            return by_name(name).name
        except UnsupportedError as error:
            raise ValueError(f"{error.message} ({error.hint})") from None

    @pydantic.field_validator("layers")
    @classmethod
    def _known_layers(cls, text: str | None) -> str | None:
        if text is not None and not any(re.fullmatch(pattern, text) for pattern in LAYERS):
            raise ValueError('expected "more_bits", "first 1/8" or layer numbers such as "0-4,7"')
        return text

    def matches(self, tensor: str, n_layers: int) -> bool:
        """Whether this rule decides over the tensor of that GGUF name in a network of n_layers."""
        if not fnmatchcase(tensor, self.match):
            return False
        if self.layers is None:
            return True
        layer = layer_of(tensor)
        if layer < 0:
            return False
        for pattern, holds in LAYERS.items():
            if found := re.fullmatch(pattern, self.layers):
                return holds(layer, n_layers, *found.groups())
        raise AssertionError("the validator lets no other spelling through")


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    file_type: int = pydantic.Field(ge=0, lt=1 << 32)
    rule: list[Rule] = pydantic.Field(min_length=1)


@dataclass(frozen=True)
class Recipe:
    """A mix of types.

    name       of the preset or the file, without .toml
    file_type  general.file_type of the output
    rules      in order
    sha256     of the TOML's bytes
    """

    name: str
    file_type: int
    rules: tuple[Rule, ...]
    sha256: str

    def type_of(self, tensor: str, shape: tuple[int, ...], n_layers: int) -> QType:
        """The type of the tensor of that GGUF name; raises RecipeError where no rule matches."""
        if len(shape) == 1:
            return F32
        for rule in self.rules:
            if rule.matches(tensor, n_layers):
                return by_name(rule.type)
        raise RecipeError(
            f"recipe {self.name} has no rule for a tensor", tensor=tensor, hint='end it with a rule that matches "*"'
        )


def layer_of(tensor: str) -> int:
    """The layer of the tensor of that GGUF name, -1 for one of the whole network."""
    found = re.match(r"blk\.(\d+)\.", tensor)
    return int(found[1]) if found else -1


def presets() -> list[str]:
    """The names that `preset` knows."""
    return sorted(path.stem for folder in _FOLDERS for path in (folder / FAMILY).glob("*.toml"))


def preset(name: str) -> Recipe:
    """The recipe of a preset, in any letter case; raises UsageError."""
    for folder in _FOLDERS:
        path = folder / FAMILY / f"{name.upper()}.toml"
        if name.upper() in presets() and path.is_file():
            return load(path)
    raise UsageError(f"unknown type {name!r}", hint=f"types: {', '.join(presets())}")


def load(path: Path) -> Recipe:
    """The recipe in a TOML file; raises RecipeError naming the rule and what is wrong with it."""
    try:
        data = path.read_bytes()
        content = _File.model_validate(tomllib.loads(data.decode("utf-8")))
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", file=path) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"is not TOML: {error}", file=path) from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
        raise RecipeError(first["msg"], file=path, key=key, found=first["input"]) from None
    return Recipe(path.stem, content.file_type, tuple(content.rule), hashlib.sha256(data).hexdigest())
