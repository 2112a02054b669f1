"""adapter_config.json as PEFT writes it: what decides by how much each module of a model changes.

Source: peft 0.21.2, tuners/lora (config.py, layer.py, model.py) and utils/other.py (get_pattern_key).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.config import require
from quantkit.checkpoint.json_file import read_json, shown
from quantkit.errors import ConfigError, UnsupportedError

ADAPTER_CONFIG = "adapter_config.json"

_MERGE_FIRST = "merge it with PEFT (merge_and_unload, then save_pretrained), and convert what that saves"
# Keys that are neither read below nor change what the tensors mean once training is over.
_OF_TRAINING = {
    "auto_mapping", "bias", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "runtime_config", "task_type",
}  # fmt: skip
# fan_in_fan_out is among them as the matrices of these networks are (outputs, inputs), for which PEFT resets it; bias,
# as they have none: a bias among the tensors is refused by its name.
_READ = {
    "alpha_pattern", "base_model_name_or_path", "ensure_weight_tying", "init_lora_weights", "lora_alpha",
    "modules_to_save", "peft_type", "r", "rank_pattern", "revision", "target_modules", "use_dora", "use_rslora",
}  # fmt: skip
# key: what it would make of the adapter; any value but none, false or empty is refused
_OTHER_MATH = {
    "alora_invocation_tokens": "is active for some tokens only, and cannot be merged",
    "arrow_config": "is chosen for each token anew, and cannot be merged",
    "kasa_config": "has singular values beside its matrices",
    "layer_replication": "repeats layers of its base",
    "lora_bias": "adds biases, and the base has none",
    "monteclora_config": "draws its matrices at random",
    "target_parameters": "changes parameters instead of modules",
    "trainable_token_indices": "changes single rows of the embedding",
    "use_bdlora": "has block-diagonal matrices",
    "use_qalora": "pools the inputs of its matrices",
    "velora_config": "is of a kind that quantkit does not know",
}
# Every other way to begin takes something out of the base first, which PEFT does again when it loads the adapter.
_STARTS_FROM_THE_BASE_ITSELF = (True, False, None, "gaussian", "eva", "orthogonal")
# A pattern is code from outside: nested repeats may take years to match. What is let through takes milliseconds.
_MAX_PATTERN_CHARS, _MAX_WAYS = 512, 1 << 19
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|.", re.DOTALL)
_REPEATS = ("*", "+", "{")
_WAYS = dict.fromkeys(_REPEATS, 64) | {"?": 2}  # of how many characters of a name there may be


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says.

    file            it
    base            name of the model that it was trained on: a path or a hub id; or None
    base_revision   of that, where it is on the hub; or None
    rank, alpha     of a module that no pattern names
    rank_patterns   those by pattern of a module's name; the first that matches counts, else rank
    alpha_patterns  likewise
    rslora          the scale is alpha / sqrt(rank), not alpha / rank
    dora            each row of a matrix has a magnitude of its own
    tied            the output matrix follows the embedding where the two are one
    targets         what target_modules and modules_to_save list; empty where it is one pattern
    warnings        sentences for the user
    """

    file: Path
    base: str | None
    base_revision: str | None
    rank: int
    alpha: float
    rank_patterns: tuple[tuple[re.Pattern[str], int], ...]
    alpha_patterns: tuple[tuple[re.Pattern[str], float], ...]
    rslora: bool
    dora: bool
    tied: bool
    targets: tuple[str, ...]
    warnings: tuple[str, ...]

    def rank_of(self, module: str) -> int:
        """The rank of a module's matrices; module as "model.layers.0.mlp.down_proj"."""
        return next((rank for pattern, rank in self.rank_patterns if pattern.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """What a module's product of matrices is multiplied by."""
        alpha = next((alpha for pattern, alpha in self.alpha_patterns if pattern.match(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_adapter_config(file: Path) -> AdapterConfig:
    """Read and check an adapter_config.json.

    raises  InputError        it is missing or unreadable
            FormatError       it is no JSON
            ConfigError       it is no object, or a key is missing or of the wrong type
            UnsupportedError  another kind than LoRA, or a variant of it that changes more than its tensors say
    """
    config = read_json(file)
    if not isinstance(config, dict):
        raise ConfigError("is not an object", file=file, found=shown(config))
    _refuse_other_kinds(config, file)
    unknown = sorted(
        key for key, value in config.items() if value and key not in _READ | _OF_TRAINING | _OTHER_MATH.keys()
    )
    rank = require(config, "r", int, file)
    if rank <= 0:
        raise ConfigError("an impossible rank", file=file, key="r", expected="above 0", found=rank)
    return AdapterConfig(
        file=file,
        base=_optional(config, "base_model_name_or_path", str, file) or None,
        base_revision=_optional(config, "revision", str, file) or None,
        rank=rank,
        alpha=require(config, "lora_alpha", float, file),
        rank_patterns=_patterns(config, "rank_pattern", int, file),
        alpha_patterns=_patterns(config, "alpha_pattern", float, file),
        rslora=bool(_optional(config, "use_rslora", bool, file)),
        dora=bool(_optional(config, "use_dora", bool, file)),
        tied=bool(_optional(config, "ensure_weight_tying", bool, file)),
        targets=(*_names(config, "target_modules", file), *_names(config, "modules_to_save", file)),
        warnings=tuple(f"{file}: {shown(key)} is not known to quantkit, and not heeded" for key in unknown),
    )


def _refuse_other_kinds(config: Mapping[str, Any], file: Path) -> None:
    kind = require(config, "peft_type", str, file)
    if kind != "LORA":
        raise UnsupportedError(
            "this kind of adapter is not supported",
            hint=_MERGE_FIRST,
            file=file,
            key="peft_type",
            expected="LORA",
            found=shown(kind),
        )
    for key, what in _OTHER_MATH.items():
        if config.get(key):
            raise UnsupportedError(
                f"the adapter {what}", hint=_MERGE_FIRST, file=file, key=key, found=shown(config[key])
            )
    start = config.get("init_lora_weights")
    if not any(start is known or (isinstance(known, str) and start == known) for known in _STARTS_FROM_THE_BASE_ITSELF):
        raise UnsupportedError(
            "training began by changing the base's weights, so that the adapter does not fit the base itself",
            hint="save it again with PEFT: save_pretrained(DIR, path_initial_model_for_weight_conversion=...)",
            file=file,
            key="init_lora_weights",
            found=shown(start),
        )


def _optional(config: Mapping[str, Any], key: str, kind: type[Any], file: Path) -> Any:
    """The value of key, None where there is none; raises ConfigError for one of another type."""
    return None if config.get(key) is None else require(config, key, kind, file)


def _names(config: Mapping[str, Any], key: str, file: Path) -> Sequence[str]:
    """The names in a list; none of a string, which is a pattern or a word for many."""
    value = config.get(key)
    if value is None or isinstance(value, str):
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError("is not a list of names", file=file, key=key, found=shown(value))
    return value


def _patterns(
    config: Mapping[str, Any], key: str, kind: type[Any], file: Path
) -> tuple[tuple[re.Pattern[str], Any], ...]:
    """The values by pattern of a module's name, the first that matches counting, as PEFT matches them."""
    patterns = _optional(config, key, dict, file) or {}
    found, ways = [], 0.0
    for text in patterns:
        ways += _ways(text) if len(text) <= _MAX_PATTERN_CHARS else math.inf
        if ways > _MAX_WAYS:
            raise UnsupportedError(
                f"a pattern of {key} may take forever to match",
                hint="patterns have few of * + { ? |, none of the first three behind a group, and no group with (?",
                file=file,
                key=key,
                found=shown(text),
            )
        value = require(patterns, text, kind, file)
        if kind is int and value <= 0:
            raise ConfigError("an impossible rank", file=file, key=f"{key}.{text}", expected="above 0", found=value)
        try:
            found.append((re.compile(rf"(.*\.)?({text})$"), value))
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"a pattern of {key} is none: {error}", file=file, key=key, found=shown(text)) from None
    return tuple(found)


def _ways(pattern: str) -> float:
    """In how many ways at most a pattern may be tried on a name; infinite where a group repeats, or begins with (?."""
    ways, alternatives, before = 1.0, [1], ""
    for token in _TOKEN.findall(pattern):
        if (before == "(" and token == "?") or (before == ")" and token in _REPEATS):
            return math.inf
        if token in ("(", "(?:"):
            alternatives.append(1)
        elif token == "|":
            alternatives[-1] += 1
        elif token == ")" and len(alternatives) > 1:
            ways *= alternatives.pop()
        ways *= _WAYS.get(token, 1)
        before = token
    return ways * math.prod(alternatives)
