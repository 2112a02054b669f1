"""config.json of published networks, and of trial ones of the same kind: enough to plan with, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import small

PHI4 = {
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "vocab_size": 100352,
    "max_position_embeddings": 16384,
    "original_max_position_embeddings": 16384,
}
# These two without their longrope, which weighs 384 bytes.
PHI4_MINI = PHI4 | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 200064,
    "tie_word_embeddings": True,
}
PHI35_MINI = PHI4 | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
REAL_SMALL = PHI4 | {  # of real_small.py
    "hidden_size": 768,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 30,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "original_max_position_embeddings": 8192,
}


def write_config(folder: Path, **changes: Any) -> Path:
    """Make a folder with the config.json of small.py and these changes; returns it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(small.config() | changes))
    return folder
