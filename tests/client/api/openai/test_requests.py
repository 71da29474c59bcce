"""Which requests are possible: a list of bodies that clients send, and of what is refused with which field's name."""

from __future__ import annotations

from typing import Any

import pytest
from blockswarm.client.api.openai.errors import ApiError
from blockswarm.client.api.openai.requests import (
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_PROMPTS,
    MAX_STOPS,
    Sampling,
    parse_chat,
    parse_completion,
)
from hypothesis import given
from hypothesis import strategies as st

USER = {"role": "user", "content": "hello"}


def chat(**fields: Any) -> Any:
    return parse_chat({"model": "m", "messages": [USER], **fields})


def completion(**fields: Any) -> Any:
    return parse_completion({"model": "m", "prompt": "hello", **fields})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": "x" * 1000}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"seed": 1.5}, "seed"),
        ({"n": 0}, "n"),
        ({"n": MAX_CHOICES + 1}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": ["a"] * (MAX_STOPS + 1)}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tools": [5]}, "tools[0]"),
    ],
    ids=str,
)
def test_an_impossible_chat_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
        ({"prompt": ["a"] * MAX_PROMPTS, "n": 2}, "n"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
    ],
    ids=str,
)
def test_an_impossible_completion_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        completion(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_unknown_fields_and_nulls_are_ignored() -> None:
    known = chat()
    more = chat(user="u", store=True, metadata={"a": "b"}, service_tier="auto", temperature=None, stop=None, n=None)
    assert known == more


def test_the_newer_name_of_the_limit_counts() -> None:
    assert chat(max_tokens=5).wish.max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=7).wish.max_tokens == 7
    assert chat().wish.max_tokens is None
    assert completion().wish.max_tokens == 16, "OpenAI's own number"


def test_a_chat_becomes_what_templates_take() -> None:
    asked = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "2"},
        ]
    )
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert asked.messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
    )


def test_sampling_is_read_as_it_is_given() -> None:
    asked = chat(temperature=0, top_p=0.5, presence_penalty=1, logit_bias={"9": -100, "3": 1.5}, seed=-4)
    assert asked.wish.sampling == Sampling(
        temperature=0, top_p=0.5, presence_penalty=1, logit_bias=((3, 1.5), (9, -100.0)), seed=-4
    )


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_prompts_are_texts_or_token_ids(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompts == prompts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "model", "messages", "prompt", "n", "stop", "seed", "stream", "stream_options", "logprobs", "top_logprobs",
    "logit_bias", "temperature", "top_p", "max_tokens", "best_of", "suffix", "echo", "modalities",
]  # fmt: skip


@pytest.mark.long
@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_json_gives_a_request_or_an_error_that_names_a_field(values: dict[str, Any]) -> None:
    for parse in (parse_chat, parse_completion):
        for body in (values, {"model": "m", "messages": [USER], "prompt": "p"} | values):
            error = refusal(parse, body)
            assert error is None or (error.status == 400 and error.param)


def refusal(parse: Any, body: dict[str, Any]) -> ApiError | None:
    try:
        parse(body)
    except ApiError as error:
        return error
    return None
