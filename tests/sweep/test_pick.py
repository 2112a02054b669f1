"""The choice, case by case."""

from __future__ import annotations

import re

import pytest

from quantkit.sweep.pick import Option, pick

GIB = 1 << 30


def option(name: str, gib: float, kld: float) -> Option:
    return Option(name, int(gib * GIB), 10 + kld, kld)


SMALL, LEAN, GOOD, LARGE, EXACT = (
    option("SMALL", 5, 0.5),
    option("LEAN", 7, 0.1),
    option("GOOD", 8, 0.05),
    option("LARGE", 9, 0.07),
    option("EXACT", 15, 0.001),
)
TWIN = option("TWIN", 6, 0.05)
EVERY = (LARGE, EXACT, SMALL, GOOD, LEAN)
# case: (options, GiB of the card, best, runner-up, one step more)
CASES: dict[str, tuple[tuple[Option, ...], float, str | None, str | None, str | None]] = {
    "nothing fits": (EVERY, 4.9, None, None, None),
    "one fits": (EVERY, 5, "SMALL", None, "LEAN"),
    "to the byte": (EVERY, 7, "LEAN", "SMALL", "GOOD"),
    "a larger one that is worse is no step": (EVERY, 8.5, "GOOD", "LEAN", "EXACT"),
    "a larger one that is worse is no choice": (EVERY, 10, "GOOD", "LARGE", "EXACT"),
    "all fit": (EVERY, 16, "EXACT", "GOOD", None),
    "of equals the smaller": ((GOOD, TWIN), 9, "TWIN", "GOOD", None),
    "nothing better to be had": ((GOOD, LARGE), 8, "GOOD", None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_choice(case: str) -> None:
    options, gib, best, runner_up, step = CASES[case]
    found = pick(options, int(gib * GIB))
    named = [part and part.name for part in (found.best, found.runner_up, found.step)] if found else [None] * 3
    assert named == [best, runner_up, step]
    assert found is None or pick(options[::-1], int(gib * GIB)) == found


def test_a_byte_too_few() -> None:
    found = pick(EVERY, 8 * GIB - 1)
    assert found is not None and found.best is LEAN


@pytest.mark.parametrize(
    ("gib", "words"),
    [
        (8.5, "the runner-up LEAN takes 7.00 GiB and has KLD 0.10000; with 6.50 GiB more memory EXACT would fit"),
        (5, "KLD 0.50000 nats, PPL 10.5000; with 2.00 GiB more memory LEAN would fit, KLD 0.10000."),
        (16, "the runner-up GOOD takes 8.00 GiB and has KLD 0.05000."),
    ],
)
def test_the_sentence(gib: float, words: str) -> None:
    found = pick(EVERY, int(gib * GIB))
    assert found is not None
    sentence = found.sentence(16384)
    assert words in sentence
    assert sentence.startswith(f"{found.best.name} is the best that fits: ") and "with 16,384 tokens" in sentence
    assert len(re.findall(r"[.] ", sentence)) == 0 and sentence.endswith(".")


def test_the_sentence_where_more_memory_buys_nothing() -> None:
    found = pick((GOOD, LARGE), 8 * GIB)
    assert found is not None
    assert found.sentence(1).endswith("1.00 GiB more memory, for LARGE, would buy nothing: KLD 0.07000.")
