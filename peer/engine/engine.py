"""The thread that computes: it owns the sessions' caches, and every step is shared by all sessions that are ready.

The event loop hands over steps with `Engine.step` and other work with `Engine.submit`, and never touches a tensor: only
bytes in wire format cross.  The thread works in turns: first the submitted work, then one forward pass over the tokens
that `scheduler.plan_step` chooses from all steps that have arrived.  A step that arrives during a pass joins a later
one.  Nothing is under way between turns, so that sessions end, move and are exported, and the stage is replaced
(`Engine.swap`), without locks.  Sessions keep the blocks that they opened on, and batch with later sessions on the
blocks that both share.
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
from .batch import Compute, compute_shares, error_of
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
        compute: Compute = compute_shares,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pool` is the sessions' memory; `listeners` are called in the engine's thread after steps.

        `compute` runs one forward pass. `clock` times the steps; it may run ahead of the real time, never behind it.
        """
        self.pool = pool
        self._stage = stage
        self._policy = policy
        self._listeners = tuple(listeners)
        self._timing = timing
        self._compute = compute
        self._clock = clock
        # `_run` occupies the executor only while there is work, so an engine that is forgotten keeps no thread alive.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._changed = threading.Condition()
        # Shared by the loop and the engine's thread, under the condition's lock:
        self._running = False
        self._closed = False
        self._inbox: list[StepJob | EngineWork] = []
        self._expected = ExpectedSessions(timing.turnaround_seconds)
        # Used on the loop only:
        self._latest: WeakKeyDictionary[SessionKv, asyncio.Future[StepOutput]] = WeakKeyDictionary()
        # Used in the engine's thread only:
        self._jobs: dict[StepJob, StepProgress] = {}
        """Steps that have begun, in the order of `scheduler.StepChoice`."""
        self._guess_time = GuessTime()
        self._last_step_seconds = 0.0
        self._last_step_ended = 0.0
        self._free_since = 0.0
        """When the last step ended, or the last wait for sessions to share one; monotonic seconds."""

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
        """Use `policy` from the next step on; may be called from any thread."""
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
        """Open a session. Its rows may begin with pages of the client's `prefixes` that the peer still holds.

        The session keeps the modules of these blocks until `release`, whatever is hosted later. Raises UsageError for
        blocks that are not hosted now.
        """
        stage = self._stage
        view = stage.view(blocks)  # raises for other blocks before any page is pinned
        nbytes = kv_tokens * len(blocks) * stage.kv_bytes_per_token
        memory = SessionMemory(self.pool, client, blocks, nbytes, prefixes)
        return SessionKv(view, wire_format, kv_tokens, max_rows, memory)

    # On the loop.

    async def step(
        self, kv: SessionKv, plan: StepPlan, data: bytes, input_format: WireFormat | None = None
    ) -> StepOutput:
        """Compute a step together with those of other sessions; one step of a session at a time.

        `input_format` is the format of `data`; None: that of the outputs.

        Raises as `SessionKv.step` does, and PeerUnavailable when the engine is closed. After an error the rows have the
        lengths that they had before the step. A cancelled step is undone unless it is complete already; whatever is
        submitted after the cancellation runs after that.
        """
        latest = self._latest.get(kv)
        if latest is not None and not latest.done():
            raise RuntimeError("a session has one step at a time in the engine")
        future: asyncio.Future[StepOutput] = asyncio.get_running_loop().create_future()
        self._put(StepJob(kv, plan, data, input_format or kv.wire_format, future, self._clock()))
        self._latest[kv] = future
        return await future

    async def submit(self, work: Callable[[], _T]) -> _T:
        """Run `work` in the engine's thread, between two steps, after all that was submitted before.

        A step of the same session must be over or cancelled. Raises the errors of `work`, and PeerUnavailable when the
        engine is closed.
        """
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._put(EngineWork(work, future))
        return await future

    async def release(self, kv: SessionKv) -> None:
        """End a session: free its rows and return its reservation, after all that was submitted before.

        A step of the session must be over or cancelled. The memory is freed in any case, even if the caller is
        cancelled, or the engine closes or is closed.
        """
        work = EngineWork(kv.close, asyncio.get_running_loop().create_future(), unconditional=True)
        if self._put_or_refuse(work):
            await work.future
        else:
            kv.close()  # the thread has ended: nothing else can touch the session

    async def swap(self, stage: Stage, pool_capacity_bytes: int | None = None) -> None:
        """Resize the pool, between two steps, and then host `stage` in place of the present one.

        `stage` shares the modules of the blocks that stay with the present one (`Stage.joined`). Open sessions keep
        their blocks, in memory and computing, until they are released. Raises ValueError, and changes nothing, for a
        stage of another hidden size, dtype or device.

        The loop sees the new stage no earlier than the caller goes on. The caller must not be cancelled meanwhile.
        """
        kept = self._stage
        if (stage.hidden_size, stage.dtype, stage.device) != (kept.hidden_size, kept.dtype, kept.device):
            raise ValueError("sessions could not be batched across these stages")

        if pool_capacity_bytes is not None:
            await self.submit(functools.partial(self.pool.resize, pool_capacity_bytes))
        self._stage = stage

    def close(self) -> None:
        """End the thread after the current forward pass, and wait for it; what waits fails with PeerUnavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._executor.shutdown(wait=True)

    def _put(self, item: StepJob | EngineWork) -> None:
        if not self._put_or_refuse(item):
            raise PeerUnavailable("the peer is shutting down")

    def _put_or_refuse(self, item: StepJob | EngineWork) -> bool:
        """Hand over an item; False if it is refused: once closed, a running engine takes only unconditional work."""
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
        """Take turns until there is nothing left to do."""
        failed = False
        while True:
            try:
                if failed:
                    self._drop_steps(RetryElsewhere("the peer's engine failed"))
                    failed = False
                if not self._take_turn():
                    return
            except BaseException:
                # A defect. Fail the steps, so that nobody waits for ever, and go on serving later sessions.
                logger.exception("the engine failed; all steps that were under way are lost")
                failed = True

    def _take_turn(self) -> bool:
        """Take one turn; return whether there may be more to do."""
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
        """Begin the steps and run the other work that arrived, in order."""
        if self._closed:
            return
        items = self._take_inbox()
        # After the inbox was taken: what a session submits after it cancelled a step must find the step undone.
        self._drop_cancelled()
        for item in items:
            if isinstance(item, EngineWork):
                run_work(item)
            elif not item.future.cancelled():
                begun = answer_of(item.future, functools.partial(self._begin, item), error_of)
                if begun.error is not None or begun.value is not None:
                    deliver([begun])

    def _begin(self, job: StepJob) -> StepOutput | None:
        """Begin a step; return its output if it has nothing to compute."""
        now = time.time()
        progress = job.kv.begin(job.plan, job.data, job.input_format)
        if any(progress.remaining):
            self._jobs[job] = progress
            return None
        return StepOutput(progress.finish(), now, now, lost_guesses=progress.lost_guesses)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.future.cancelled()]:
            self._jobs.pop(job).abandon()

    def _drop_steps(self, error: Exception) -> None:
        """Fail all steps, and the waiting work; leave only unconditional work, in the inbox."""
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
        """Wait a moment for sessions whose next steps are due, see `scheduler.gather_until`."""
        ready_since = max(self._last_step_ended, min(job.arrived_at for job in self._jobs))
        with self._changed:
            while not self._closed:
                expected = self._expected.returns(ready_since)
                until = gather_until(ready_since, expected, self._last_step_seconds, self._timing.gather_seconds)
                left = until - self._clock()
                if left <= 0:
                    return
                self._changed.wait(left)
                self._free_since = self._clock()

    def _step(self) -> None:
        """Run one forward pass over the tokens that the scheduler chooses."""
        jobs = list(self._jobs)
        left = [self._jobs[job].remaining for job in jobs]
        guesses = {index: self._jobs[job].guesses_left for index, job in enumerate(jobs) if job.plan.guessed}
        deferrable = {index: count for index, count in guesses.items() if jobs[index].deferred < MOST_DEFERRALS}
        choice = plan_step(left, self._policy.chunk_tokens, deferrable)
        takes = takes_by_job(choice.takes)
        uses = [
            (jobs[index].kv, *text_and_guesses(left[index], rows, guesses.get(index, 0)))
            for index, rows in takes.items()
        ]
        for index in choice.deferred:
            jobs[index].deferred += 1
        shares = [self._jobs[jobs[index]].share(rows) for index, rows in takes.items()]
        began_at, began = time.time(), self._clock()
        waits = [0.0]
        for index in takes:
            if jobs[index].started_at is None:
                jobs[index].started_at = began_at
                jobs[index].queue_seconds = max(0.0, self._free_since - jobs[index].arrived_at)
                waits.append(began - jobs[index].arrived_at)
        outputs = self._compute(shares)
        self._last_step_ended = self._free_since = self._clock()
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
        computed = [share for share, output in zip(shares, outputs, strict=True) if not isinstance(output, Exception)]
        if self._listeners and computed:
            record = record_of_step(computed, len(shares) - len(computed), self._last_step_seconds, max(waits))
            for listener in self._listeners:
                listener(record)

    def _note_use(self, uses: Sequence[tuple[SessionKv, int, int]], began: float) -> None:
        """Note who used the last step, which began at `began`: (session, tokens of its text, guesses) of each."""
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
        """Store the output of a pass for a job; return the job's outcome if it is complete or has failed."""
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
            job.future,
            lambda: StepOutput(progress.finish(), started_at, time.time(), waited, crowded, progress.lost_guesses),
            error_of,
        )

    def _leave_time_to_the_owner(self) -> None:
        seconds = self._policy.pause()
        if seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, seconds)
            self._free_since = self._clock()
