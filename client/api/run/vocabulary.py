"""A token as text and as bytes: if a token is only part of a character, its bytes show which."""

from __future__ import annotations

import functools
import re
from typing import Any

from ..pieces import LikelyToken

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def likely_token(tokenizer: Any, token: int, logprob: float) -> LikelyToken:
    """Return `token` with its text and its bytes."""
    text: str = tokenizer.decode([token])
    return LikelyToken(text, _utf8(tokenizer, token, text), logprob)


def _utf8(tokenizer: Any, token: int, text: str) -> tuple[int, ...] | None:
    if "\N{REPLACEMENT CHARACTER}" not in text:
        return tuple(text.encode())
    name = tokenizer.convert_ids_to_tokens(token) or ""
    if (fallback := _BYTE.fullmatch(name)) is not None:
        return (int(fallback[1], 16),)
    table = byte_letters()
    return tuple(table[letter] for letter in name) if name and all(letter in table for letter in name) else None


@functools.cache
def byte_letters() -> dict[str, int]:
    """Return the byte for each letter of byte-level vocabularies (GPT-2's table): printable bytes map to themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
