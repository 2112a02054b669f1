"""Thousands of damaged checkpoints: each is refused with a typed error, or read as the safetensors library reads it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import deserialize

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError

N_MUTATIONS = 3000
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

HEADER = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "BF16", "shape": [4, 3], "data_offsets": [0, 24]},
    "model.norm.weight": {"dtype": "F32", "shape": [3], "data_offsets": [24, 36]},
    "model.layers.0.mlp.down_proj.weight": {"dtype": "F16", "shape": [2, 2, 2], "data_offsets": [36, 52]},
}
DATA = bytes(range(52))
INDEX_CONTENT = {
    "metadata": {"total_size": 52},
    "weight_map": {name: SINGLE for name in HEADER if name != "__metadata__"},
}

POISON: list[Any] = [
    *(0, 1, -1, 3, 24, 52, 2**31, 2**32, 2**63, 2**64, 10**100, 0.5, -0.0, 1e300),
    *(None, True, False, "", "F32", "BF16", "w", "\0", "..", "\ud800", "é" * 300, SINGLE, "../" + SINGLE),
    *([], [[]], [0], [4, 3], [0, 24], [0] * 50),
    *({}, {"dtype": "F32"}, {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}),
]


def packed(text: bytes, data: bytes = DATA) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def mutate_bytes(good: bytes, rng: random.Random) -> bytes:
    """good with one or two changes: a bit, a byte, a piece removed, doubled, moved or cut off."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 2)):
        if not data:
            break
        i = rng.randrange(len(data))
        j = min(len(data), i + rng.choice((1, 2, 8, 40)))
        match rng.randrange(7):
            case 0:
                data[i] ^= 1 << rng.randrange(8)
            case 1:
                data[i] = rng.choice(b'\0\xff {}[]",:\\-+.eE0123456789tfnu\n')
            case 2:
                del data[i:j]
            case 3:
                data[i:i] = data[i:j]
            case 4:
                k = rng.randrange(len(data))
                data[k:k] = data[i:j]
            case 5:
                del data[i:]
            case 6:
                data[i:j] = rng.randbytes(j - i)
    return bytes(data)


def mutate_json(good: Any, rng: random.Random) -> Any:
    """A copy of good in which one or two values or keys are replaced, removed or copied to elsewhere."""
    value = copy.deepcopy(good)
    for _ in range(rng.randint(1, 2)):
        nodes: list[tuple[Any, Any]] = []

        def collect(node: Any, nodes: list[tuple[Any, Any]] = nodes) -> None:
            items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
            for key, child in items:
                nodes.append((node, key))
                if isinstance(child, dict | list):
                    collect(child)

        collect(value)
        if not nodes:
            break
        node, key = rng.choice(nodes)
        match rng.randrange(4):
            case 0 | 1:
                node[key] = copy.deepcopy(rng.choice(POISON))
            case 2:
                del node[key]
            case 3:
                source, source_key = rng.choice(nodes)
                copied = copy.deepcopy(source[source_key]) if source_key in source or isinstance(source, list) else 0
                if isinstance(node, dict):
                    node[rng.choice(("w", "dtype", "shape", "data_offsets", "model.norm.weight"))] = copied
                else:
                    node.append(copied)
    return value


def header_bytes(rng: random.Random) -> dict[str, bytes]:
    return {SINGLE: mutate_bytes(packed(json.dumps(HEADER).encode()), rng)}


def header_values(rng: random.Random) -> dict[str, bytes]:
    return {SINGLE: packed(json.dumps(mutate_json(HEADER, rng)).encode())}


def index_bytes(rng: random.Random) -> dict[str, bytes]:
    return {INDEX: mutate_bytes(json.dumps(INDEX_CONTENT, indent=2).encode(), rng)}


def index_values(rng: random.Random) -> dict[str, bytes]:
    return {INDEX: json.dumps(mutate_json(INDEX_CONTENT, rng)).encode()}


def config_bytes(rng: random.Random) -> dict[str, bytes]:
    return {"config.json": mutate_bytes(b'{"a": [1, 2.5e-3, null], "b": {"c": "\\u00e9", "d": true}}', rng)}


@pytest.mark.parametrize("make", [header_bytes, header_values, index_bytes, index_values, config_bytes])
def test_mutations(make: Callable[[random.Random], dict[str, bytes]], tmp_path: Path) -> None:
    rng = random.Random(make.__name__)
    good = {"config.json": b"{}", SINGLE: packed(json.dumps(HEADER).encode())}
    written: dict[str, bytes] = {}
    n_refused = n_accepted = 0
    for number in range(N_MUTATIONS):
        files = good | make(rng)
        shard = files[SINGLE]
        if INDEX in files:  # the index counts only where no single file stands, so the shard takes another name
            files["shard.safetensors"] = files.pop(SINGLE)
            files[INDEX] = files[INDEX].replace(SINGLE.encode(), b"shard.safetensors")
        for name, content in files.items():
            if written.get(name) != content:
                # Unlinked first: some file systems bring a file that is cut and written anew to disk at once.
                (tmp_path / name).unlink(missing_ok=True)
                (tmp_path / name).write_bytes(content)
                written[name] = content
        try:
            with open_checkpoint(tmp_path) as checkpoint:
                found = {}
                for name, tensor in checkpoint.tensors.items():
                    out = np.empty(tensor.nbytes, np.uint8)
                    checkpoint.read_rows(tensor, 0, tensor.n_rows, out)
                    found[name] = (tensor.dtype.name, list(tensor.shape), out.tobytes())
        except QuantkitError:
            n_refused += 1
        except Exception as error:
            pytest.fail(f"mutation {number}: {error!r} for {files}")
        else:
            n_accepted += 1
            expected = {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in deserialize(shard)}
            assert found == expected, f"mutation {number}: {files}"
    # Both must happen, or the mutations are not near the border that they are to test.
    assert n_refused > N_MUTATIONS // 2
    assert n_accepted > N_MUTATIONS // 100
