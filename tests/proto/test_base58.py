"""Base58 agrees with the reference, and accepts one form of every id."""

from __future__ import annotations

import pytest
from blockswarm.proto.base58 import base58_decode, base58_encode
from hypothesis import given
from hypothesis import strategies as st


@given(data=st.binary(max_size=60))
def test_it_agrees_with_the_reference(data: bytes) -> None:
    reference = pytest.importorskip("base58")
    assert base58_encode(data) == reference.b58encode(data).decode()
    assert base58_decode(reference.b58encode(data).decode(), len(data)) == data


@given(text=st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", max_size=12), size=st.integers(0, 8))
def test_what_is_read_is_written_back_as_it_was(text: str, size: int) -> None:
    try:
        data = base58_decode(text, size)
    except ValueError:
        return
    assert len(data) == size
    assert base58_encode(data) == text


@pytest.mark.parametrize(
    ("text", "size"), [("0", 1), ("l", 1), ("2 ", 1), ("12", 1), ("2", 2), ("zzz", 1), ("\u0661", 1)]
)
def test_what_is_no_base58_of_that_length_is_refused(text: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"digit|long|canonical"):
        base58_decode(text, size)
