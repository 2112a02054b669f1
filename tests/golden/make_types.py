"""Write the golden types of the mixes from llama-quantize's own dry runs; run by hand, never by a test.

types/<network>.json, of GGUF files without weights that it is asked to quantize:
    network   the sizes, as in NETWORKS
    mixes     by preset "with" and "without" an importance matrix, "any" where that makes no difference; "without" is
              absent where the preset is refused without one:
        MiB    tensor bytes / 2^20, as it prints them
        types  by tensor name, "*" for the layer; where layers differ, by type the layers that have it

The data here is of llama.cpp b11434.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit import qtypes
from quantkit.gguf_io import Field, Kind, data_bytes, header, place
from quantkit.recipe import presets

GOLDEN = Path(__file__).parent / "types"


def network(
    layers: int,
    hidden: int,
    feed_forward: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    *,
    tied: bool = False,
    rope_factors: int = 0,
) -> dict[str, int]:
    """rope_factors: the length of each of the two vectors of them, 0 for a network without."""
    return locals()


NARROW = (576, 1536, 9, 3, 49152)  # most rows do not divide by 256
NETWORKS = {
    "phi-4": network(40, 5120, 17920, 40, 10, 100352),
    "phi-4-mini": network(32, 3072, 8192, 24, 8, 200064, tied=True, rope_factors=48),
    "phi-3.5-mini": network(32, 3072, 8192, 32, 32, 32064, rope_factors=48),
    **{f"narrow-{layers}": network(layers, *NARROW) for layers in (1, 2, 3, 7, 8, 16, 30, 32, 40)},
    "odd": network(9, 80, 256, 8, 2, 1000, tied=True),  # most rows do not divide by 32
}


def shapes(net: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The GGUF tensors of a network of the Phi-3 family, NumPy order, in the order of llama-quantize's output."""
    hidden, feed_forward = net["hidden"], net["feed_forward"]
    head_rows = 0 if net["tied"] else net["vocabulary"]
    qkv_rows = hidden + 2 * hidden // net["heads"] * net["kv_heads"]
    whole = {
        "output.weight": (head_rows, hidden),
        "output_norm.weight": (hidden,),
        "rope_factors_long.weight": (net["rope_factors"],),
        "rope_factors_short.weight": (net["rope_factors"],),
        "token_embd.weight": (net["vocabulary"], hidden),
    }
    layer = {
        "attn_norm": (hidden,),
        "attn_output": (hidden, hidden),
        "attn_qkv": (qkv_rows, hidden),
        "ffn_down": (hidden, feed_forward),
        "ffn_norm": (hidden,),
        "ffn_up": (2 * feed_forward, hidden),
    }
    layers = {f"blk.{i}.{name}.weight": shape for i in range(net["layers"]) for name, shape in layer.items()}
    return {name: shape for name, shape in (whole | layers).items() if 0 not in shape}


def compact(types: Mapping[str, str]) -> dict[str, str | dict[str, str]]:
    """The types of tensors by name as in the golden files."""
    grouped: dict[str, dict[str, list[int]]] = {}
    for tensor, name in types.items():
        layer = re.match(r"blk\.(\d+)", tensor)
        pattern = re.sub(r"^blk\.\d+", "blk.*", tensor)
        grouped.setdefault(pattern, {}).setdefault(name, []).append(int(layer[1]) if layer else -1)
    spelled = {
        pattern: {name: _ranges(layers) for name, layers in sorted(by_type.items())}
        for pattern, by_type in grouped.items()
    }
    return {pattern: by_type if len(by_type) > 1 else next(iter(by_type)) for pattern, by_type in spelled.items()}


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def write_weightless(net: Mapping[str, int], file: Path) -> None:
    """A GGUF file of that network whose data section is a hole."""
    sizes = {
        "context_length": 512,
        "rope.scaling.original_context_length": 512,
        "embedding_length": net["hidden"],
        "feed_forward_length": net["feed_forward"],
        "block_count": net["layers"],
        "attention.head_count": net["heads"],
        "attention.head_count_kv": net["kv_heads"],
        "rope.dimension_count": net["hidden"] // net["heads"],
    }
    fields = [
        Field("general.architecture", Kind.STRING, "phi3"),
        *(Field(f"phi3.{key}", Kind.U32, value) for key, value in sizes.items()),
        Field("phi3.attention.layer_norm_rms_epsilon", Kind.F32, 1e-5),
    ]
    matrix, vector = qtypes.F16, qtypes.F32
    entries = place((name, shape, vector if len(shape) == 1 else matrix) for name, shape in shapes(net).items())
    with file.open("wb") as out:
        out.write(header(fields, entries))
        out.truncate(out.tell() + data_bytes(entries))


def write_imatrix(file: Path) -> None:
    """An importance matrix of one value: a dry run asks no more than whether there is one."""
    name = b"blk.0.ffn_down.weight"
    one_entry = struct.pack(f"<ii{len(name)}siif", 1, len(name), name, 1, 1, 1.0)
    last_chunk_and_no_dataset = struct.pack("<ii", 1, 0)
    file.write_bytes(one_entry + last_chunk_and_no_dataset)


def dry_run(quantize: Path, file: Path, preset: str, *options: str | Path) -> dict[str, Any] | None:
    """What llama-quantize would make of file; None where it would refuse for want of an importance matrix."""
    command = [quantize, "--dry-run", *options, file, preset]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    if "require an imatrix" in text:
        return None
    lines = re.findall(r"\] (\S+) +- \[.*type = +(\w+), size = .*?MiB(?: -> .*\((\w+)\))?\n", text)
    size = re.search(r"quant size += +([\d.]+) MiB", text)
    assert size, text
    types = {tensor: (new or old).upper() for tensor, old, new in lines}
    return {"MiB": float(size[1]), "types": compact(types)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantize", type=Path, help="llama-quantize")
    quantize = parser.parse_args().quantize
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        file, imatrix = Path(folder, "weightless.gguf"), Path(folder, "imatrix.dat")
        write_imatrix(imatrix)
        for name, net in NETWORKS.items():
            write_weightless(net, file)
            mixes = {}
            for preset in presets():
                found = {
                    "without": dry_run(quantize, file, preset),
                    "with": dry_run(quantize, file, preset, "--imatrix", imatrix),
                }
                same = found["without"] == found["with"]
                mixes[preset] = {"any": found["with"]} if same else {key: mix for key, mix in found.items() if mix}
            golden = {"network": net, "mixes": mixes}
            (GOLDEN / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
