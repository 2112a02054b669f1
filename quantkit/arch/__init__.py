"""Which networks quantkit converts, and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.arch import phi3
from quantkit.arch.family import EMBEDDING, HEAD, LAST_NORM, Family, MappedTensor, Network
from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import shown
from quantkit.errors import UnsupportedError

__all__ = ["EMBEDDING", "FAMILIES", "HEAD", "LAST_NORM", "Family", "MappedTensor", "Network", "find_family"]

FAMILIES = (phi3.FAMILY, phi3.SPLIT_FAMILY)


def find_family(config: Mapping[str, Any], file: Path) -> Family:
    """The family that config.json's `architectures` names; raises ConfigError, UnsupportedError."""
    names = require(config, "architectures", list, file)
    for family in FAMILIES:
        if len(names) == 1 and names[0] in family.architectures:
            return family
    supported = ", ".join(
        f"{name} (a Phi-4 saved under that name)" if family.pre_tokenizers else name
        for family in FAMILIES
        for name in family.architectures
    )
    raise UnsupportedError(
        "this architecture is not supported",
        hint=f"supported today: {supported}",
        file=file,
        key="architectures",
        found=shown(names),
    )
