"""Base58, the form in which peer ids are written: strict, so that every id has one form."""

from __future__ import annotations

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES = {char: value for value, char in enumerate(_ALPHABET)}


def base58_encode(data: bytes) -> str:
    """The base58 form of any bytes. O(n^2)."""
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def base58_decode(text: str, num_bytes: int) -> bytes:
    """The one byte string of `num_bytes` whose base58 form is `text`. Raises ValueError if there is none."""
    number = 0
    for char in text:
        value = _VALUES.get(char)
        if value is None:
            raise ValueError(f"{char!r} is no base58 digit")
        number = number * 58 + value
    try:
        data = number.to_bytes(num_bytes, "big")
    except OverflowError:
        raise ValueError("too long") from None
    if base58_encode(data) != text:
        raise ValueError("not in canonical form")
    return data
