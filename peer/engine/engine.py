"""The thread that computes: sessions' caches live here, and every step is shared by all sessions that are ready.

The loop hands steps over with `Engine.step`, other work with `Engine.submit`, and never touches a tensor; what crosses
are bytes in wire format.  The thread goes through turns: work that was submitted, then one forward pass over the tokens
that `scheduler.plan_step` chooses from all steps that are there.  A step that arrives while one is computed is part of
the next.  Between turns nothing is under way, so sessions end, are exported and move without locks, and the stage is
replaced (`Engine.swap`): sessions keep the blocks that they opened on and batch with later ones where these are the
same.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from ...proto.errors import PeerUnavailable, RetryElsewhere, SwarmError
from ...proto.wire.prefixes import Digests
from ...proto.wire.steps import StepPlan
from ...proto.wire.tensors import WireFormat
from ...routing.swarm import BlockRange, PeerId
from .batch import compute_shares, error_of
from .blocks.stage import Stage
from .cache.memory import SessionMemory
from .cache.pool import KvPool
from .cache.session import SessionKv, StepOutput, StepProgress
from .guess_time import EngineStep, GuessTime
from .jobs import (
    EngineWork,
    Outcome,
    StepJob,
    answer_of,
    deliver,
    record_of_step,
    run_work,
    takes_by_job,
    text_and_guesses,
)
from .scheduler import MOST_DEFERRALS, EnginePolicy, ExpectedSessions, StepTiming, gather_until, plan_step
from .step_record import StepListener

__all__ = ["Engine", "EnginePolicy", "SessionKv", "StepOutput"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_NOBODY = PeerId("")


class Engine:
    """One stage and the one thread that computes with it."""

    def __init__(
        self,
        stage: Stage,
        pool: KvPool,
        policy: EnginePolicy = EnginePolicy(),  # noqa: B008  # a value
        listeners: Sequence[StepListener] = (),
        timing: StepTiming = StepTiming(),  # noqa: B008  # a value
    ) -> None:
        """`pool` is the memory of the sessions; `listeners` hear of every step, in the engine's thread."""
        self.pool = pool
        self._stage = stage
        self._policy = policy
        self._listeners = tuple(listeners)
        self._timing = timing
        # A task of this executor runs while there is something to do: an engine that is forgotten holds no thread up.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._changed = threading.Condition()
        # Shared by the loop and the engine's thread, under the condition's lock:
        self._running = False
        self._closed = False
        self._inbox: list[StepJob | EngineWork] = []
        self._expected = ExpectedSessions(timing.turnaround_seconds)
        # The loop's own:
        self._latest: WeakKeyDictionary[SessionKv, asyncio.Future[StepOutput]] = WeakKeyDictionary()
        # The engine's thread's own:
        self._jobs: dict[StepJob, StepProgress] = {}
        """Steps that have begun, in the order of `scheduler.StepChoice`."""
        self._guess_time = GuessTime()
        self._last_step_seconds = 0.0
        self._last_step_ended = 0.0
        self._free_since = 0.0
        """When it was last done with a step, or with waiting for sessions to share one."""

    @property
    def stage(self) -> Stage:
        """The stage that is hosted now."""
        return self._stage

    @property
    def blocks(self) -> BlockRange:
        """The blocks that are hosted now."""
        return self._stage.blocks

    @property
    def policy(self) -> EnginePolicy:
        return self._policy

    def adopt_policy(self, policy: EnginePolicy) -> None:
        """Divide the time by `policy` from the next step on; from any thread."""
        self._policy = policy

    def wire_format(self, name: str) -> WireFormat:
        """The wire format of that name for this model. Raises UsageError if there is none."""
        return WireFormat.named(name, self._stage.hidden_size)

    def open(
        self,
        blocks: BlockRange,
        wire_format: WireFormat,
        kv_tokens: int,
        max_rows: int,
        client: PeerId = _NOBODY,
        prefixes: Sequence[Digests] = (),
    ) -> SessionKv:
        """The rows of a new session, which may begin with pages that are held of the client's `prefixes`.

        The session stays on the modules of these blocks whatever is hosted later, until `release`. Raises UsageError
        for blocks that are not hosted now.
        """
        stage = self._stage
        view = stage.view(blocks)  # refuses other blocks before anything is pinned
        nbytes = kv_tokens * len(blocks) * stage.kv_bytes_per_token
        memory = SessionMemory(self.pool, client, blocks, nbytes, prefixes)
        return SessionKv(view, wire_format, kv_tokens, max_rows, memory)

    # On the loop.

    async def step(
        self, kv: SessionKv, plan: StepPlan, data: bytes, input_format: WireFormat | None = None
    ) -> StepOutput:
        """Compute a step together with those of other sessions; one step of a session at a time.

        `input_format` is that of `data`; None: that of the outputs.

        Raises as `SessionKv.step` does, and PeerUnavailable when the engine is closed. The rows have the lengths that
        the step began with after an error. A cancelled step is undone unless it is complete already; whatever is asked
        for after the cancellation comes after that.
        """
        latest = self._latest.get(kv)
        if latest is not None and not latest.done():
            raise RuntimeError("a session has one step at a time in the engine")
        future: asyncio.Future[StepOutput] = asyncio.get_running_loop().create_future()
        self._put(StepJob(kv, plan, data, input_format or kv.wire_format, future, time.monotonic()))
        self._latest[kv] = future
        return await future

    async def submit(self, work: Callable[[], _T]) -> _T:
        """Run `work` in the engine's thread, between two steps, after what was submitted before.

        A step of the same session must be over or cancelled. Raises the errors of `work`, and PeerUnavailable when the
        engine is closed.
        """
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._put(EngineWork(work, future))
        return await future

    async def release(self, kv: SessionKv) -> None:
        """End a session: free its rows and give its reservation back, after what was submitted before.

        A step of the session must be over or cancelled. The memory is freed in any case: also if the caller is
        cancelled, and also by an engine that closes or is closed.
        """
        work = EngineWork(kv.close, asyncio.get_running_loop().create_future(), unconditional=True)
        if self._put_or_refuse(work):
            await work.future
        else:
            kv.close()  # there is no thread any more that could touch it

    async def swap(self, stage: Stage, pool_capacity_bytes: int | None = None) -> None:
        """Host `stage` in place of the present one, and resize the pool, between two steps.

        The stage has the modules of the present one for the blocks that stay (`Stage.joined`). Sessions that are open
        keep their blocks, in memory and computing, until they are released. Raises ValueError for a stage of another
        model, dtype or device; nothing has changed then.
        """
        kept = self._stage
        if (stage.hidden_size, stage.dtype, stage.device) != (kept.hidden_size, kept.dtype, kept.device):
            raise ValueError("sessions could not be batched across these stages")

        def replace_stage() -> None:
            self._stage = stage
            if pool_capacity_bytes is not None:
                self.pool.resize(pool_capacity_bytes)

        await self.submit(replace_stage)

    def close(self) -> None:
        """Stop the thread when the forward pass that runs now is done; what waits fails with PeerUnavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._executor.shutdown(wait=True)

    def _put(self, item: StepJob | EngineWork) -> None:
        if not self._put_or_refuse(item):
            raise PeerUnavailable("the peer is shutting down")

    def _put_or_refuse(self, item: StepJob | EngineWork) -> bool:
        """Hand something over; False if the engine is closed, to which only unconditional work may still come."""
        with self._changed:
            if self._closed and not (item.unconditional and self._running):
                return False
            self._inbox.append(item)
            if isinstance(item, StepJob):
                self._expected.arrived(item.kv, item.arrived_at)
            if self._running:
                self._changed.notify()
            else:
                self._running = True
                self._executor.submit(self._run)
        return True

    # In the engine's thread.

    def _run(self) -> None:
        """Take turns until there is nothing to do."""
        failed = False
        while True:
            try:
                if failed:
                    self._drop_steps(RetryElsewhere("the peer's engine failed"))
                    failed = False
                if not self._take_turn():
                    return
            except BaseException:
                # A defect: nobody may wait for ever, and sessions that come later are served.
                logger.exception("the engine failed; all steps that were under way are lost")
                failed = True

    def _take_turn(self) -> bool:
        """Whether there may be more to do."""
        self._accept()
        if self._jobs:
            self._gather()
            self._accept()
        if self._jobs and not self._closed:
            self._step()
            self._leave_time_to_the_owner()
        if self._closed:
            self._drop_steps(PeerUnavailable("the peer is shutting down"))
            for item in self._take_inbox():
                assert isinstance(item, EngineWork), "a step is refused once the engine is closed"
                run_work(item)
        with self._changed:
            self._running = bool(self._jobs or self._inbox)
            return self._running

    def _accept(self) -> None:
        """Begin the steps and do the other work that arrived, in order."""
        if self._closed:
            return
        items = self._take_inbox()
        # After the inbox was taken: what a session sends after it cancelled a step finds the step gone.
        self._drop_cancelled()
        for item in items:
            if isinstance(item, EngineWork):
                run_work(item)
            elif not item.future.cancelled():
                begun = answer_of(item.future, functools.partial(self._begin, item), error_of)
                if begun.error is not None or begun.value is not None:
                    deliver([begun])

    def _begin(self, job: StepJob) -> StepOutput | None:
        """The output of a step that is over at once."""
        now = time.time()
        progress = job.kv.begin(job.plan, job.data, job.input_format)
        if progress.remaining:
            self._jobs[job] = progress
            return None
        return StepOutput(progress.finish(), now, now)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.future.cancelled()]:
            self._jobs.pop(job).abandon()

    def _drop_steps(self, error: Exception) -> None:
        """Fail what is under way and what waits; only unconditional work is left, in the inbox."""
        with self._changed:
            waiting = [item for item in self._inbox if not item.unconditional]
            self._inbox = [item for item in self._inbox if item.unconditional]
        deliver([Outcome(item.future, error=error) for item in waiting])
        while self._jobs:
            job, progress = self._jobs.popitem()
            deliver([Outcome(job.future, error=error)])
            progress.abandon()

    def _take_inbox(self) -> list[StepJob | EngineWork]:
        with self._changed:
            items, self._inbox = self._inbox, []
            return items

    def _gather(self) -> None:
        """Wait a moment for sessions that should be back very soon, see `scheduler.gather_until`."""
        ready_since = max(self._last_step_ended, min(job.arrived_at for job in self._jobs))
        with self._changed:
            while not self._closed:
                expected = self._expected.returns(ready_since)
                until = gather_until(ready_since, expected, self._last_step_seconds, self._timing.gather_seconds)
                left = until - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)
                self._free_since = time.monotonic()

    def _step(self) -> None:
        """One forward pass over the tokens that the scheduler chooses."""
        jobs = list(self._jobs)
        left = [self._jobs[job].remaining for job in jobs]
        guesses = {index: job.guesses_left(left[index]) for index, job in enumerate(jobs) if job.plan.guessed}
        deferrable = {index: count for index, count in guesses.items() if jobs[index].deferred < MOST_DEFERRALS}
        choice = plan_step(left, self._policy.chunk_tokens, deferrable)
        takes = takes_by_job(choice.takes)
        uses = [
            (jobs[index].kv, *text_and_guesses(left[index], rows, guesses.get(index, 0)))
            for index, rows in takes.items()
        ]
        for index in deferrable:
            jobs[index].deferred += 1
        shares = [self._jobs[jobs[index]].share(rows) for index, rows in takes.items()]
        began_at, began = time.time(), time.monotonic()
        waits = [0.0]
        for index in takes:
            if jobs[index].started_at is None:
                jobs[index].started_at = began_at
                jobs[index].queue_seconds = max(0.0, self._free_since - jobs[index].arrived_at)
                waits.append(began - jobs[index].arrived_at)
        outputs = compute_shares(shares)
        self._last_step_ended = self._free_since = time.monotonic()
        self._last_step_seconds = self._last_step_ended - began
        self._note_use(uses, began)
        over: dict[StepJob, Outcome] = {}
        for (index, rows), output in zip(takes.items(), outputs, strict=True):
            job = jobs[index]
            answer = self._store(job, rows, output)
            if answer is not None:
                over[job] = answer
        with self._changed:
            for job in over:
                self._expected.answered(job.kv, self._last_step_ended)
        deliver(over.values())
        self._jobs = {jobs[index]: self._jobs[jobs[index]] for index in choice.order if jobs[index] not in over}
        if self._listeners and not any(isinstance(output, Exception) for output in outputs):
            record = record_of_step(shares, self._last_step_seconds, max(waits))
            for listener in self._listeners:
                listener(record)

    def _note_use(self, uses: Sequence[tuple[SessionKv, int, int]], began: float) -> None:
        """Tell who the last step, which `began` then, was for: sessions, with tokens of their texts and guesses."""
        guesses = {kv: guessed for kv, _, guessed in uses if guessed}
        waiting: dict[SessionKv, float] = {}
        if guesses:
            with self._changed:
                waiting = {job.kv: job.arrived_at for job in self._inbox if isinstance(job, StepJob) and job.has_text}
        texts = [kv for kv, text, _ in uses if text]
        tokens = sum(text + guessed for _, text, guessed in uses)
        self._guess_time.note(EngineStep(texts, guesses, tokens, began, self._last_step_ended, waiting))

    def _store(
        self, job: StepJob, rows: Sequence[tuple[int, int]], output: torch.Tensor | SwarmError
    ) -> Outcome | None:
        """Keep the output of a pass for a job; the job's answer if that was the last part of it."""
        progress = self._jobs[job]
        if isinstance(output, Exception):
            progress.abandon()
            return Outcome(job.future, error=output)
        progress.store(rows, output)
        if any(progress.remaining):
            return None
        started_at = job.started_at
        assert started_at is not None
        waited, crowded = job.queue_seconds, self._guess_time.is_lacking(job.kv, self._last_step_ended)
        return answer_of(
            job.future, lambda: StepOutput(progress.finish(), started_at, time.time(), waited, crowded), error_of
        )

    def _leave_time_to_the_owner(self) -> None:
        seconds = self._policy.pause()
        if seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, seconds)
            self._free_since = time.monotonic()
