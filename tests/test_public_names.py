"""What users may rely on: names, exit codes and the table of types.  A change here is a change for them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable

import gguf
import pytest

from quantkit import errors, qtypes

PUBLIC = {
    "quantkit.kernels": {
        "add_low_rank",
        "backend",
        "backends",
        "decode",
        "encode",
        "encode_feedback",
        "factor_rows",
        "row_norms",
        "using",
    },
    "quantkit.release": {"Upload", "push", "read_settings", "upload"},
    "quantkit.release.release": {"Order", "Release"},
    "quantkit.report": {"Report", "read_report", "write_pages"},
    "quantkit.source": {"open_source"},
    "quantkit.sweep": {"Bounds", "Optimizer", "Request", "Shard", "Sweep", "optimize", "sweep"},
    "quantkit.qtypes": {"ALL", "DECODED_ONLY", "QType", "by_id", "by_name"},  # and the types below
}
# error: (what it is a kind of, exit code)
ERRORS = {
    "QuantkitError": ("Exception", 1),
    "UsageError": ("QuantkitError", 2),
    "GateError": ("QuantkitError", 3),
    "InputError": ("QuantkitError", 65),
    "FormatError": ("InputError", 65),
    "ConfigError": ("InputError", 65),
    "TensorError": ("InputError", 65),
    "VocabularyError": ("InputError", 65),
    "RecipeError": ("InputError", 65),
    "UnsupportedError": ("InputError", 65),
    "ShapeError": ("InputError", 65),
    "NotFiniteError": ("InputError", 65),
    "MagnitudeError": ("InputError", 65),
    "HubError": ("QuantkitError", 69),
    "ClusterError": ("QuantkitError", 69),
    "OutputError": ("QuantkitError", 73),
    "BusyError": ("OutputError", 73),
    "DiskError": ("QuantkitError", 74),
    "UnsafeError": ("QuantkitError", 77),
    "BugError": ("QuantkitError", 70),
    "Interrupted": ("QuantkitError", 130),
    "Paused": ("QuantkitError", 75),
}
# type: (ggml's number, weights in a block, bytes of a block)
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "BF16": (30, 1, 2),
}
DECODED_ONLY = {
    "IQ1_S": (19, 256, 50),
    "IQ1_M": (29, 256, 56),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ2_S": (22, 256, 82),
    "IQ3_XXS": (18, 256, 98),
    "IQ3_S": (21, 256, 110),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
}


def public_functions() -> dict[str, Callable[..., object]]:
    """The functions among the public names, by full name."""
    functions = {}
    for module, names in PUBLIC.items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            if inspect.isfunction(value):
                functions[f"{module}.{name}"] = value
    return functions


def test_public_names_exist() -> None:
    for module, names in PUBLIC.items():
        assert names <= vars(importlib.import_module(module)).keys(), module


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_public_functions_are_documented(name: str) -> None:
    """Arguments are named and typed; where there are any, the text says what may be raised."""
    function = public_functions()[name]
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    assert text
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty
        assert parameter.name in text, f"{parameter.name} is not explained"
    if signature.parameters:
        assert "raises" in text


def test_errors_and_their_exit_codes() -> None:
    tree = {
        name: (value.__base__.__name__, value.exit_code)
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.QuantkitError)
    }
    assert tree == ERRORS


def test_types() -> None:
    assert {t.name: (t.id, t.block_weights, t.block_bytes) for t in qtypes.ALL} == TYPES
    assert {t.name: (t.id, t.block_weights, t.block_bytes) for t in qtypes.DECODED_ONLY} == DECODED_ONLY


@pytest.mark.parametrize("qtype", qtypes.ALL + qtypes.DECODED_ONLY, ids=str)
def test_types_are_ggmls(qtype: qtypes.QType) -> None:
    theirs = gguf.GGMLQuantizationType[qtype.name]
    assert qtype.id == theirs.value
    assert (qtype.block_weights, qtype.block_bytes) == gguf.GGML_QUANT_SIZES[theirs]
    assert qtypes.by_id(qtype.id) is qtype


def test_every_type_that_gguf_decodes_is_known() -> None:
    known = {theirs.name for theirs in gguf.quants._type_traits} | {"F32", "F16"}
    assert known == TYPES.keys() | DECODED_ONLY.keys()


@pytest.mark.parametrize("qtype", qtypes.ALL, ids=str)
def test_types_that_are_written_go_by_their_names(qtype: qtypes.QType) -> None:
    assert qtypes.by_name(qtype.name.lower()) is qtype
    assert qtypes.__dict__[qtype.name] is qtype
    assert qtype.max_abs > 0


@pytest.mark.parametrize("qtype", qtypes.DECODED_ONLY, ids=str)
def test_types_that_are_only_read_are_not_written(qtype: qtypes.QType) -> None:
    for call in (lambda: qtypes.by_name(qtype.name.lower()), lambda: qtype.max_abs):
        with pytest.raises(errors.UnsupportedError, match=f"{qtype.name} is only read") as caught:
            call()
        assert caught.value.hint == f"types: {', '.join(t.name for t in qtypes.ALL)}"


def test_unknown_types_are_refused_with_the_known_ones() -> None:
    for call, known in (
        (lambda: qtypes.by_name("Q9_9"), TYPES),
        (lambda: qtypes.by_id(99), TYPES | DECODED_ONLY),
    ):
        with pytest.raises(errors.UnsupportedError) as caught:
            call()
        assert caught.value.hint
        assert set(re.findall(r"\b[A-Z]+\d\w*", caught.value.hint)) == known.keys()


def test_row_bytes() -> None:
    assert qtypes.Q4_K.row_bytes(512) == 288
    assert qtypes.Q4_K.divides(512)
    assert not qtypes.Q4_K.divides(511)
    with pytest.raises(errors.ShapeError) as caught:
        qtypes.Q4_K.row_bytes(511)
    assert caught.value.details == {"expected": "a multiple of 256 columns", "found": 511}
