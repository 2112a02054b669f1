"""The byte-level alphabet: one printable character for each byte, so that a vocabulary of bytes is a list of words.

GPT-2's table (https://github.com/openai/gpt-2/blob/master/src/encoder.py, bytes_to_unicode): printable Latin-1 stands
for itself, the other 68 bytes for the characters from U+0100 on, in order.  The space becomes U+0120.
"""

from __future__ import annotations

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}
SPACE = CHAR_OF[ord(" ")]


def to_bytes(text: str) -> bytes:
    """The bytes that a text in the alphabet spells; raises KeyError for a character outside it."""
    return bytes(BYTE_OF[char] for char in text)


def decode(text: str) -> str:
    """What a byte-level decoder makes of one token: its bytes as UTF-8, invalid ones as U+FFFD.

    A token with a character outside the alphabet is returned as it is, as the `tokenizers` library does.
    """
    if any(char not in BYTE_OF for char in text):
        return text
    return to_bytes(text).decode("utf-8", errors="replace")
