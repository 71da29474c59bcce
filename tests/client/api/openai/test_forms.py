"""Forms of answers: which can be asked for, and calls that are read from text and never guessed."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from blockswarm.client.api.openai.errors import ApiError
from blockswarm.client.api.openai.fields import Fields
from blockswarm.client.api.openai.forms import AnswerForm, CallReader, parse_form
from blockswarm.client.api.pieces import CALLS, LENGTH, STOP, Piece, ToolCall
from hypothesis import given
from hypothesis import strategies as st

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"x": {}}}}}
SUB = {"type": "function", "function": {"name": "sub"}}
BOTH = [ADD, SUB]


def form(**fields: Any) -> AnswerForm:
    return parse_form(Fields(fields))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": 5}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "browser"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [ADD, ADD]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, "tools[0].function.parameters"),
        ({"tools": [ADD], "tool_choice": "never"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"function": {"name": "mul"}}}, "tool_choice.function.name"),
        ({"tools": [ADD], "response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=str,
)
def test_an_impossible_form_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        form(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    """It was small enough to be read, and is too deep to be written."""
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(ApiError) as refused:
        form(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert refused.value.param == "response_format.json_schema.schema"


def test_plain_text_has_no_form() -> None:
    assert form() == form(response_format={"type": "text"}) == form(tools=BOTH, tool_choice="none") == AnswerForm()


def test_a_demanded_call_leaves_no_other_text() -> None:
    named = form(tools=BOTH, tool_choice={"type": "function", "function": {"name": "add"}})
    assert (json.loads(named.schema), named.demanded) == (ADD["function"]["parameters"], "add")
    required = form(tools=BOTH, tool_choice="required")
    assert [call["properties"]["name"]["const"] for call in json.loads(required.schema)["anyOf"]] == ["add", "sub"]
    assert form(tools=BOTH).schema is None


# --- calls in text ---

AUTO = form(tools=BOTH)
ONE = '{"name": "add", "arguments": {"x": 1}}'
TAGGED = f"<tool_call>\n{ONE}\n</tool_call>"


def read(asked: AnswerForm, text: str, cuts: list[int] | None = None, finish: str = STOP) -> tuple[str, Piece]:
    """(content, last piece) of a text that comes in several pieces."""
    ids = map(str, itertools.count())
    reader = CallReader(asked, lambda: next(ids))
    places = sorted({min(cut, len(text)) for cut in cuts or []} | {0, len(text)})
    parts = [text[a:b] for a, b in itertools.pairwise(places)]
    pieces = [reader.read(Piece(0, part, tokens=1)) for part in parts]
    last = reader.read(Piece(0, finish=finish, tokens=1))
    assert sum(piece.tokens for piece in [*pieces, last]) == len(parts) + 1, "tokens count whatever they are"
    assert not any(piece.calls for piece in pieces)
    return "".join(piece.text for piece in [*pieces, last]), last


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (ONE, [("add", {"x": 1})]),
        (f"\n {TAGGED}\n", [("add", {"x": 1})]),
        (TAGGED + "\n" + TAGGED.replace("add", "sub"), [("add", {"x": 1}), ("sub", {"x": 1})]),
        ('{"name": "sub", "parameters": {}}', [("sub", {})]),
    ],
)
def test_calls_are_read_and_are_no_content(text: str, calls: list[Any]) -> None:
    content, last = read(AUTO, text, [3, 11])
    assert content == ""
    assert [(call.name, json.loads(call.arguments)) for call in last.calls] == calls
    assert last.finish == CALLS
    assert len({call.id for call in last.calls}) == len(calls)


@pytest.mark.parametrize(
    "text",
    [
        "Hello {",
        '{"name": "mul", "arguments": {}}',
        '{"name": "add", "arguments": 5}',
        '{"name": ["add"], "arguments": {}}',
        "{not json}",
        f"{TAGGED} and more",
        TAGGED[:-20],
        f"I call {TAGGED}",
        "",
        "<tool",
    ],
)
def test_text_that_is_no_call_stays_content(text: str) -> None:
    content, last = read(AUTO, text, [2, 5])
    assert (content, last.calls, last.finish) == (text, (), STOP)


@given(st.text(st.sampled_from('<tool_call>{}"a '), max_size=30), st.lists(st.integers(0, 30), max_size=5))
def test_no_text_is_lost_wherever_it_is_cut(text: str, cuts: list[int]) -> None:
    content, last = read(AUTO, text, cuts)
    assert content == text or last.calls


def test_content_goes_on_as_soon_as_it_is_no_call() -> None:
    reader = CallReader(AUTO, str)
    assert [reader.read(Piece(0, part)).text for part in ("<", "b", ">{")] == ["", "<b", ">{"]


def test_a_call_by_name_is_its_arguments_and_ends_as_openai_ends_it() -> None:
    named = form(tools=BOTH, tool_choice={"type": "function", "function": {"name": "add"}})
    content, last = read(named, '{"x": 1}', [2])
    assert (content, last.calls, last.finish) == ("", (ToolCall("0", "add", '{"x": 1}'),), STOP)
    assert read(named, '{"x"', finish=LENGTH)[1].finish == LENGTH, "a part of the arguments"


def test_a_call_that_was_cut_is_no_call() -> None:
    content, last = read(form(tools=BOTH, tool_choice="required"), ONE[:-3], finish=LENGTH)
    assert (content, last.calls, last.finish) == (ONE[:-3], (), LENGTH)
