"""Requests for text as frozen values: all bounds are checked here, and nothing after this module checks them again.

Unknown fields are ignored, as OpenAI does; a known field that asks for something impossible is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ApiError
from .fields import Fields, parse_object
from .forms import AnswerForm, parse_form

MAX_TEXT_CHARS = 4_000_000
"""Texts beyond this are refused by their characters, before their tokens are counted."""
MAX_MODEL_CHARS = 256
MAX_MESSAGES = 4096
MAX_PARTS = 256
MAX_PROMPTS = 64
MAX_PROMPT_TOKENS = 1 << 20
MAX_CHOICES = 32
MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_BIASES = 1024
MAX_CALLS = 128
MAX_NEW_TOKENS = 1 << 20
MAX_TOKEN_ID = (1 << 31) - 1
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. None leaves a value to the model's generation config."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), ascending by id."""
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TextWish:
    """The fields that both kinds of requests share."""

    model: str
    max_tokens: int | None = None
    """None: the endpoint's default limit."""
    choices: int = 1
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    top_logprobs: int | None = None
    """How many of the likeliest tokens to report log-probabilities for, beside the chosen one; None: report none."""
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with the token counts."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation whose next message is wanted."""

    wish: TextWish
    messages: tuple[Mapping[str, Any], ...]
    """As chat templates take them: role, content, and the fields of tool calls."""
    form: AnswerForm = field(default_factory=AnswerForm)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Texts, or token ids, to continue."""

    wish: TextWish
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool = False
    """Whether the answers begin with the prompt."""


def parse_chat(values: Mapping[str, object]) -> ChatRequest:
    """Parse a chat request. Raises ApiError for one that cannot be answered."""
    fields = Fields(values)
    for name, use in (("functions", "tools"), ("function_call", "tool_choice")):
        if name in fields:
            raise fields.error(name, f"is no longer possible: use '{use}'", "unsupported_parameter")
    if fields.value("modalities") not in (None, ["text"]) or "audio" in fields:
        raise fields.error("modalities", 'may only be ["text"]', "unsupported_value")
    given = fields.items("messages", MAX_MESSAGES)
    if not given:
        raise fields.error("messages", "must have at least one message", "missing_required_parameter")
    top = fields.integer("top_logprobs", 0, 20)
    if fields.flag("logprobs"):
        top = top or 0
    elif top is not None:
        raise fields.error("top_logprobs", "needs 'logprobs' to be true", "invalid_value")
    limit = fields.integer("max_completion_tokens", 1, MAX_NEW_TOKENS)
    limit = limit if limit is not None else fields.integer("max_tokens", 1, MAX_NEW_TOKENS)
    messages = tuple(_message(fields.inner("messages", index, value)) for index, value in enumerate(given))
    return ChatRequest(_wish(fields, limit, top), messages, parse_form(fields))


def parse_completion(values: Mapping[str, object]) -> CompletionRequest:
    """Parse a completion request. Raises ApiError for one that cannot be answered."""
    fields = Fields(values)
    for name in ("suffix", "best_of"):
        if fields.value(name) not in (None, "", fields.value("n") or 1):
            raise fields.error(name, "is not possible here", "unsupported_parameter")
    top = fields.integer("logprobs", 0, 5)
    echo = fields.flag("echo")
    if echo and top is not None:
        raise fields.error("echo", "together with 'logprobs' is not possible here", "unsupported_parameter")
    limit = fields.integer("max_tokens", 1, MAX_NEW_TOKENS)
    wish = _wish(fields, 16 if limit is None else limit, top)
    prompts = _prompts(fields)
    if len(prompts) * wish.choices > MAX_PROMPTS:
        raise fields.error("n", f"times the number of prompts must be at most {MAX_PROMPTS}", "invalid_value")
    return CompletionRequest(wish, prompts, echo)


def _wish(fields: Fields, max_tokens: int | None, top_logprobs: int | None) -> TextWish:
    model = fields.text("model", MAX_MODEL_CHARS)
    if not model:
        raise fields.error("model", "is missing: name the model", "missing_required_parameter")
    stream = fields.flag("stream")
    usage = False
    if "stream_options" in fields:
        if not stream:
            raise fields.error("stream_options", "needs 'stream' to be true", "invalid_value")
        usage = fields.inner("stream_options").flag("include_usage")
    return TextWish(
        model=model,
        max_tokens=max_tokens,
        choices=fields.integer("n", 1, MAX_CHOICES) or 1,
        stop=_stop(fields),
        sampling=_sampling(fields),
        top_logprobs=top_logprobs,
        stream=stream,
        include_usage=usage,
    )


def _sampling(fields: Fields) -> Sampling:
    return Sampling(
        temperature=fields.number("temperature", 0, 2),
        top_p=fields.number("top_p", 0, 1),
        top_k=fields.integer("top_k", 1, MAX_TOKEN_ID),
        min_p=fields.number("min_p", 0, 1),
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        logit_bias=_logit_bias(fields),
        seed=fields.integer("seed", -(1 << 63), (1 << 63) - 1),
    )


def _stop(fields: Fields) -> tuple[str, ...]:
    if isinstance(fields.value("stop"), str):
        given: list[object] = [fields.value("stop")]
    else:
        given = fields.items("stop", MAX_STOPS) or []
    return tuple(text for value in given if (text := fields.text_of("stop", value, MAX_STOP_CHARS)))


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    given = fields.value("logit_bias")
    if given is None:
        return ()
    if not isinstance(given, dict) or len(given) > MAX_BIASES:
        raise fields.error("logit_bias", f"must be an object with at most {MAX_BIASES} tokens", "invalid_value")
    biases = {}
    for token, value in given.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise fields.error("logit_bias", "must have token ids as its keys", "invalid_value")
        biases[int(token)] = fields.number_of("logit_bias", value, -100, 100)
    return tuple(sorted(biases.items()))


def _prompts(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    given = fields.value("prompt")
    if isinstance(given, str):
        return (fields.text_of("prompt", given, MAX_TEXT_CHARS),)
    values = fields.items("prompt", MAX_PROMPT_TOKENS)
    if not values:
        raise fields.error("prompt", "is missing: give a text, or token ids", "missing_required_parameter")
    if isinstance(values[0], int):
        return (_token_ids(fields, values),)
    if len(values) > MAX_PROMPTS:
        raise fields.error("prompt", f"has {len(values)} prompts, at most {MAX_PROMPTS} are possible", "invalid_value")
    return tuple(
        _token_ids(fields, value) if isinstance(value, list) else fields.text_of("prompt", value, MAX_TEXT_CHARS)
        for value in values
    )


def _token_ids(fields: Fields, values: list[object]) -> tuple[int, ...]:
    ids = tuple(value for value in values if isinstance(value, int) and not isinstance(value, bool))
    if len(ids) != len(values) or not ids or not all(0 <= token <= MAX_TOKEN_ID for token in ids):
        raise fields.error("prompt", "must have token ids: at least one, and integers from 0 on", "invalid_value")
    return ids


# --- messages ---


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.choice("role", ROLES)
    if role is None:
        raise fields.error("role", f"is missing: one of {', '.join(ROLES)}", "missing_required_parameter")
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = _content(fields)
    calls = fields.items("tool_calls", MAX_CALLS) if role == "assistant" else None
    if content is None and not calls:
        raise fields.error("content", "is missing", "missing_required_parameter")
    message["content"] = content or ""
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (text := fields.text(name, MAX_TEXT_CHARS)) is not None:
            message[name] = text
    if calls:
        message["tool_calls"] = [_call(fields.inner("tool_calls", index, call)) for index, call in enumerate(calls)]
    return message


def _content(fields: Fields) -> str | None:
    """Return a message's text: a string, or its parts joined."""
    given = fields.value("content")
    if given is None or isinstance(given, str):
        return fields.text("content", MAX_TEXT_CHARS)
    texts = []
    for index, value in enumerate(fields.items("content", MAX_PARTS) or ()):
        part = fields.inner("content", index, value)
        if part.choice("type", ("text",)) is None:
            raise part.error("type", "is missing: only text is possible", "missing_required_parameter")
        text = part.text("text", MAX_TEXT_CHARS)
        if text is None:
            raise part.error("text", "is missing", "missing_required_parameter")
        texts.append(text)
    return "".join(texts)


def _call(fields: Fields) -> dict[str, Any]:
    """Return an earlier tool call, with its arguments parsed if they are a JSON object: templates print them."""
    function = fields.inner("function")
    name, arguments = function.text("name", MAX_MODEL_CHARS), function.text("arguments", MAX_TEXT_CHARS)
    if not name:
        raise function.error("name", "is missing", "missing_required_parameter")
    identity = fields.text("id", MAX_MODEL_CHARS)
    return {
        "id": identity or "",
        "type": "function",
        "function": {"name": name, "arguments": _as_object(arguments or "{}")},
    }


def _as_object(arguments: str) -> object:
    try:
        return parse_object(arguments.encode())
    except ApiError:
        return arguments
