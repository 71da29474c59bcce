"""Answers in OpenAI's shape: whole ones, and the chunks of a stream.

An `AnswerShape` describes one kind of answer, to a chat or a completion; `AnswerHead` has the fields that are common to
all parts of an answer (id, model, time).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..pieces import LikelyToken, Piece, ScoredToken, TokenCounts, ToolCall

LEAST_LOGPROB = -9999.0
"""JSON has no minus infinity."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The fields that all parts of an answer begin with."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    fingerprint: str

    def fields(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class AnswerShape(Protocol):
    """Writes the answers to chats or to completions as JSON."""

    @property
    def kind(self) -> str:
        """OpenAI's name for a whole answer."""

    @property
    def chunk_kind(self) -> str:
        """OpenAI's name for a chunk of one."""

    def with_echo(self, echoed: Mapping[int, str]) -> AnswerShape:
        """Return a shape for answers that begin with these prompts, by choice."""

    def opening(self, choice: int) -> Json | None:
        """Return the `choices` element of an answer's first chunk, before its text; None: there is no such chunk."""

    def delta(self, piece: Piece) -> Json:
        """Return the `choices` element of a chunk."""

    def whole(self, choice: int, pieces: Sequence[Piece]) -> Json:
        """Return the `choices` element of a whole answer, whose last piece says how it ended."""


@dataclass(frozen=True, slots=True)
class ChatShape:
    """Answers to chats."""

    with_logprobs: bool = False
    kind: str = "chat.completion"
    chunk_kind: str = "chat.completion.chunk"

    def with_echo(self, echoed: Mapping[int, str]) -> ChatShape:
        return self

    def opening(self, choice: int) -> Json | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, piece: Piece) -> Json:
        delta: Json = {"reasoning_content": piece.reasoning} if piece.reasoning else {}
        if piece.text or piece.scores:
            delta["content"] = piece.text
        if piece.calls:
            delta["tool_calls"] = [{"index": index, **_called(call)} for index, call in enumerate(piece.calls)]
        return {
            "index": piece.choice,
            "delta": delta,
            "logprobs": self._logprobs(piece.scores) if piece.scores else None,
            "finish_reason": piece.finish,
        }

    def whole(self, choice: int, pieces: Sequence[Piece]) -> Json:
        text, last = _text(pieces), pieces[-1]
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if reasoning := "".join(piece.reasoning for piece in pieces):
            message["reasoning_content"] = reasoning
        if last.calls:
            message |= {"content": text or None, "tool_calls": [_called(call) for call in last.calls]}
        return {
            "index": choice,
            "message": message,
            "logprobs": self._logprobs(_scores(pieces)),
            "finish_reason": last.finish,
        }

    def _logprobs(self, scores: Sequence[ScoredToken]) -> Json | None:
        if not self.with_logprobs:
            return None
        content = [
            {**_told(score.token), "top_logprobs": [_told(token) for token in score.likeliest]} for score in scores
        ]
        return {"content": content, "refusal": None}


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """Answers to completions."""

    with_logprobs: bool = False
    echoed: Mapping[int, str] = field(default_factory=dict)
    """The prompt that each answer begins with, by choice."""
    kind: str = "text_completion"
    chunk_kind: str = "text_completion"

    def with_echo(self, echoed: Mapping[int, str]) -> CompletionShape:
        return replace(self, echoed=echoed)

    def opening(self, choice: int) -> Json | None:
        text = self.echoed.get(choice)
        return None if not text else self._choice(choice, text, (), None)

    def delta(self, piece: Piece) -> Json:
        return self._choice(piece.choice, piece.text, piece.scores, piece.finish)

    def whole(self, choice: int, pieces: Sequence[Piece]) -> Json:
        text = self.echoed.get(choice, "") + _text(pieces)
        return self._choice(choice, text, _scores(pieces), pieces[-1].finish)

    def _choice(self, choice: int, text: str, scores: Sequence[ScoredToken], finish: str | None) -> Json:
        logprobs = None
        if self.with_logprobs:
            logprobs = {
                "tokens": [score.token.text for score in scores],
                "token_logprobs": [_finite(score.token.logprob) for score in scores],
                "top_logprobs": [{token.text: _finite(token.logprob) for token in s.likeliest} for s in scores],
                "text_offset": [score.offset for score in scores],
            }
        return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _scores(pieces: Sequence[Piece]) -> list[ScoredToken]:
    return [score for piece in pieces for score in piece.scores]


def _called(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _told(token: LikelyToken) -> Json:
    utf8 = None if token.utf8 is None else list(token.utf8)
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": utf8}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def usage(counts: TokenCounts) -> Json:
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
    }


def chunk(head: AnswerHead, shape: AnswerShape, choices: Sequence[Json], **more: Any) -> Json:
    """Return a chunk of a stream; `more`: further fields."""
    return {**head.fields(shape.chunk_kind), "choices": list(choices), **more}


def whole_answer(
    head: AnswerHead, shape: AnswerShape, pieces: Sequence[Piece], counts: TokenCounts, **more: Any
) -> Json:
    """Return all pieces of all answers as one body. Every answer must have ended."""
    choices = []
    for choice in sorted({piece.choice for piece in pieces}):
        own = [piece for piece in pieces if piece.choice == choice]
        assert own[-1].finish is not None, f"answer {choice} has no end"
        choices.append(shape.whole(choice, own))
    return {**head.fields(shape.kind), "choices": choices, "usage": usage(counts), **more}


def event(data: Json | str) -> bytes:
    """Return a server-sent event; ensure_ascii keeps every line end inside JSON's own escapes."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()


def comment(data: Json) -> bytes:
    """Return a comment line of a stream, which clients skip and the chat page reads."""
    return f": {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n".encode()


DONE = event("[DONE]")
"""The last event of a stream that has ended without an error."""


def model_list(models: Sequence[tuple[str, int]]) -> Json:
    """Return the list of models, given as (name, Unix seconds since when it is served)."""
    return {"object": "list", "data": [model_card(name, created) for name, created in models]}


def model_card(name: str, created: int) -> Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "blockswarm"}
