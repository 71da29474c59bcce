"""The traffic between the event loop and the engine's thread: jobs and work one way, answers the other.

The loop makes a future for each item that it hands over; the thread answers through `deliver`, which wakes each loop
once for all of its answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from ...proto.wire.steps import StepPlan
from ...proto.wire.tensors import WireFormat
from .batch import Share
from .cache.session import SessionKv, StepOutput
from .scheduler import Take
from .step_record import StepRecord


@dataclass(eq=False)
class StepJob:
    """A step on its way through the engine."""

    unconditional: ClassVar[bool] = False
    kv: SessionKv
    plan: StepPlan
    data: bytes
    input_format: WireFormat
    """The format of `data`."""
    future: asyncio.Future[StepOutput]
    arrived_at: float
    """Monotonic seconds."""
    started_at: float | None = None
    """Start of its first forward pass in Unix seconds; None before."""
    queue_seconds: float = 0.0
    """Its wait for other sessions until then."""
    deferred: int = 0
    """Steps of the engine from which its guesses were left out."""

    @property
    def has_text(self) -> bool:
        """Whether some of its tokens are not guesses."""
        return self.plan.tokens > self.plan.guessed


@dataclass(eq=False)
class EngineWork:
    """Other work for the engine's thread."""

    run: Callable[[], Any]
    future: asyncio.Future[Any]
    unconditional: bool = False
    """Run it even if it is cancelled or the engine closes."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The outcome of a future: `error`, or else `value`."""

    future: asyncio.Future[Any]
    value: Any = None
    error: BaseException | None = None


def takes_by_job(takes: Iterable[Take]) -> dict[int, list[tuple[int, int]]]:
    """Group the takes: index of the job -> (row, tokens) of its rows."""
    by_job: dict[int, list[tuple[int, int]]] = {}
    for take in takes:
        by_job.setdefault(take.job, []).append((take.row, take.count))
    return by_job


def text_and_guesses(left: Sequence[int], rows: Iterable[tuple[int, int]], guesses_left: int) -> tuple[int, int]:
    """Count the (text tokens, guesses) that a step takes of a job; the guesses are the last tokens of its last row.

    `left`: tokens by row before the step; `rows`: (row, tokens) that the step takes.
    """
    by_row = dict(rows)
    last = len(left) - 1
    guessed = max(0, by_row.get(last, 0) - (left[last] - guesses_left))
    return sum(by_row.values()) - guessed, guessed


def record_of_step(
    shares: Sequence[Share], failed_sessions: int, seconds: float, longest_wait_seconds: float
) -> StepRecord:
    """`shares` are those that were computed, at least one."""
    rows = [row for share in shares for row in share.rows]
    decode_rows = sum(row.count == 1 for row in rows)
    tokens = sum(row.count for row in rows)
    return StepRecord(
        sessions=len(shares),
        rows=len(rows),
        decode_rows=decode_rows,
        prefill_tokens=tokens - decode_rows,
        context_tokens=sum(row.start + row.count for row in rows),
        blocks=sum(len(share.hidden) * len(share.view.blocks) for share in shares) / tokens,
        seconds=seconds,
        longest_wait_seconds=longest_wait_seconds,
        failed_sessions=failed_sessions,
    )


def run_work(work: EngineWork) -> None:
    """Run `work` and deliver its outcome, unless it was cancelled in time."""
    if work.future.cancelled() and not work.unconditional:
        return
    deliver([answer_of(work.future, work.run)])


def answer_of(
    future: asyncio.Future[Any],
    compute: Callable[[], Any],
    translate: Callable[[Exception], Exception] = lambda error: error,
) -> Outcome:
    """The outcome of `compute`, its errors translated: nothing that one session causes ends the thread."""
    try:
        return Outcome(future, compute())
    except Exception as error:
        return Outcome(future, error=translate(error))


def deliver(answers: Iterable[Outcome]) -> None:
    """Wake each loop once for all of its answers."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for answer in answers:
        by_loop.setdefault(answer.future.get_loop(), []).append(answer)
    for loop, part in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, part)


def _settle(answers: Sequence[Outcome]) -> None:
    for answer in answers:
        if answer.future.done():
            continue
        if answer.error is not None:
            answer.future.set_exception(answer.error)
        else:
            answer.future.set_result(answer.value)
