"""Write the golden data of a checkpoint from llama.cpp's own programs; run by hand, never by a test.

It makes GGUF files with convert_hf_to_gguf.py and llama-quantize, both already there (it builds and fetches nothing),
and notes what is in them under tests/golden:

  metadata/<checkpoint>.json   of the BF16 file of convert_hf_to_gguf.py:
      fields    key, GGUF value type and value in file order; an array's item type, count, hash, first and last items
      tensors   "name type ROWSxCOLUMNS" in file order, NumPy order of dimensions
  files/<checkpoint>.json
      weights_sha256   of the checkpoint's tensors: where it differs, the maker has changed, not a kernel
      convert          by --outtype: what convert_hf_to_gguf.py makes of the checkpoint (checkpoint's tensor order)
      quantize         by preset: what llama-quantize makes of the BF16 file (its own tensor order, F32 and BF16 too)
      quantize_imatrix by preset: the same with the importance matrix of synthetic_imatrix.py for the layers' matrices
          each with data_sha256 and data_bytes from the first tensor to the end of the file, and
          tensors "name type OFFSET" in file order, offset in bytes from the first tensor

The checkpoint folder's name is part of the data: general.name derives from it.  The data here is of llama.cpp b11434 on
x86-64; another build or an ARM one may contract multiply and add, and differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import synthetic_imatrix
from gguf import GGUFReader, GGUFValueType, ReaderField

GOLDEN = Path(__file__).parent
PRESETS = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_K_S")  # of every checkpoint
MORE_PRESETS = ("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q2_K_S")
UNWEIGHTED = ("F32", "F16", "BF16")  # nothing to weigh
NEED_IMATRIX = ("Q2_K_S",)  # llama-quantize makes none without
CONVERTED = {"F32": "f32", "BF16": "bf16"}  # preset to --outtype; llama-quantize starts from BF16, which is always made


def weights_sha256(checkpoint: Path) -> str:
    """The sha256 over name, dtype, shape and bytes of every tensor in name order, however it is cut into shards."""
    tensors: dict[str, tuple[str, memoryview]] = {}
    for shard in checkpoint.glob("*.safetensors"):
        mapped = _map(shard)
        data_start = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(bytes(mapped[8:data_start]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = (data_start + offset for offset in entry["data_offsets"])
            tensors[name] = f"{name} {entry['dtype']} {entry['shape']}\n", mapped[start:end]
    digest = hashlib.sha256()
    for name in sorted(tensors):
        title, data = tensors[name]
        digest.update(title.encode())
        digest.update(data)
    return digest.hexdigest()


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def values_sha256(values: Sequence[Any]) -> str:
    """The sha256 of an array's values as JSON: ASCII, no white space."""
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def metadata(gguf: Path) -> dict[str, Any]:
    """What metadata/<checkpoint>.json says of a GGUF file."""
    reader = GGUFReader(gguf)
    return {
        "fields": [_field(field) for key, field in reader.fields.items() if not key.startswith("GGUF.")],
        "tensors": [
            f"{tensor.name} {tensor.tensor_type.name} {'x'.join(map(str, reversed(tensor.shape.tolist())))}"
            for tensor in reader.tensors
        ],
    }


def _field(field: ReaderField) -> dict[str, Any]:
    value = field.contents()
    described = {"key": field.name, "type": field.types[0].name}
    if field.types[0] != GGUFValueType.ARRAY:
        return described | {"value": value}
    summary = {"count": len(value), "sha256": values_sha256(value), "first": value[:3], "last": value[-3:]}
    return described | {"item_type": field.types[-1].name} | summary


def contents(gguf: Path) -> dict[str, Any]:
    """What files/<checkpoint>.json says of one GGUF file."""
    reader = GGUFReader(gguf)
    start = reader.data_offset
    data = _map(gguf)[start:]
    return {
        "data_sha256": hashlib.sha256(data).hexdigest(),
        "data_bytes": len(data),
        "tensors": [
            f"{tensor.name} {tensor.tensor_type.name} {tensor.data_offset - start}" for tensor in reader.tensors
        ],
    }


def layer_matrices(gguf: Path) -> list[tuple[str, int]]:
    """Name and columns of each tensor that llama-imatrix collects for: the layers' matrices."""
    tensors = GGUFReader(gguf).tensors
    return [(t.name, int(t.shape[0])) for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint that tests/checkpoints made")
    parser.add_argument("--python", required=True, type=Path, help="with torch and transformers")
    parser.add_argument("--convert", required=True, type=Path, help="convert_hf_to_gguf.py")
    parser.add_argument("--quantize", required=True, type=Path, help="llama-quantize")
    parser.add_argument("--work", required=True, type=Path, help="folder for <checkpoint>-<PRESET>.gguf")
    choices = (*PRESETS, *MORE_PRESETS)
    parser.add_argument("--presets", nargs="+", choices=choices, default=PRESETS, help=f"default: {' '.join(PRESETS)}")
    parser.add_argument("--imatrix", action="store_true", help="make the presets with the synthetic imatrix too")
    parser.add_argument("--keep", nargs="+", choices=choices, default=(), help="files to leave (BF16: as converted)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    name = args.checkpoint.name
    base = Path(args.work, f"{name}-BF16.gguf")
    scratch = Path(args.work, f"{name}-scratch.gguf")

    def convert(preset: str, out: Path) -> dict[str, Any]:
        command = [args.python, args.convert, args.checkpoint, "--outtype", CONVERTED[preset], "--outfile", out]
        subprocess.run(command, check=True)
        return contents(out)

    def quantize(preset: str, *options: str | Path) -> dict[str, Any]:
        subprocess.run([args.quantize, *options, base, scratch, preset], check=True)
        return contents(scratch)

    def quantize_imatrix() -> dict[str, Any]:
        imatrix = Path(args.work, f"{name}-imatrix.gguf")
        synthetic_imatrix.write(imatrix, "gguf", layer_matrices(base))
        made = {p: quantize(p, "--imatrix", imatrix) for p in args.presets if p not in UNWEIGHTED}
        imatrix.unlink()
        return made

    converted = {"BF16": convert("BF16", base)}
    write_json(GOLDEN / "metadata" / f"{name}.json", metadata(base))
    if "F32" in args.presets:
        converted["F32"] = convert("F32", scratch)
    quantized = {}
    for preset in args.presets:
        if preset in NEED_IMATRIX:
            continue
        quantized[preset] = quantize(preset)
        if preset in args.keep and preset != "BF16":
            scratch.rename(Path(args.work, f"{name}-{preset}.gguf"))
    golden = {"weights_sha256": weights_sha256(args.checkpoint), "convert": converted, "quantize": quantized}
    if args.imatrix:
        golden["quantize_imatrix"] = quantize_imatrix()
    scratch.unlink(missing_ok=True)
    if "BF16" not in args.keep:
        base.unlink()
    write_json(GOLDEN / "files" / f"{name}.json", golden)


if __name__ == "__main__":
    main()
