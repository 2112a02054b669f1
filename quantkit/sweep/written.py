"""A mix as the recipe that a user can read, change, and convert by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from quantkit.qtypes import QType
from quantkit.recipe import layer_of


def recipe_text(
    types: Mapping[str, QType], file_type: int, comments: Sequence[str], *, needs_imatrix: bool = False
) -> str:
    """The TOML of a complete recipe that gives every one of these matrices its type.

    types          by GGUF name
    file_type      general.file_type of the output
    comments       lines to stand above it
    needs_imatrix  refuse to convert without an importance matrix: the mix was measured with one
    """
    rules = [rule for pattern, names in _kinds(types).items() for rule in _rules(pattern, names, types)]
    head = "".join(f"# {line}".rstrip() + "\n" for line in comments)
    needs = "needs_imatrix = true\n" if needs_imatrix else ""
    return f"{head}file_type = {file_type}\n{needs}" + "".join(rules)


def _kinds(names: Iterable[str]) -> dict[str, list[str]]:
    """The names by their pattern: "blk.*.ffn_up.weight" for those of the layers; what is of no layer comes first."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (layer_of(name) >= 0, name)):
        kinds.setdefault(re.sub(r"^blk\.\d+\.", "blk.*.", name), []).append(name)
    return kinds


def _rules(pattern: str, names: Sequence[str], types: Mapping[str, QType]) -> list[str]:
    """The rules of one kind: the type that most have comes last, without layers."""
    counts = Counter(types[name] for name in names)
    order = sorted(counts, key=lambda qtype: (counts[qtype], -qtype.bits_per_weight))
    rules = []
    for qtype in order:
        layers = ranges([layer_of(name) for name in names if types[name] is qtype])
        only = f'layers = "{layers}"\n' if qtype is not order[-1] else ""
        rules.append(f'\n[[rule]]\nmatch = "{pattern}"\n{only}type = "{qtype}"\n')
    return rules


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as `layers` of a recipe has them: "0-4,7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
