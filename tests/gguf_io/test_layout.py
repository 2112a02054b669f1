"""What we write is what the gguf package and our own reader read, and llama.cpp's reference header is what we write."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit.gguf_io import Field, Kind, data_bytes, header, place, read_gguf
from quantkit.qtypes import F32, Q4_K, Q8_0

FIELDS = [
    Field("general.architecture", Kind.STRING, "phi3"),
    Field("a.u8", Kind.U8, 255),
    Field("a.i8", Kind.I8, -128),
    Field("a.u16", Kind.U16, 65535),
    Field("a.i16", Kind.I16, -32768),
    Field("a.u32", Kind.U32, 2**32 - 1),
    Field("a.i32", Kind.I32, -(2**31)),
    Field("a.f32", Kind.F32, 0.5),
    Field("a.bool", Kind.BOOL, True),
    Field("a.string", Kind.STRING, "naïve 🚀"),
    Field("a.u64", Kind.U64, 2**64 - 1),
    Field("a.i64", Kind.I64, -(2**63)),
    Field("a.f64", Kind.F64, 1e300),
    Field("b.strings", Kind.ARRAY, ["x", "", "ÿ"], Kind.STRING),
    Field("b.numbers", Kind.ARRAY, [-1, 0, 7], Kind.I32),
    Field("b.bools", Kind.ARRAY, [True, False], Kind.BOOL),
]
SHAPES = [("first.weight", (3, 256), Q4_K), ("norm.weight", (5,), F32), ("last.weight", (2, 64), Q8_0)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = place(SHAPES)
    path = tmp_path / "a.gguf"
    path.write_bytes(header(FIELDS, tensors) + bytes(data_bytes(tensors)))
    return path


def test_our_reader_reads_it_back(file: Path) -> None:
    found = read_gguf(file)
    assert list(found.fields.values()) == FIELDS
    assert list(found.tensors.values()) == list(place(SHAPES))
    assert found.data_offset % 32 == 0
    assert found.file_bytes == found.data_offset + data_bytes(place(SHAPES))


def test_the_gguf_package_reads_it(file: Path) -> None:
    reader = gguf.GGUFReader(file)
    for field in FIELDS:
        assert reader.fields[field.key].contents() == field.value
    ours = read_gguf(file)
    for tensor in reader.tensors:
        entry = ours.tensors[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == entry.shape
        assert (tensor.tensor_type, tensor.data_offset) == (entry.qtype.id, ours.data_offset + entry.offset)
        assert tensor.n_bytes == entry.nbytes


def test_header_equals_the_gguf_packages(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "phi3")
    writer.add_uint32("phi3.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_tensor("norm.weight", np.arange(5, dtype=np.float32))
    writer.add_tensor("output.weight", np.ones((2, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = [
        Field("general.architecture", Kind.STRING, "phi3"),
        Field("phi3.block_count", Kind.U32, 2),
        Field("tokenizer.ggml.tokens", Kind.ARRAY, ["a", "bc"], Kind.STRING),
        Field("tokenizer.ggml.add_bos_token", Kind.BOOL, False),
    ]
    ours = header(fields, place([("norm.weight", (5,), F32), ("output.weight", (2, 8), F32)]))
    assert (tmp_path / "b.gguf").read_bytes().startswith(ours)


def test_an_alignment_of_its_own_is_followed(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "c.gguf", "phi3")
    writer.add_custom_alignment(64)
    writer.add_tensor("a", np.ones(3, np.float32))
    writer.add_tensor("b", np.ones(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "c.gguf")
    assert [tensor.offset for tensor in found.tensors.values()] == [0, 64]
    assert found.data_offset % 64 == 0
