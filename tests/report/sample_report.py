"""A report of a sweep, small and made up, to be spoilt by tests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Edit = Callable[[dict[str, Any]], None]

LAYERS, WINDOWS = 3, 4
MATRICES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
# candidate: (type of most of its matrices, bytes of its weights, mean KLD)
TYPES = {
    "Q2_K": ("Q2_K", 5 << 30, 1.25),
    "Q4_0": ("Q4_0", 8 << 30, 0.2),
    "Q4_K_M": ("Q4_K", 8 << 30, 0.125),
    "Q5_0": ("Q5_0", 9 << 30, 0.15),
    "Q6_K": ("Q6_K", 10 << 30, 0.02),
    "Q8_0": ("Q8_0", 14 << 30, 0.002),
}
CARD = 12 << 30


def report(*edits: Edit) -> dict[str, Any]:
    """The report, edited."""
    content: dict[str, Any] = {
        "schema": {"name": "quantkit.sweep", "version": 1},
        "quantkit": "0.1.0",
        "source": "my-phi-4",
        "source_bytes": 28 << 30,
        "text": ["eval.txt"],
        "text_sha256": "1" * 64,
        "vocabulary_sha256": "2" * 64,
        "window": 512,
        "activations": "f32",
        "dtype": "float32",
        "base_sha256": "3" * 64,
        "imatrix_sha256": None,
        "recipe": "llama.cpp",
        "n_tokens": 27004,
        "windows": WINDOWS,
        "scored": 255,
        "device": "cpu",
        "vram_bytes": CARD,
        "run": {
            "context": 16384,
            "kv_type": "f16",
            "parallel": 1,
            "ubatch": 512,
            "gpu_layers": None,
            "overhead_bytes": 512 << 20,
        },
        "base": {"ppl": 9.5, "ppl_stderr": 0.5, "nll_by_window": [2.0, 2.5, 2.25, 2.125]},
        "candidates": [candidate(name, *facts) for name, facts in TYPES.items()],
        "pick": {"type": "Q6_K", "runner_up": "Q4_K_M", "step": None, "sentence": "Q6_K is the best that fits."},
    }
    for edit in edits:
        edit(content)
    return content


def candidate(name: str, qtype: str, weights: int, kld: float) -> dict[str, Any]:
    types = {f"blk.{i}.{matrix}.weight": qtype for i in range(LAYERS) for matrix in MATRICES}
    types |= {"output_norm.weight": "F32", "output.weight": "Q6_K", "token_embd.weight": qtype}
    card = {"weights": weights, "KV cache": 1 << 30, "compute": 256 << 20, "overhead": 512 << 20}
    needed = sum(card.values())
    return {
        "type": name,
        "recipe_sha256": "4" * 64,
        "file_bytes": weights + (300 << 20),
        "tensor_bytes": weights + (299 << 20),
        "bits_per_weight": 8 * weights / 14e9,
        "types": dict(Counter(types.values())),
        "tensor_types": types,
        "memory": {
            "card_bytes": needed,
            "host_bytes": 400 << 20,
            "left_bytes": CARD - needed,
            "fits": needed <= CARD,
            "longest_context": 16384,
            "card": [{"name": term, "bytes": nbytes, "formula": "a x b"} for term, nbytes in card.items()],
            "host": [{"name": "weights", "bytes": 400 << 20, "formula": "token_embd.weight"}],
        },
        "ppl": 9.5 * (1 + kld),
        "ppl_stderr": 0.5,
        "kld": {"mean": kld, "stderr": kld / 20, "median": kld, "p90": kld, "p99": 4 * kld, "max": 9 * kld},
        "same_top": 1 - kld / 2,
        "delta_p_rms": kld / 3,
        "ppl_ratio": 1 + kld,
        "ppl_ratio_stderr": kld / 10,
        "nll_by_window": [2.0 + kld, 2.5 + kld / 2, 2.25 - kld / 4, 2.125 + kld],
        "kld_by_window": [kld, kld / 2, kld, 1.5 * kld],
    }


def optimized(content: dict[str, Any]) -> None:
    """Two mixes take part, and one of them is picked."""
    mixes = {
        "OPT-Q4_K_M": ("Q5_K", 8 << 30, 0.0875, 0.09),
        "OPT-Q6_K": ("Q8_0", 10 << 30, 0.0125, 0.0115),
    }
    for name, (qtype, weights, kld, predicted) in mixes.items():
        content["candidates"].append(candidate(name, qtype, weights, kld) | {"predicted_kld": predicted})
    content["pick"]["type"] = "OPT-Q6_K"
    content["optimized"] = {
        "text": ["calibration.txt"],
        "text_sha256": "6" * 64,
        "windows": 5,
        "keep": ["output.weight=Q6_K"],
        "min_type": "Q3_K",
        "same_type": ["blk.*.ffn_up.weight"],
        "matrices": {
            f"blk.{i}.{matrix}.weight": {"probe": "Q3_K", "kld": 0.01, "interpolated": i == 1, "errors": {}}
            for i in range(LAYERS)
            for matrix in MATRICES
        },
        "calibration": [{"cost": 0.1, "kld": 0.1}],
        "mixes": [
            {"type": name, "budget_bytes": 1 + weights, "used_bytes": weights, "predicted_kld": predicted, "gap": 0.0}
            for name, (_, weights, _, predicted) in mixes.items()
        ],
    }


def write(folder: Path, *edits: Edit) -> Path:
    """report.json in a new folder, which is returned."""
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report(*edits)))
    return folder
