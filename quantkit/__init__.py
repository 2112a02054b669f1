"""quantkit: from a fine-tuned checkpoint to the GGUF files worth publishing."""

from __future__ import annotations

__version__ = "0.1.0"
