"""The byte alphabet against the library's decoder."""

from __future__ import annotations

import random

import pytest
from tokenizers import decoders, pre_tokenizers

from quantkit.tokenizer import byte_level


def test_the_alphabet_is_the_librarys() -> None:
    assert set(byte_level.BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_level.BYTE_OF.values()) == [*range(256)]
    assert byte_level.BYTE_OF[byte_level.SPACE] == ord(" ")


@pytest.mark.parametrize("text", ["ï¿½", "Ġfoo", "é", "a b", "<｜x｜>", "ĠĊ", "▁", "", "íłĢ", "ðŁĺ"])
def test_decode_equals_the_librarys_decoder(text: str) -> None:
    assert byte_level.decode(text) == decoders.ByteLevel().decode([text])


def test_decode_equals_the_librarys_decoder_on_random_bytes() -> None:
    chance = random.Random(3)
    alphabet = sorted(byte_level.BYTE_OF)
    for _ in range(2000):
        text = "".join(chance.choices(alphabet, k=chance.randrange(1, 7)))
        assert byte_level.decode(text) == decoders.ByteLevel().decode([text]), text
