"""Bodies and fields that are not what they should be end in an error that names the field, and in nothing else."""

from __future__ import annotations

import contextlib
import json

import pytest
from blockswarm.client.api.openai.errors import ApiError
from blockswarm.client.api.openai.fields import Fields, parse_object
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"null", b'{"a": NaN}', b'{"a": Infinity}', b"\xff{}", b"[" * 100_000, b'{"a": 1} x'],
    ids=lambda body: body[:12],
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse_object(body)
    assert refused.value.status == 400
    assert refused.value.body()["error"]["type"] == "invalid_request_error"


@given(st.binary(max_size=60))
def test_any_bytes_give_an_object_or_an_error(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        assert isinstance(parse_object(body), dict)


def test_an_error_names_the_way_to_its_field() -> None:
    inner = Fields({"messages": []}).inner("messages", 3, {"role": 5})
    with pytest.raises(ApiError) as refused:
        inner.choice("role", ("user",))
    assert refused.value.param == "messages[3].role"


def test_numbers_keep_to_their_bounds() -> None:
    fields = Fields({"low": 0, "high": 2, "over": 2.01, "true": True, "text": "1", "whole": 3.0, "null": None})
    assert (fields.number("low", 0, 2), fields.number("high", 0, 2)) == (0, 2)
    assert fields.integer("whole", 0, 3) == 3
    assert fields.number("null", 0, 2) is None
    assert fields.number("absent", 0, 2) is None
    for name in ("over", "true", "text"):
        with pytest.raises(ApiError) as refused:
            fields.number(name, 0, 2)
        assert refused.value.param == name


def test_a_huge_integer_is_refused_and_not_converted() -> None:
    """1e999 and integers of a million digits must not become infinity, or take long."""
    with pytest.raises(ApiError):
        Fields(json.loads('{"temperature": 1e999}')).number("temperature", 0, 2)
    with pytest.raises(ApiError):
        parse_object(b'{"n": ' + b"9" * 5000 + b"}")


def test_half_a_surrogate_pair_is_no_text() -> None:
    """Tokenizers fail on it with errors of their own."""
    with pytest.raises(ApiError) as refused:
        Fields(parse_object(b'{"stop": "\\ud800"}')).text("stop", 10)
    assert refused.value.param == "stop"
    assert Fields(parse_object(b'{"stop": "\\ud83d\\ude00"}')).text("stop", 10) == "\N{GRINNING FACE}"
