"""Runs the steps of one session in order: compute, keep for replay, pass on.

Frames come from two sides (the client's stream and the predecessor's push stream) into one bounded inbox.  The worker
writes to the client through an `Outlet`, so that it can be driven without a network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ....proto.errors import DeadlineExceeded, PushFailed, RemoteProtocolError
from ....proto.wire.frames import CREDITS, HopTiming, Rebuild, WireStep, replay_steps
from ....proto.wire.handshake import Grant
from ....proto.wire.messages.session import KvExportFrame
from ....proto.wire.messages.steps import ReplayFrame
from ....proto.wire.prefixes import PAGE_TOKENS, Digests
from ....proto.wire.steps import StepPlan, answers_in
from ...engine.cache.part import CachePart
from ..transfer import KvImport
from .gate import Arrivals, Compute, Repeat, StepGate
from .seams import SessionParts, SuccessorLink

_INBOX_SIZE = 2 * CREDITS


@dataclass(frozen=True, slots=True)
class _Arrival:
    step: WireStep
    input_format: str
    received_at: float
    """Unix seconds."""
    arrived_at: float
    """In the loop's time."""
    deadline: float


class _Computed(NamedTuple):
    output: WireStep
    seconds: float
    """Computing and, before that, waiting for the steps of other sessions."""


@dataclass(frozen=True, slots=True)
class _Reroute:
    grant: Grant
    link: SuccessorLink | None


@dataclass(frozen=True, slots=True)
class _Import:
    epoch: int
    kv: KvImport
    loaded: asyncio.Event


@dataclass(frozen=True, slots=True)
class _Export:
    request: KvExportFrame
    part: asyncio.Future[tuple[int, CachePart]]
    """Gets the number of the last applied step, and the part as it is after that step."""


@dataclass(frozen=True, slots=True)
class _Remember:
    prefixes: tuple[Digests, ...]
    kept: asyncio.Event


class SessionWorker:
    """One session on one peer."""

    def __init__(self, grant: Grant, link: SuccessorLink | None, parts: SessionParts) -> None:
        """`link` leads to the successor; None sends outputs to the client, to pass on or as the answer."""
        self.grant = grant
        self._arrivals = Arrivals()
        self._link = link
        """The link in use, for the outputs of the step that is being worked on."""
        self._newest_link = link
        """The link of the latest reroute, which may still be in the inbox."""
        self._parts = parts
        # A client never has more tokens under way than it reserved, nor more that it has not acknowledged yet.
        self._gate = StepGate(grant.epoch, CREDITS, max_tokens=2 * grant.kv_tokens)
        self._tokens_waiting = 0
        self._inbox: asyncio.Queue[_Arrival | _Reroute | ReplayFrame | _Export | _Import | _Remember] = asyncio.Queue(
            _INBOX_SIZE
        )
        self._exports: asyncio.Queue[KvExportFrame] = asyncio.Queue(1)
        self._declared = parts.prefixes
        self._latest_epoch = grant.epoch
        if grant.successor is not None:
            parts.replay.begin(grant.key, grant.client, parts.token_bytes)

    @property
    def at_work(self) -> bool:
        """Whether a step is being computed or waits for that."""
        return self._tokens_waiting > 0

    @property
    def received_seq(self) -> int:
        """All steps up to this one have arrived."""
        return self._arrivals.until(self.applied_seq)

    @property
    def applied_seq(self) -> int:
        return self._gate.applied_seq

    @property
    def epoch(self) -> int:
        return self._latest_epoch

    # Input. The inbox makes these wait while it is full.

    async def put_step(self, step: WireStep) -> None:
        """Take a step from the client or the predecessor."""
        if step.epoch != self._latest_epoch:
            return
        self._arrivals.note(step.seq)
        arrived_at = asyncio.get_running_loop().time()
        if self._tokens_waiting + step.plan.tokens > 2 * self.grant.kv_tokens:
            raise RemoteProtocolError(f"more tokens are under way than the {self.grant.kv_tokens} that are reserved")
        self._tokens_waiting += step.plan.tokens
        try:
            received_at, deadline = self._parts.clock(), arrived_at + step.timeout_seconds
            await self._inbox.put(_Arrival(step, self.grant.input_format, received_at, arrived_at, deadline))
        except BaseException:  # the stream that it came on has ended
            self._tokens_waiting -= step.plan.tokens
            raise

    async def put_reroute(
        self, grant: Grant, relay: bool, make_link: Callable[[], SuccessorLink | None], forget_prefixes: bool = False
    ) -> None:
        """Take new neighbours; with `relay`, outputs go through the client, even if there is a link already.

        Steps of older epochs are dropped from now on. With `forget_prefixes`, none of the prefixes that were declared
        at the opening are kept. Raises RemoteProtocolError.
        """
        if grant.epoch <= self._latest_epoch:
            raise RemoteProtocolError(f"epoch {grant.epoch} is not newer than {self._latest_epoch}")
        self._latest_epoch = grant.epoch
        self._arrivals = Arrivals()
        if forget_prefixes:
            self._declared = ()
        old = self._newest_link
        keep = not relay and old is not None and old.usable and grant.successor == self.grant.successor
        self.grant = grant
        if not keep:
            self._newest_link = None
            if old is not None:
                await old.close()
            self._newest_link = make_link()
        await self._inbox.put(_Reroute(grant, self._newest_link))

    async def put_replay(self, replay: ReplayFrame) -> None:
        """Take the client's request to send the replay buffer to the successor."""
        await self._inbox.put(replay)

    async def put_export(self, export: KvExportFrame) -> None:
        """Take the client's request for a part of the attention cache; steps go on while it waits for its turn."""
        await self._exports.put(export)

    async def put_import(self, kv: KvImport) -> None:
        """Take a part of an attention cache; returns when it is loaded."""
        item = _Import(self._latest_epoch, kv, asyncio.Event())
        await self._inbox.put(item)
        await item.loaded.wait()

    async def put_remember(self, prefixes: tuple[Digests, ...]) -> None:
        """Take the client's request to keep the beginnings of its rows; returns when they are kept."""
        item = _Remember(prefixes, asyncio.Event())
        await self._inbox.put(item)
        await item.kept.wait()

    # Work on the inbox, one item after the other.

    async def run(self) -> None:
        """Work until cancelled. Raises SwarmError when the session cannot go on."""
        while True:
            item = await self._inbox.get()
            if isinstance(item, _Arrival):
                await self._on_step(item)
                self._tokens_waiting -= item.step.plan.tokens
            elif isinstance(item, _Reroute):
                await self._on_reroute(item)
            elif isinstance(item, ReplayFrame):
                await self._on_replay(item)
            elif isinstance(item, _Export):
                await self._on_export(item)
            elif isinstance(item, _Import):
                await self._on_import(item)
            else:
                await self._on_remember(item)

    async def close(self) -> None:
        """Give everything back. This closes the last open link: each new link has closed the one before it."""
        self._parts.replay.end(self.grant.key)
        if self._newest_link is not None:
            await self._newest_link.close()

    async def _on_step(self, arrival: _Arrival) -> None:
        if arrival.step.epoch != self._latest_epoch:
            return
        if arrival.step.rebuild is not None:
            await self._rebuild(arrival, arrival.step.rebuild)
            return
        next_step: WireStep | None = arrival.step
        while next_step is not None:
            verdict = self._gate.offer(next_step)
            if isinstance(verdict, Compute):
                computed = await self._compute(replace(arrival, step=next_step), verdict.skip_permutation)
                if computed is None:
                    return
                self._gate.applied(computed.output)
                await self._emit(computed.output, arrival.deadline)
                if next_step is arrival.step:  # the others waited here for an earlier step
                    self._note_visit(arrival, computed)
                await self._keep_declared(computed.output.plan)
            elif isinstance(verdict, Repeat):
                await self._emit(replace(verdict.output, epoch=next_step.epoch), arrival.deadline)
            next_step = self._gate.ready()

    async def _compute(self, arrival: _Arrival, skip_permutation: bool) -> _Computed | None:
        step = arrival.step
        if asyncio.get_running_loop().time() > arrival.deadline:
            await self._parts.outlet.failure(DeadlineExceeded("the step came too late"), step.epoch, step.seq)
            return None
        plan = replace(step.plan, source_rows=None, adopted=()) if skip_permutation else step.plan
        if any(plan.adopted):
            # No peer computed those tokens in this session, so only the client can replay them.
            self._parts.replay.end(self.grant.key)
        if self._link is not None:
            self._link.prepare()
        output = await self._parts.compute.step(plan, step.data, arrival.input_format)
        self._parts.counters.prefix_hit_tokens += sum(plan.adopted)
        self._parts.counters.guessed_tokens += plan.guessed
        self._parts.counters.crowded_steps += output.crowded
        timing = HopTiming(self.grant.peer, arrival.received_at, output.started_at, output.finished_at, output.crowded)
        if self.grant.successor is not None:
            self._parts.replay.append(self.grant.key, plan, output.data, output.lost_guesses)
            data = output.data
        else:
            data = answers_in(step.plan, output.data, self._parts.token_bytes)
        seconds = output.queue_seconds + output.finished_at - output.started_at
        return _Computed(replace(step, data=data, timings=(*step.timings, timing)), seconds)

    def _note_visit(self, arrival: _Arrival, computed: _Computed) -> None:
        if all(piece.count == 1 for piece in arrival.step.plan.rows):
            here = asyncio.get_running_loop().time() - arrival.arrived_at
            self._parts.on_visit(max(0.0, here - computed.seconds))

    async def _rebuild(self, arrival: _Arrival, rebuild: Rebuild) -> None:
        step, parts = arrival.step, self._parts
        if rebuild.first:
            self._declared = ()
            await parts.compute.reset()
            if self.grant.successor is not None:
                parts.replay.begin(self.grant.key, self.grant.client, parts.token_bytes)
        output = await parts.compute.step(step.plan, step.data, arrival.input_format)
        parts.counters.rebuilt_tokens += step.plan.tokens
        if self.grant.successor is not None:
            parts.replay.append(self.grant.key, step.plan, output.data, output.lost_guesses)
        if rebuild.last:
            self._gate.rebuilt(rebuild.next_seq, rebuild.permuted)
        if rebuild.last_peer != self.grant.peer:
            await self._emit(replace(step, data=output.data), arrival.deadline)
        elif rebuild.last:
            await parts.outlet.rebuilt(step.epoch, sum(parts.lengths()))

    async def _on_reroute(self, item: _Reroute) -> None:
        self._link = item.link
        if item.grant.epoch != self._latest_epoch:
            return
        self._gate.reroute(item.grant.epoch)
        buffer = self._parts.replay.get(item.grant.key)
        complete = buffer is not None and buffer.lengths == self._parts.lengths()
        await self._parts.outlet.rerouted(item.grant.epoch, self._gate.applied_seq, complete)

    async def _on_replay(self, item: ReplayFrame) -> None:
        if item.epoch != self._latest_epoch:
            return
        buffer = self._parts.replay.get(self.grant.key)
        have = buffer.lengths if buffer is not None else ()
        if buffer is None or not buffer.holds(item.lengths):
            raise RemoteProtocolError(f"the replay buffer has rows of {list(have)} tokens, not {list(item.lengths)}")
        deadline = asyncio.get_running_loop().time() + item.timeout_seconds
        for step in replay_steps(buffer, item.epoch, item.lengths, item.rebuild, item.timeout_seconds):
            if item.epoch != self._latest_epoch:
                return
            await self._emit(step, deadline)

    async def send_parts(self) -> None:
        """Send the parts of the cache that the client asks for, each as it is between two steps.

        Runs beside `run`, until cancelled. Raises SwarmError when the session cannot go on.
        """
        parts = self._parts
        while True:
            request = await self._exports.get()
            async with parts.take_turn(request.timeout_seconds) as turn:
                item = _Export(request, asyncio.get_running_loop().create_future())
                await self._inbox.put(item)
                applied_seq, part = await item.part
                turn.begins()
                await parts.outlet.kv_state(request.round, applied_seq, part, turn.moved)

    async def _on_export(self, item: _Export) -> None:
        if not item.part.done():
            part = await self._parts.compute.export(item.request.starts, item.request.max_tokens)
            if not item.part.done():
                item.part.set_result((self._gate.applied_seq, part))

    async def _on_import(self, item: _Import) -> None:
        """Go on from another peer's cache, without a replay buffer: what that peer sent on is not known here."""
        kv = item.kv
        if item.epoch == self._latest_epoch:
            self._declared = ()
            await self._parts.compute.import_(kv.part)
            self._parts.replay.end(self.grant.key)
            self._gate.rebuilt(kv.applied_seq + 1, permuted=False)
            await self._parts.outlet.rebuilt(item.epoch, sum(kv.part.lengths))
        item.loaded.set()

    async def _keep_declared(self, plan: StepPlan) -> None:
        """Keep the prefixes that the client has declared, once all are computed; not if the rows were permuted."""
        if not self._declared:
            return
        lengths = self._parts.lengths()
        if plan.source_rows is not None:
            self._declared = ()
        elif _reach(lengths, self._declared):
            prefixes, self._declared = self._declared, ()
            await self._parts.compute.keep(prefixes)

    async def _on_remember(self, item: _Remember) -> None:
        lengths = self._parts.lengths()
        if not _reach(lengths, item.prefixes):
            raise RemoteProtocolError(f"rows of {list(lengths)} tokens have not all pages that are to be remembered")
        await self._parts.compute.keep(item.prefixes)
        item.kept.set()

    async def _emit(self, output: WireStep, deadline: float) -> None:
        """Pass an output on: to the successor, or through the client, or as the answer."""
        if output.epoch != self._latest_epoch:
            return
        output = replace(output, timeout_seconds=max(0.001, deadline - asyncio.get_running_loop().time()))
        counters = self._parts.counters
        if self.grant.successor is None:
            await self._parts.outlet.step(output)
            counters.steps_answered += 1
        elif self._link is None:
            await self._parts.outlet.step(output)
            counters.steps_relayed += 1
        else:
            try:
                await self._link.send(output)
                counters.steps_pushed += 1
            except PushFailed as error:
                if output.epoch == self._latest_epoch:
                    await self._parts.outlet.failure(error, output.epoch, output.seq)


def _reach(lengths: tuple[int, ...], prefixes: tuple[Digests, ...]) -> bool:
    """Whether every row is as long as its prefix."""
    return len(prefixes) <= len(lengths) and all(
        len(digests) * PAGE_TOKENS <= length for digests, length in zip(prefixes, lengths, strict=False)
    )
