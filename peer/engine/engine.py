"""The thread that computes: sessions' caches live here, and every step is shared by all sessions that are ready.

The loop hands steps over with `Engine.step`, other work with `Engine.submit`, and never touches a tensor; what crosses
are bytes in wire format.  The thread goes through turns: work that was submitted, then one forward pass over the tokens
that `scheduler.plan_step` chooses from all steps that are there.  A step that arrives while one is computed is part of
the next.  Between turns nothing is under way, so sessions end, are exported and move without locks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from ...proto.errors import PeerUnavailable, RetryElsewhere, SwarmError
from ...proto.wire.prefixes import Digests
from ...proto.wire.steps import StepPlan
from ...proto.wire.tensors import WireFormat
from ...routing.swarm import BlockRange, PeerId
from .batch import Share, compute_shares, error_of
from .blocks.stage import Stage
from .cache.memory import SessionMemory
from .cache.pool import KvPool
from .cache.session import SessionKv, StepOutput, StepProgress
from .scheduler import DEFAULT_CHUNK_TOKENS, ExpectedSessions, Take, gather_until, plan_step
from .step_record import StepObserver, StepRecord

__all__ = ["Engine", "SessionKv", "StepOutput"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_NOBODY = PeerId("")


@dataclass(eq=False)
class _Job:
    """A step on its way through the engine."""

    kv: SessionKv
    plan: StepPlan
    data: bytes
    future: asyncio.Future[StepOutput]
    arrived_at: float
    """Monotonic seconds."""
    started_at: float | None = None
    """Unix seconds; from the first forward pass on."""


@dataclass(eq=False)
class _Work:
    """Something else that runs in the engine's thread."""

    run: Callable[[], Any]
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What becomes of a future: `error`, or else `value`."""

    future: asyncio.Future[Any]
    value: Any = None
    error: BaseException | None = None


class Engine:
    """One stage and the one thread that computes with it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.chunk_tokens = DEFAULT_CHUNK_TOKENS
        """How many tokens of prompts a step computes at most; see `scheduler.chunk_tokens_within`."""
        self.observer: StepObserver | None = None
        """Hears of every step, in the engine's thread."""
        self.pause: Callable[[], float] | None = None
        """Asked after every step for how many seconds the machine should be left to its owner."""
        self.pool = KvPool(0, prefix_limit_bytes=0)
        """The memory of the sessions; another one may be put here before there are any."""
        # A task of this executor runs while there is something to do: an engine that is forgotten holds no thread up.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._changed = threading.Condition()
        # Shared by the loop and the engine's thread, under the condition's lock:
        self._running = False
        self._closed = False
        self._inbox: list[_Job | _Work] = []
        self._expected = ExpectedSessions()
        # Of the loop:
        self._latest: WeakKeyDictionary[SessionKv, asyncio.Future[StepOutput]] = WeakKeyDictionary()
        # Of the engine's thread:
        self._jobs: dict[_Job, StepProgress] = {}
        """Steps that have begun, in the order of `scheduler.StepChoice`."""
        self._last_step_seconds = 0.0
        self._last_step_ended = 0.0

    @property
    def blocks(self) -> BlockRange:
        return self.stage.blocks

    def wire_format(self, name: str) -> WireFormat:
        """The wire format of that name for this model. Raises UsageError if there is none."""
        return WireFormat.named(name, self.stage.hidden_size)

    def open(
        self,
        blocks: BlockRange,
        wire_format: WireFormat,
        kv_tokens: int,
        max_rows: int,
        client: PeerId = _NOBODY,
        prefixes: Sequence[Digests] = (),
    ) -> SessionKv:
        """The rows of a new session, which may begin with what is held of the client's `prefixes`; close it.

        Raises UsageError for blocks that are not hosted here.
        """
        self.stage.view(blocks)  # refuses other blocks before anything is pinned
        nbytes = kv_tokens * len(blocks) * self.stage.kv_bytes_per_token
        memory = SessionMemory(self.pool, client, blocks, nbytes, prefixes)
        return SessionKv(self.stage, blocks, wire_format, kv_tokens, max_rows, memory)

    # On the loop.

    async def step(self, kv: SessionKv, plan: StepPlan, data: bytes) -> StepOutput:
        """Compute a step together with those of other sessions; one step of a session at a time.

        Raises as `SessionKv.step` does, and PeerUnavailable when the engine is closed. The rows have the lengths that
        the step began with after an error. A cancelled step is undone unless it is complete already; whatever is asked
        for after the cancellation comes after that.
        """
        latest = self._latest.get(kv)
        if latest is not None and not latest.done():
            raise RuntimeError("a session has one step at a time in the engine")
        future: asyncio.Future[StepOutput] = asyncio.get_running_loop().create_future()
        self._put(_Job(kv, plan, data, future, time.monotonic()))
        self._latest[kv] = future
        return await future

    async def submit(self, work: Callable[[], _T]) -> _T:
        """Run `work` in the engine's thread, between two steps, after what was submitted before.

        A step of the same session must be over or cancelled. Raises what `work` does, and PeerUnavailable when the
        engine is closed.
        """
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._put(_Work(work, future))
        return await future

    def close(self) -> None:
        """Stop the thread when the forward pass that runs now is done; what waits fails with PeerUnavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._executor.shutdown(wait=True)

    def _put(self, item: _Job | _Work) -> None:
        with self._changed:
            if self._closed:
                raise PeerUnavailable("the peer is shutting down")
            self._inbox.append(item)
            if isinstance(item, _Job):
                self._expected.arrived(item.kv, item.arrived_at)
            if self._running:
                self._changed.notify()
            else:
                self._running = True
                self._executor.submit(self._run)

    # In the engine's thread.

    def _run(self) -> None:
        """Take turns until there is nothing to do."""
        try:
            while self._take_turn():
                pass
        except BaseException:
            # A defect: whoever waits must not wait for ever.
            logger.exception("the engine failed; all steps that were under way are lost")
            self._drop_everything(RetryElsewhere("the peer's engine failed"))

    def _take_turn(self) -> bool:
        """Whether there may be more to do."""
        self._accept()
        if self._jobs:
            self._gather()
            self._accept()
        if self._jobs and not self._closed:
            self._step()
            self._leave_time_to_the_owner()
        with self._changed:
            if not self._closed:
                self._running = bool(self._jobs or self._inbox)
                return self._running
        self._drop_everything(PeerUnavailable("the peer is shutting down"))
        return False

    def _accept(self) -> None:
        """Begin the steps and do the other work that arrived, in order."""
        with self._changed:
            if self._closed:
                return
            items, self._inbox = self._inbox, []
        # After the inbox was taken: what a session sends after it cancelled a step finds the step gone.
        self._drop_cancelled()
        for item in items:
            if item.future.cancelled():
                continue
            try:
                if isinstance(item, _Work):
                    _deliver([_Answer(item.future, item.run())])
                else:
                    self._begin(item)
            except Exception as error:
                _deliver([_Answer(item.future, error=error_of(error) if isinstance(item, _Job) else error)])

    def _begin(self, job: _Job) -> None:
        now = time.time()
        progress = job.kv.begin(job.plan, job.data)
        if progress.remaining:
            self._jobs[job] = progress
        else:
            _deliver([_Answer(job.future, StepOutput(progress.finish(), now, now))])

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.future.cancelled()]:
            self._jobs.pop(job).abandon()

    def _drop_everything(self, error: Exception) -> None:
        with self._changed:
            self._running = False
            items, self._inbox = self._inbox, []
        jobs, self._jobs = self._jobs, {}
        _deliver([_Answer(item.future, error=error) for item in (*jobs, *items)])
        for progress in jobs.values():
            progress.abandon()

    def _gather(self) -> None:
        """Wait a moment for sessions that should be back very soon, see `scheduler.gather_until`."""
        ready_since = max(self._last_step_ended, min(job.arrived_at for job in self._jobs))
        with self._changed:
            while not self._closed:
                until = gather_until(ready_since, self._expected.returns(ready_since), self._last_step_seconds)
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _step(self) -> None:
        """One forward pass over what the scheduler chooses of all jobs."""
        jobs = list(self._jobs)
        choice = plan_step([self._jobs[job].remaining for job in jobs], self.chunk_tokens)
        takes = _by_job(choice.takes)
        shares = [self._jobs[jobs[index]].share(rows) for index, rows in takes.items()]
        began_at, began = time.time(), time.monotonic()
        waits = [0.0]
        for index in takes:
            if jobs[index].started_at is None:
                jobs[index].started_at = began_at
                waits.append(began - jobs[index].arrived_at)
        outputs = compute_shares(self.stage, shares)
        self._last_step_ended = time.monotonic()
        self._last_step_seconds = self._last_step_ended - began
        over: dict[_Job, _Answer] = {}
        for (index, rows), output in zip(takes.items(), outputs, strict=True):
            job = jobs[index]
            answer = self._store(job, rows, output)
            if answer is not None:
                over[job] = answer
        with self._changed:
            for job in over:
                self._expected.answered(job.kv, self._last_step_ended)
        _deliver(over.values())
        self._jobs = {jobs[index]: self._jobs[jobs[index]] for index in choice.order if jobs[index] not in over}
        if self.observer is not None and not any(isinstance(output, Exception) for output in outputs):
            self.observer(_record(shares, self._last_step_seconds, max(waits)))

    def _store(self, job: _Job, rows: Sequence[tuple[int, int]], output: torch.Tensor | SwarmError) -> _Answer | None:
        """Keep what a pass gave for a job; the answer if it is over."""
        progress = self._jobs[job]
        if isinstance(output, Exception):
            progress.abandon()
            return _Answer(job.future, error=output)
        progress.store(rows, output)
        if any(progress.remaining):
            return None
        assert job.started_at is not None
        try:
            return _Answer(job.future, StepOutput(progress.finish(), job.started_at, time.time()))
        except Exception as error:
            return _Answer(job.future, error=error_of(error))

    def _leave_time_to_the_owner(self) -> None:
        seconds = self.pause() if self.pause is not None else 0.0
        if seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, seconds)


def _by_job(takes: Iterable[Take]) -> dict[int, list[tuple[int, int]]]:
    """Job -> (row, tokens) of its rows."""
    by_job: dict[int, list[tuple[int, int]]] = {}
    for take in takes:
        by_job.setdefault(take.job, []).append((take.row, take.count))
    return by_job


def _record(shares: Sequence[Share], seconds: float, longest_wait_seconds: float) -> StepRecord:
    rows = [row for share in shares for row in share.rows]
    decode_rows = sum(row.count == 1 for row in rows)
    tokens = sum(row.count for row in rows)
    return StepRecord(
        sessions=len(shares),
        rows=len(rows),
        decode_rows=decode_rows,
        prefill_tokens=tokens - decode_rows,
        context_tokens=sum(row.start + row.count for row in rows),
        blocks=sum(len(share.hidden) * len(share.blocks) for share in shares) / tokens,
        seconds=seconds,
        longest_wait_seconds=longest_wait_seconds,
    )


def _deliver(answers: Iterable[_Answer]) -> None:
    """Wake each loop once for all of its answers."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer.future.get_loop(), []).append(answer)
    for loop, part in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, part)


def _settle(answers: Sequence[_Answer]) -> None:
    for answer in answers:
        if answer.future.done():
            continue
        if answer.error is not None:
            answer.future.set_exception(answer.error)
        else:
            answer.future.set_result(answer.value)
