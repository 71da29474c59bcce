"""Answers in OpenAI's shape, read back by the types of OpenAI's own package."""

from __future__ import annotations

import json

import pytest
from blockswarm.client.api.openai.replies import (
    AnswerHead,
    ChatShape,
    CompletionShape,
    chunk,
    comment,
    event,
    model_list,
    whole_answer,
)
from blockswarm.client.api.pieces import CALLS, LENGTH, STOP, LikelyToken, Piece, ScoredToken, TokenCounts, ToolCall
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

HEAD = AnswerHead("id-1", 7, "m", "fp_1")
TOKEN = LikelyToken("a", (97,), -0.5)
SCORE = ScoredToken(TOKEN, (TOKEN, LikelyToken("b", None, float("-inf"))), 3)
PIECES = [Piece(0, "one "), Piece(1, "x", finish=LENGTH), Piece(0, "two", (SCORE,)), Piece(0, finish=STOP)]
COUNTS = TokenCounts(5, 3)


def read(data: object) -> object:
    return json.loads(json.dumps(data, allow_nan=False))


def test_a_whole_chat_has_the_text_of_all_pieces_and_each_answers_own_end() -> None:
    told = ChatCompletion.model_validate(read(whole_answer(HEAD, ChatShape(True), PIECES, COUNTS)))
    assert [(choice.message.content, choice.finish_reason) for choice in told.choices] == [
        ("one two", "stop"),
        ("x", "length"),
    ]
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (5, 3, 8)
    first = told.choices[0].logprobs.content[0]
    assert (first.token, first.bytes, first.logprob) == ("a", [97], -0.5)
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("a", -0.5), ("b", -9999.0)]


def test_a_whole_completion_begins_with_its_prompt_if_that_was_asked_for() -> None:
    shape = CompletionShape(with_logprobs=True).with_echo({0: "zero "})
    told = Completion.model_validate(read(whole_answer(HEAD, shape, PIECES, COUNTS)))
    assert [choice.text for choice in told.choices] == ["zero one two", "x"]
    logprobs = told.choices[0].logprobs
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["a"], [-0.5], [3])
    assert logprobs.top_logprobs == [{"a": -0.5, "b": -9999.0}]


def test_an_answer_without_an_end_is_no_answer() -> None:
    with pytest.raises(AssertionError):
        whole_answer(HEAD, ChatShape(), [Piece(0, "cut")], COUNTS)


def test_calls_are_those_of_openai() -> None:
    last = Piece(0, finish=CALLS, calls=(ToolCall("c1", "add", "{}"), ToolCall("c2", "sub", "{}")))
    whole = ChatCompletion.model_validate(read(whole_answer(HEAD, ChatShape(), [last], COUNTS)))
    assert (whole.choices[0].finish_reason, whole.choices[0].message.content) == ("tool_calls", None)
    part = ChatCompletionChunk.model_validate(read(chunk(HEAD, ChatShape(), [ChatShape().delta(last)])))
    for calls in (whole.choices[0].message.tool_calls, part.choices[0].delta.tool_calls):
        assert [(call.id, call.function.name) for call in calls] == [("c1", "add"), ("c2", "sub")]
    assert [call.index for call in part.choices[0].delta.tool_calls] == [0, 1]


def test_chunks_are_those_of_openai() -> None:
    shape = ChatShape()
    told = [shape.opening(0), *(shape.delta(piece) for piece in PIECES)]
    chunks = [ChatCompletionChunk.model_validate(read(chunk(HEAD, shape, [choice]))) for choice in told]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == 0) == "one two"
    assert [c.choices[0].finish_reason for c in chunks] == [None, None, "length", None, "stop"]
    assert all(choice["logprobs"] is None for choice in told), "nobody asked for them"


def test_an_event_is_one_line_whatever_the_text() -> None:
    """A line end of any kind within an event would end it; browsers also know U+2028."""
    text = "a\r\nb\n\ndata: x\u2028\u0085\x0b"
    sent = event({"text": text}).decode()
    assert len(sent.splitlines()) == 2
    assert json.loads(sent.removeprefix("data: ")) == {"text": text}
    assert comment({"peer": "a\nb"}).decode().splitlines()[1:] == [""]


def test_the_list_of_models() -> None:
    told = model_list([("a", 1), ("b/c", 2)])
    assert [Model.model_validate(card).id for card in told["data"]] == ["a", "b/c"]


def test_reasoning_stands_beside_the_content() -> None:
    pieces = [Piece(0, reasoning="hm, "), Piece(0, "yes", reasoning="well"), Piece(0, finish=STOP)]
    message = whole_answer(HEAD, ChatShape(), pieces, COUNTS)["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("yes", "hm, well")
    assert [ChatShape().delta(piece)["delta"] for piece in pieces] == [
        {"reasoning_content": "hm, "}, {"reasoning_content": "well", "content": "yes"}, {},
    ]  # fmt: skip
    assert "reasoning_content" not in whole_answer(HEAD, ChatShape(), PIECES, COUNTS)["choices"][0]["message"]
