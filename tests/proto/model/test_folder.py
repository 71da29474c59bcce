"""Safetensors headers: read or refused, and never believed unchecked."""

from __future__ import annotations

import contextlib
import json

import pytest
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.folder import parse_header
from hypothesis import given
from hypothesis import strategies as st


def header(entries: object) -> bytes:
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw


class TestHeaders:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"1234567",
            (1 << 60).to_bytes(8, "little"),
            header([]),
            header({"a": 1}),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}) + bytes(8),
            header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}) + bytes(4),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + bytes(8),
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(5),
            header({key: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for key in "ab"}) + bytes(4),
        ],
    )
    def test_that_lie_are_refused(self, content: bytes) -> None:
        with pytest.raises(UsageError):
            parse_header("x", len(content), lambda start, stop: content[start:stop])

    @given(content=st.binary(max_size=64), length=st.integers(0, 80))
    def test_of_any_bytes_are_read_or_refused(self, content: bytes, length: int) -> None:
        content = length.to_bytes(8, "little") + content
        with contextlib.suppress(UsageError):
            parse_header("x", len(content), lambda start, stop: content[start:stop])
