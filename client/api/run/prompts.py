"""Turns requests into token ids, by the model's own chat template, and checks them against the model's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...program.talk import conversation_ids
from ..openai.errors import invalid
from ..openai.forms import AnswerForm, Tool
from ..openai.requests import ChatRequest, CompletionRequest, TextWish
from ..served import ServedModel


@dataclass(frozen=True, slots=True)
class PromptJob:
    """One call of `generate`: several answers to one prompt."""

    prompt: tuple[int, ...]
    first_choice: int
    """The index of the first answer; the others follow."""
    max_new_tokens: int
    wish: TextWish
    form: AnswerForm = field(default_factory=AnswerForm)
    echoed: str = ""
    """The prompt's text if the answers begin with it."""
    is_chat: bool = False


def jobs_of(served: ServedModel, request: ChatRequest | CompletionRequest) -> tuple[PromptJob, ...]:
    """Return the calls of `generate` that answer a request. Raises ApiError if it does not fit the model."""
    for token, _ in request.wish.sampling.logit_bias:
        if token >= served.vocabulary_size:
            raise invalid(f"'logit_bias' names token {token}: the model has {served.vocabulary_size}", "logit_bias")
    if isinstance(request, ChatRequest):
        prompt = chat_prompt(served.talker.tokenizer, request.messages, request.form.tools)
        limit = new_tokens(served, request.wish, prompt, "messages")
        return (PromptJob(prompt, 0, limit, request.wish, request.form, is_chat=True),)
    jobs = []
    for index, given in enumerate(request.prompts):
        prompt = completion_prompt(served, given)
        limit = new_tokens(served, request.wish, prompt, "prompt")
        echoed = _text(served, given) if request.echo else ""
        jobs.append(PromptJob(prompt, index * request.wish.choices, limit, request.wish, echoed=echoed))
    return tuple(jobs)


def chat_prompt(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
    """Render the conversation with the model's template. Raises ApiError if the template refuses it."""
    if tools and getattr(tokenizer, "chat_template", None) is None:
        raise invalid("the model has no chat template, so it cannot be told of tools", "tools")
    options = {"tools": [dict(tool.described) for tool in tools]} if tools else {}
    try:
        ids = conversation_ids(tokenizer, messages, **options)
    except Exception as error:  # a template is a program in the model's files, and may raise anything
        raise invalid(f"the model's chat template cannot put these messages: {error}", "messages") from None
    return _checked(ids[0].tolist(), "messages")


def completion_prompt(served: ServedModel, given: str | tuple[int, ...]) -> tuple[int, ...]:
    """Return the token ids of a prompt. Raises ApiError."""
    if isinstance(given, str):
        ids = served.talker.tokenizer(given, return_tensors="pt")["input_ids"][0].tolist()
        return _checked([int(token) for token in ids], "prompt")
    if max(given) >= served.vocabulary_size:
        raise invalid(f"'prompt' has token {max(given)}: the model has {served.vocabulary_size}", "prompt")
    return given


def _checked(ids: Sequence[int], param: str) -> tuple[int, ...]:
    if not ids:
        raise invalid(f"'{param}' has no tokens", param)
    return tuple(ids)


def _text(served: ServedModel, given: str | tuple[int, ...]) -> str:
    if isinstance(given, str):
        return given
    text: str = served.talker.tokenizer.decode(list(given), skip_special_tokens=True)
    return text


def new_tokens(served: ServedModel, wish: TextWish, prompt: Sequence[int], param: str) -> int:
    """Return the most tokens that the answer may have. Raises ApiError if the model has no room for it."""
    room = served.max_length - len(prompt)
    wanted = 1 if wish.max_tokens is None else wish.max_tokens
    if wanted > room:
        raise invalid(
            f"the model has room for {served.max_length} tokens: the prompt has {len(prompt)}, and the answer wants "
            f"{wanted}",
            param if room < 1 else "max_tokens",
            "context_length_exceeded",
        )
    return min(room, served.default_max_tokens) if wish.max_tokens is None else wish.max_tokens
