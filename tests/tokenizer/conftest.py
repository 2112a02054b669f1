"""Small tokenizers: the byte alphabet, a few merges, and the added tokens that a test asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.tokenizer import Vocabulary, load_vocabulary
from quantkit.tokenizer.byte_level import BYTE_OF
from quantkit.tokenizer.pre import CL100K


class Maker:
    """Makes tokenizer.json documents and checkpoint folders with them; `warnings` collects what loading warns of."""

    N_ROWS = 300

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []

    def told(self, error: Exception) -> str:
        """What an error says, without the folder, whose name comes from the test's."""
        return str(error).replace(str(self.folder), "")

    @staticmethod
    def token(token_id: int, text: str, *, special: bool = True, normalized: bool = False) -> dict[str, Any]:
        """An entry of `added_tokens`."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}
        return {"id": token_id, "content": text, **flags}

    def document(self, *tokens: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """A tokenizer.json: bytes 0-255, "he" 256, "hel" 257, U+FFFD's bytes 259, <|endoftext|> 260, <|im_end|> 261.

        tokens are added after those; changes replace top-level values, those in `model` its values.
        """
        vocab = BYTE_OF | {"he": 256, "hel": 257, "ï¿": 258, "ï¿½": 259}
        split = {"type": "Split", "pattern": {"Regex": CL100K}, "behavior": "Removed", "invert": True}
        to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [["h", "e"], ["he", "l"], ["ï", "¿"], ["ï¿", "½"]],
        }
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [self.token(260, "<|endoftext|>"), self.token(261, "<|im_end|>"), *tokens],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            **changes,
            "model": model | changes.get("model", {}),
        }

    def load(
        self,
        document: Any = None,
        settings: Any = None,
        *,
        config: dict[str, Any] | None = None,
        files: dict[str, str] | None = None,
        n_rows: int = N_ROWS,
        fix: bool = False,
    ) -> Vocabulary:
        """Write document, tokenizer_config.json and further files, and load the vocabulary from them."""
        texts = {"tokenizer.json": json.dumps(self.document() if document is None else document), **(files or {})}
        if settings is not None:
            texts["tokenizer_config.json"] = json.dumps(settings)
        for name, text in texts.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        return load_vocabulary(
            self.folder, config or {}, n_rows=n_rows, fix_special_tokens=fix, warn=self.warnings.append
        )


@pytest.fixture
def made(tmp_path: Path) -> Maker:
    return Maker(tmp_path)
