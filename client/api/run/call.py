"""Runs one request in the generating thread: calls `generate` for its prompts and emits the answers as pieces.

Every answer ends for a known reason: the model's own end, a stop string, or its length.  If `generate` returns and an
answer has none of these, the call has failed, whatever it returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ....proto.errors import SessionLost
from ...config import SessionEvent
from ...model.generation import Cancellation, Generation
from ...program.account import REPAIRS
from ...report import ChainReport, GuessReport
from ..openai.forms import CallReader
from ..openai.requests import ChatRequest, CompletionRequest
from ..pieces import Piece, ScoredToken, TokenCounts
from ..served import ServedModel
from .prompts import PromptJob, jobs_of
from .reasoning import ReasoningReader, ReasoningTokens
from .sampling import RecordedScores, fixed_settings, processors
from .texts import RowText
from .vocabulary import likely_token


@dataclass(frozen=True, slots=True)
class Begun:
    """The request is valid, and its generation begins."""

    echoed: dict[int, str]
    """The text that each answer begins with, by choice."""
    prompt_tokens: int = 0
    most_tokens: int = 0
    """The tokens of the prompts plus the most that the answers can have."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """An event of a kind in `REPAIRS` happened, such as the replacement of a peer."""

    event: SessionEvent


@dataclass(frozen=True, slots=True)
class Finished:
    """All answers have ended."""

    counts: TokenCounts
    report: ChainReport
    """The report of the last call of `generate`."""
    events: tuple[SessionEvent, ...]
    guesses: GuessReport
    """The sum over all calls."""


Item = Begun | Piece | Repaired | Finished
Emit = Callable[[Item], object]


def answer(
    served: ServedModel,
    request: ChatRequest | CompletionRequest,
    seed: int,
    new_id: Callable[[], str],
    cancellation: Cancellation,
    emit: Emit,
) -> None:
    """Generate all answers. `seed` is used if the request has none; `new_id` makes the ids of tool calls.

    Raises ApiError, SwarmError.
    """
    jobs = jobs_of(served, request)
    prompt_tokens = sum(len(job.prompt) for job in jobs)
    most = prompt_tokens + sum(job.max_new_tokens * job.wish.choices for job in jobs)
    echoed = {job.first_choice + row: job.echoed for job in jobs if job.echoed for row in range(job.wish.choices)}
    emit(Begun(echoed, prompt_tokens, most))
    if isinstance(request, ChatRequest) and request.form.tools:
        emit = _reading_calls(request, new_id, emit)
    if isinstance(request, ChatRequest):
        emit = _reading_reasoning(served, jobs[0], emit)
    tokens = 0
    events: list[SessionEvent] = []
    report, guesses = ChainReport(), GuessReport()
    for job in jobs:
        if cancellation.requested.is_set():
            raise SessionLost("the request was cancelled")
        generation = Generation(cancellation)
        tokens += run_job(served, job, seed, generation, cancellation.requested, emit)
        events += generation.events
        report, guesses = generation.report, guesses.plus(generation.guesses)
    emit(Finished(TokenCounts(prompt_tokens, tokens), report, tuple(events), guesses))


def run_job(
    served: ServedModel, job: PromptJob, seed: int, generation: Generation, cancelled: Event, emit: Emit
) -> int:
    """Make one call of `generate`; return the number of tokens of its answers. Raises ApiError, SwarmError."""
    wish = job.wish
    recorded = RecordedScores() if wish.top_logprobs is not None else None
    shown = served.reasoning.shown if served.reasoning is not None and job.is_chat else frozenset()
    rows = [
        RowText(choice, served.talker.tokenizer, wish.stop, served.end_tokens, job.max_new_tokens, shown)
        for choice in range(job.first_choice, job.first_choice + wish.choices)
    ]
    watcher = RowWatcher(
        rows, len(job.prompt), cancelled, _noting_repairs(generation, emit),
        _Scores(served.talker.tokenizer, recorded, wish.top_logprobs or 0) if recorded is not None else None,
    )  # fmt: skip
    ids = torch.tensor([job.prompt] * wish.choices)
    chosen = processors(wish.sampling, served.defaults, len(job.prompt), seed, recorded, _schema_mask(served, job))
    served.talker.model.generate_as(
        generation,
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=LogitsProcessorList(chosen),
        stopping_criteria=StoppingCriteriaList([watcher]),
        **fixed_settings(served.end_tokens, served.pad_token, job.max_new_tokens),
    )
    if cancelled.is_set():
        raise SessionLost("the request was cancelled")
    if any(row.finish is None for row in rows):
        raise SessionLost("the generation ended before its answer did")
    return sum(row.tokens for row in rows)


def _reading_calls(request: ChatRequest, new_id: Callable[[], str], emit: Emit) -> Emit:
    """Return an `emit` that splits every answer into content and tool calls."""
    readers = [CallReader(request.form, new_id) for _ in range(request.wish.choices)]
    return lambda item: emit(readers[item.choice].read(item) if isinstance(item, Piece) else item)


def _reading_reasoning(served: ServedModel, job: PromptJob, emit: Emit) -> Emit:
    """Return an `emit` that splits every answer into reasoning and content, if the model may reason."""
    marks = served.reasoning
    if marks is None or (job.form.schema is not None and _reasoning_tokens(served, job) is None):
        return emit  # the schema covers all that the model writes
    begun = marks.begun_by(served.talker.tokenizer, job.prompt)
    readers = [ReasoningReader(marks, begun) for _ in range(job.wish.choices)]
    return lambda item: emit(readers[item.choice].read(item) if isinstance(item, Piece) else item)


def _schema_mask(served: ServedModel, job: PromptJob) -> Any:
    """Return the processor that keeps answers to their schema, if there is one. Raises ApiError."""
    if job.form.schema is None:
        return None
    from .grammar import SchemaMask  # imported late: only answers with a schema need llguidance

    return SchemaMask(
        job.form.schema,
        served.grammar_tokenizer,
        job.wish.choices,
        len(job.prompt),
        job.form.schema_param,
        _reasoning_tokens(served, job),
    )


def _reasoning_tokens(served: ServedModel, job: PromptJob) -> ReasoningTokens | None:
    """Return how to recognise reasoning before an answer that keeps to a schema; None: it cannot be recognised."""
    marks = served.reasoning
    if marks is None or marks.tokens is None or max(marks.tokens) >= served.vocabulary_size:
        return None
    return ReasoningTokens(*marks.tokens, marks.begun_by(served.talker.tokenizer, job.prompt))


def _noting_repairs(generation: Generation, emit: Emit) -> Emit:
    """Return an `emit` that first emits the repairs since the previous item."""
    seen = 0

    def tell(item: Item) -> None:
        nonlocal seen
        events = generation.events
        for event in events[seen:]:
            if event.kind in REPAIRS:
                emit(Repaired(event))
        seen = len(events)
        emit(item)

    return tell


@dataclass
class _Scores:
    """Looks up the log-probabilities of tokens."""

    tokenizer: Any
    recorded: RecordedScores
    likeliest: int
    _logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def look_at(self, position: int) -> None:
        """Load the log-probabilities for the tokens at this position."""
        self._logprobs = self.recorded.take(position)

    def of(self, row: int, token: int, offset: int) -> ScoredToken:
        logprobs = self._logprobs[row]
        values, tokens = logprobs.topk(min(self.likeliest, len(logprobs)))
        likeliest = [
            likely_token(self.tokenizer, other, value)
            for other, value in zip(tokens.tolist(), values.tolist(), strict=True)
        ]
        return ScoredToken(likely_token(self.tokenizer, token, float(logprobs[token])), tuple(likeliest), offset)


class RowWatcher(StoppingCriteria):
    """Sees every token that `generate` chooses: passes text on, and ends the rows whose answers have ended."""

    def __init__(
        self, rows: Sequence[RowText], prompt_length: int, cancelled: Event, emit: Emit, scores: _Scores | None
    ) -> None:
        self._rows = rows
        self._seen = prompt_length
        self._cancelled = cancelled
        self._emit = emit
        self._scores = scores

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which rows have ended: (B, length) -> (B,). Several tokens may have come since the last call."""
        for position in range(self._seen, input_ids.shape[1]):
            if self._scores is not None:
                self._scores.look_at(position)
            for index, (row, token) in enumerate(zip(self._rows, input_ids[:, position].tolist(), strict=True)):
                if row.finish is None:
                    score = self._scores.of(index, token, row.decoded_chars) if self._scores is not None else None
                    row.take(token, score)
        had = self._seen
        self._seen = input_ids.shape[1]
        for row in self._rows if self._seen > had else ():
            if (piece := row.piece()) is not None:
                self._emit(piece)
        ended = [row.finish is not None or self._cancelled.is_set() for row in self._rows]
        return torch.tensor(ended, device=input_ids.device)
