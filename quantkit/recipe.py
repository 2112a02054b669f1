"""Recipes: which tensor gets which type, as TOML.

    file_type = 15                      # general.file_type of the output

    [[rule]]                            # the first rule that holds decides; a matrix for which none does is an error
    match = "blk.*.ffn_down.weight"     # shell pattern on GGUF tensor names
    layers = "more_bits"                # optional: only these layers, see LAYERS
    when = { n_gqa = ">=4" }            # optional: only in such networks, see When
    type = "Q6_K"

Norms and every other one-dimensional tensor are F32 without a rule.  A matrix whose rows do not divide into the blocks
of its rule's type gets the one that FALLBACKS has for it.  recipes/README.md is the same for those who write one.
"""

from __future__ import annotations

import hashlib
import operator
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pydantic

from quantkit.errors import RecipeError, UnsupportedError, UsageError
from quantkit.qtypes import F16, F32, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, QType, by_name

# The installed package holds the recipes; a source checkout has them beside it.
_INSTALLED, _CHECKOUT = Path(__file__).parent / "recipes", Path(__file__).parents[1] / "recipes"
_ROOT = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
# The folders that a family's mixes are in; what does not differ stands in one file for both.
FAMILIES = {"llama.cpp": ("llama.cpp", "shared"), "classic": ("classic", "shared")}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # as llama-quantize has them

# What stands in where a row is no whole number of blocks; F16 where that does not fit either (llama-quant.cpp:390).
FALLBACKS = {Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}


@dataclass(frozen=True)
class Facts:
    """What rules may ask of a network and its conversion.

    n_layers  blocks of the network
    n_gqa     heads to each key-value head, rounded down
    imatrix   whether there is an importance matrix
    tied      whether the embedding is the head too: no output.weight
    """

    n_layers: int
    n_gqa: int
    imatrix: bool
    tied: bool


def more_bits(layer: int, n_layers: int) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth, and every third layer between (llama-quant.cpp:452)."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _first_part(layer: int, n_layers: int, part: str) -> bool:
    return layer < n_layers // int(part)


def _in_ranges(layer: int, n_layers: int, text: str) -> bool:
    return any(low <= layer <= high for low, high in _ranges(text))


def _ranges(text: str) -> list[tuple[int, int]]:
    bounds = [part.split("-") for part in text.split(",")]
    return [(int(bound[0]), int(bound[-1])) for bound in bounds]


# The spellings of `layers`; a pattern's group is handed to its function.
LAYERS: dict[str, Callable[..., bool]] = {
    r"more_bits": more_bits,
    r"first 1/([1-9]\d{0,3})": _first_part,
    r"(\d{1,4}(?:-\d{1,4})?(?:,\d{1,4}(?:-\d{1,4})?)*)": _in_ranges,
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(rf"({'|'.join(COMPARISONS)})(\d{{1,4}})")


class _Table(pydantic.BaseModel):
    """A table of the TOML: no key but those named, no value converted to another type."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class When(_Table):
    """The conditions of a rule: all that are given must hold.

    n_gqa          a comparison with a whole number, ">=4"
    imatrix, tied  as in Facts
    """

    n_gqa: str | None = None
    imatrix: bool | None = None
    tied: bool | None = None

    @pydantic.field_validator("n_gqa")
    @classmethod
    def _known_comparison(cls, text: str | None) -> str | None:
        if text is not None and not _COMPARISON.fullmatch(text):
            raise ValueError('expected a comparison with a whole number such as ">=4"')
        return text

    def holds(self, facts: Facts) -> bool:
        """Whether the conditions are those of facts."""
        if self.n_gqa is not None and (found := _COMPARISON.fullmatch(self.n_gqa)):
            sign, number = found.groups()
            if not COMPARISONS[sign](facts.n_gqa, int(number)):
                return False
        return self.imatrix in (None, facts.imatrix) and self.tied in (None, facts.tied)


class Rule(_Table):
    """One [[rule]]."""

    match: str
    type: str
    layers: str | None = None
    when: When = When()

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
        if text is None:
            return text
        found = next((holds for pattern, holds in LAYERS.items() if re.fullmatch(pattern, text)), None)
        if found is None:
            raise ValueError('expected "more_bits", "first 1/8" or layer numbers such as "0-4,7"')
        if found is _in_ranges and any(low > high for low, high in _ranges(text)):
            raise ValueError("a range that ends before it starts")
        return text

    def holds(self, tensor: str, facts: Facts) -> bool:
        """Whether this rule is for the tensor of that GGUF name."""
        return fnmatchcase(tensor, self.match) and self.when.holds(facts) and self._has_layer(tensor, facts.n_layers)

    def _has_layer(self, tensor: str, n_layers: int) -> bool:
        if self.layers is None:
            return True
        layer = layer_of(tensor)
        if layer < 0:
            return False
        for pattern, holds in LAYERS.items():
            if found := re.fullmatch(pattern, self.layers):
                return holds(layer, n_layers, *found.groups())
        raise AssertionError("the validator lets no other spelling through")


class _File(_Table):
    file_type: int = pydantic.Field(ge=0, lt=1 << 32)
    needs_imatrix: bool = False
    rule: list[Rule] = pydantic.Field(min_length=1)


@dataclass(frozen=True)
class Recipe:
    """A mix of types.

    name           of the preset or the file, without .toml
    file_type      general.file_type of the output
    rules          in order
    sha256         of the TOML's bytes
    needs_imatrix  whether it is refused without an importance matrix
    toml           those bytes
    """

    name: str
    file_type: int
    rules: tuple[Rule, ...]
    sha256: str
    needs_imatrix: bool = False
    toml: bytes = field(default=b"", repr=False, compare=False)

    def check(self, facts: Facts) -> None:
        """Raises UsageError where facts rule this recipe out."""
        if self.needs_imatrix and not facts.imatrix:
            hint = "give one with --imatrix FILE, or take another type"
            raise UsageError(f"{self.name} needs an importance matrix", hint=hint)

    def wanted(self, tensor: str, shape: tuple[int, ...], facts: Facts) -> QType:
        """The type of the tensor of that GGUF name and NumPy shape, whether or not its rows divide into blocks.

        raises  RecipeError where no rule is for it
        """
        if len(shape) == 1 or tensor.endswith("_norm.weight"):
            return F32
        for rule in self.rules:
            if rule.holds(tensor, facts):
                return by_name(rule.type)
        raise RecipeError(
            f"recipe {self.name} has no rule for a tensor", tensor=tensor, hint='end it with a rule that matches "*"'
        )

    def type_of(self, tensor: str, shape: tuple[int, ...], facts: Facts) -> QType:
        """The type that the tensor gets: the one wanted, or its fallback; raises RecipeError where no rule is for it.

        llama-quantize counts a head that it makes Q8_0 because its rows do not divide as no fallback; here it is one.
        """
        return fitting(self.wanted(tensor, shape, facts), shape[-1])


def fitting(qtype: QType, n_columns: int) -> QType:
    """The type that rows of n_columns weights get where qtype is wanted: itself if they divide into its blocks."""
    if qtype.divides(n_columns):
        return qtype
    fallback = FALLBACKS.get(qtype)
    return fallback if fallback is not None and fallback.divides(n_columns) else F16


def layer_of(tensor: str) -> int:
    """The layer of the tensor of that GGUF name, -1 for one of the whole network."""
    found = re.match(r"blk\.(\d+)\.", tensor)
    return int(found[1]) if found else -1


def families() -> list[str]:
    """The families of presets, the default first."""
    return list(FAMILIES)


def presets(family: str = "llama.cpp") -> list[str]:
    """The names that `preset` knows in a family, aliases aside; raises UsageError for an unknown family."""
    return sorted(_files(family))


def preset(name: str, family: str = "llama.cpp") -> Recipe:
    """The recipe of a preset, in any letter case; raises UsageError."""
    files = _files(family)
    file = files.get(ALIASES.get(name.upper(), name.upper()))
    if file is None:
        raise UsageError(f"unknown type {name!r}", hint=f"types: {', '.join(sorted(files))}")
    return load(file)


def choose(types: Sequence[str], recipe: str) -> list[Recipe]:
    """The recipes that `-t TYPE ... --recipe NAME|FILE` means, each once.

    recipe   a family, whose presets types are; or a TOML file, one complete mix that takes no types
    raises   UsageError, RecipeError
    """
    if recipe in FAMILIES:
        if not types:
            raise UsageError("no type given", hint="-t Q4_K_M, or --recipe FILE for a mix of your own")
        return list(dict.fromkeys(preset(name, recipe) for name in types))
    if not is_file(recipe):
        raise UsageError(f"unknown family of recipes {recipe!r}", hint=f"{', '.join(FAMILIES)}, or a .toml file")
    if types:
        raise UsageError("a recipe file is a complete mix and takes no -t", found=", ".join(types))
    return [load(Path(recipe))]


def named(recipe: str) -> Recipe:
    """One recipe: llama.cpp's preset of that name, or that of a TOML file; raises UsageError, RecipeError."""
    (one,) = choose((), recipe) if is_file(recipe) else choose((recipe,), "llama.cpp")
    return one


def is_file(recipe: str) -> bool:
    """Whether --recipe means a file, and no family."""
    return recipe.endswith(".toml")


def _files(family: str) -> dict[str, Path]:
    if family not in FAMILIES:
        raise UsageError(f"unknown family of recipes {family!r}", hint=f"families: {', '.join(FAMILIES)}")
    folders = [_ROOT / folder for folder in FAMILIES[family]]
    return {path.stem: path for folder in folders for path in folder.glob("*.toml")}


def load(path: Path) -> Recipe:
    """The recipe in the TOML file at path; raises RecipeError naming the rule and what is wrong with it."""
    if not re.fullmatch(r"[\w.+-]{1,64}", path.stem, re.ASCII):
        raise RecipeError(
            "a recipe is called as its file, and that name is not fit for use in others",
            file=path,
            expected="at most 64 letters, digits and . _ + -",
        )
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
    sha256 = hashlib.sha256(data).hexdigest()
    return Recipe(path.stem, content.file_type, tuple(content.rule), sha256, content.needs_imatrix, data)
