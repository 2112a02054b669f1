"""The memory model against what llama.cpp sets aside: its own figures for real settings stand in golden/memory.json."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import published
import pytest
from oracle import GOLDEN

from quantkit.errors import UsageError
from quantkit.memory import CONTEXT_STEP, Run, longest_context, memory_use
from quantkit.outline import Outline, outlines
from quantkit.recipe import preset

MEASURED = json.loads((GOLDEN / "memory.json").read_text("utf-8"))
WITHOUT_CARD = Run(4096, gpu_layers=0, overhead_bytes=0)
MIB = 2**20


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a name in published.py, and other changes, to the outline of its Q4_K_M file."""

    @functools.cache
    def outline(name: str, **changes: Any) -> Outline:
        folder = tmp_path_factory.mktemp("config") / name
        config = published.write_config(folder, **(getattr(published, name) | changes))
        return outlines(config, [preset("Q4_K_M")], None, pytest.fail)[0]

    return outline


def terms_of(outline: Outline, run: Run) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by term, on the card and in the host's memory."""
    use = memory_use(outline.network, outline.tensors, run)
    return {term.name: term.nbytes for term in use.card}, {term.name: term.nbytes for term in use.host}


def rows(place: str) -> list[dict[str, Any]]:
    return [dict(zip(MEASURED[place]["columns"], row, strict=True)) for row in MEASURED[place]["rows"]]


def setting(row: dict[str, Any]) -> Run:
    given = {key: row[key] for key in ("context", "ubatch", "parallel", "kv_type")}
    return Run(**given, gpu_layers=row.get("gpu_layers", 0), overhead_bytes=0)


@pytest.mark.parametrize("row", rows("host"), ids=lambda row: "-".join(map(str, list(row.values())[:5])))
def test_measured_without_a_card(networks: Any, row: dict[str, Any]) -> None:
    card, host = terms_of(networks(row["network"]), setting(row))
    assert card == {}
    assert host["weights"] == row["weights"]
    assert host["KV cache"] == row["KV cache"]
    assert host["compute"] == pytest.approx(row["compute"], rel=0.002)


@pytest.mark.parametrize("row", rows("card"), ids=lambda row: "-".join(map(str, list(row.values())[:6])))
def test_measured_with_a_card(networks: Any, row: dict[str, Any]) -> None:
    """Never less than is needed, and at most 3 % more."""
    card, host = terms_of(networks(row["network"]), setting(row))
    assert card["weights"] == row["weights"]
    assert card["KV cache"] == row["KV cache"]
    assert host["weights"] == row["host weights"]
    assert host["KV cache"] == row["host KV cache"]
    assert host["inputs"] == pytest.approx(row["host inputs"], rel=0.03)
    needed = row["weights"] + row["KV cache"] + row["compute"]
    assert needed <= sum(card.values()) <= 1.03 * needed


@pytest.mark.parametrize(
    ("name", "layers", "context", "cache", "compute", "output"),
    [
        ("PHI4", 2, 512, 5.00, 246.52, 0.38),
        ("PHI4", 2, 4096, 40.00, 250.02, 0.38),
        ("REAL_SMALL", 30, 512, 15.00, 104.02, 0.19),
        ("REAL_SMALL", 30, 4096, 120.00, 107.52, 0.19),
        ("REAL_SMALL", 30, 8192, 240.00, 111.52, 0.19),
    ],
)
def test_printed_buffers(
    networks: Any, name: str, layers: int, context: int, cache: float, compute: float, output: float
) -> None:
    """The MiB in llama-perplexity's log."""
    _, host = terms_of(networks(name, num_hidden_layers=layers), replace(WITHOUT_CARD, context=context))
    assert f"{host['KV cache'] / MIB:.2f}" == f"{cache:.2f}"
    assert host["compute"] / MIB == pytest.approx(compute, rel=0.002)
    assert f"{host['output'] / MIB:.2f}" == f"{output:.2f}"


@pytest.mark.parametrize(("context", "total"), [(512, 258), (4096, 367), (8192, 491)])
def test_printed_totals(networks: Any, context: int, total: int) -> None:
    """The whole MiB that llama-perplexity --no-repack projects and then finds for the small model."""
    outline = networks("REAL_SMALL")
    use = memory_use(outline.network, outline.tensors, replace(WITHOUT_CARD, context=context))
    assert use.host_bytes / MIB == pytest.approx(total, abs=1)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("gpu_layers", [None, 0, 1, 7])
def test_formulas_give_the_bytes(networks: Any, kv_type: str, gpu_layers: int | None) -> None:
    """What is printed beside a term is what was computed."""
    outline = networks("PHI4")
    run = Run(5000, kv_type, parallel=3, ubatch=100, gpu_layers=gpu_layers)
    use = memory_use(outline.network, outline.tensors, run)
    checked = 0
    for term in (*use.card, *use.host):
        if term.name in ("KV cache", "inputs", "output") or (term.name == "compute" and gpu_layers in (None, 0)):
            assert eval("".join(c for c in term.formula if c in "0123456789 x+/").replace("x", "*")) == term.nbytes
            checked += 1
    assert checked >= 3


def test_cache_is_rounded_up_for_each_sequence(networks: Any) -> None:
    outline = networks("PHI4")
    one, padded, two = (terms_of(outline, run)[0]["KV cache"] for run in (Run(512), Run(257), Run(257, parallel=2)))
    assert one == padded == two // 2 == 512 * 204_800


def test_layers_beyond_the_network_are_all_of_them(networks: Any) -> None:
    outline = networks("PHI4")
    assert terms_of(outline, Run(4096, gpu_layers=999)) == terms_of(outline, Run(4096))


def test_everything_is_somewhere(networks: Any) -> None:
    """Whatever is on the card, no tensor is lost, and none is in two places but a tied embedding."""
    for name, twice in (("PHI4", 0), ("PHI4_MINI", 1)):
        outline = networks(name)
        embedding = next(t.nbytes for t in outline.tensors if t.name == "token_embd.weight")
        for gpu_layers in (1, 2, 17, outline.network.layers, outline.network.layers + 1):
            card, host = terms_of(outline, Run(4096, gpu_layers=gpu_layers))
            assert card["weights"] + host["weights"] == outline.tensor_bytes + twice * embedding


def test_the_longest_context_fits_and_the_next_does_not(networks: Any) -> None:
    outline = networks("PHI4")
    run, card = Run(16384), 12 << 30

    def needed(context: int) -> int:
        return memory_use(outline.network, outline.tensors, replace(run, context=context)).card_bytes

    found = longest_context(outline.network, outline.tensors, run, card)
    assert found % CONTEXT_STEP == 0
    assert needed(found) <= card < needed(found + CONTEXT_STEP)
    assert longest_context(outline.network, outline.tensors, run, needed(16384)) == 16384
    assert longest_context(outline.network, outline.tensors, run, needed(16384) - 1) == 16384 - CONTEXT_STEP
    assert longest_context(outline.network, outline.tensors, run, needed(CONTEXT_STEP) - 1) == 0
    assert longest_context(outline.network, outline.tensors, Run(100), needed(100)) == 100


@pytest.mark.parametrize(
    "impossible",
    [
        {"context": 0},
        {"context": 1 << 31},
        {"parallel": 0},
        {"parallel": 257},
        {"ubatch": 0},
        {"gpu_layers": -1},
        {"overhead_bytes": -1},
        {"kv_type": "q5_1"},
    ],
    ids=str,
)
def test_impossible_runs_are_refused(impossible: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Run(**({"context": 4096} | impossible))


def test_heads_that_are_no_whole_blocks_of_the_cache(tmp_path: Path) -> None:
    """llama.cpp refuses this too: 16 values, blocks of 32."""
    config = published.write_config(tmp_path / "narrow", **(published.REAL_SMALL | {"num_attention_heads": 48}))
    (outline,) = outlines(config, [preset("Q8_0")], None, pytest.fail)
    memory_use(outline.network, outline.tensors, Run(4096))
    with pytest.raises(UsageError, match="q8_0") as caught:
        memory_use(outline.network, outline.tensors, Run(4096, "q8_0"))
    assert caught.value.details["found"] == 16
