"""A session: one request's chain of peers, its steps, and what happens when a peer fails.

`run` applies one operation (a step of any length) to the chain and returns the answers.  Whatever fails on the way is
repaired inside `run`: tokens already emitted never change, the caller only sees that it took longer.  After a repair
the operation's steps are sent again with the same numbers: hops that had applied them answer from what they kept, the
others compute.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from ...proto.errors import GiveUp, LocalProtocolError, NoChainError, PeerBusy, PeerUnavailable, SwarmError
from ...proto.wire.frames import WireStep
from ...proto.wire.handshake import SESSION_ID_BYTES
from ...proto.wire.prefixes import PAGE_TOKENS, Digests
from ...proto.wire.replay import ReplayBuffer
from ...proto.wire.steps import RowSlice, RowTable, StepPlan, split_plan
from ...routing.route.repair import Repair
from ...routing.swarm import BlockRange, PeerId, RequestSpec
from ..config import SessionConfig, SessionEvent
from ..report import ChainReport
from .handover import hand_over
from .hop import HopChoice, HopStream
from .operation import Operation, longest_wait_seconds, peers_of
from .prefixes import PageNames, named
from .rebuild import Rollback, rebuild
from .reserve import NotAdmitted
from .timing_log import TimingLog
from .wiring import Chain, ChainBroken

OPERATION_TOKENS = 2048
"""Longer prompts are several operations, so that what peers keep for repetition stays bounded."""
MAX_PREFIX_TOKENS = 1 << 20
"""Longest text whose pages are named to peers: the names of more would fill a quarter of a message."""
REPAIR_ATTEMPTS = 12
"""Fail the operation after this many repairs without a new answer."""


class ChainSession:
    """One session. Runs in one asyncio loop; one operation at a time."""

    def __init__(self, config: SessionConfig, kv_tokens: int, max_rows: int) -> None:
        """Reserves `kv_tokens` tokens, all rows together, and `max_rows` rows on every peer of its chain."""
        self._config = config
        self._chain = Chain(config, os.urandom(SESSION_ID_BYTES), kv_tokens, max_rows, self._on_answer)
        self._next_seq = 1
        self._table = RowTable()
        self._inputs = ReplayBuffer(config.token_bytes)
        self._pages: tuple[Digests, ...] = ()
        """The pages of the first operation's rows; peers keep them without being told."""
        self._operation: Operation | None = None
        self._request = RequestSpec(
            prompt_tokens=max(1, kv_tokens // (2 * max_rows)),
            new_tokens=max(1, kv_tokens // (2 * max_rows)),
            rows=max_rows,
            kv_tokens=kv_tokens,
        )
        self._slowness = 1.0
        """Observed over predicted time of a step."""
        self._next_handover_at = 0.0
        self._timings = TimingLog()
        self._last_used: tuple[HopStream, ...] = ()
        """The chain when the session was closed."""
        self._lock = asyncio.Lock()

    @property
    def chain(self) -> tuple[tuple[PeerId, BlockRange], ...]:
        """The peers in use now, and the blocks each computes."""
        return self._chain.layout

    @property
    def answered_steps(self) -> int:
        """The number of steps that were answered."""
        return self._timings.answered_steps

    def report(self, since: int = 0) -> ChainReport:
        """Where the time of the last steps went, per hop, without the first `since` answers; from any thread."""
        hops = self._last_used or tuple(self._chain.hops)  # read once: another thread may be changing the chain
        layout, formats = [(hop.peer, hop.blocks) for hop in hops], [hop.numeric_format for hop in hops]
        return self._timings.report(layout, self._config.router.clock_offset_seconds, formats, since)

    async def run(self, plan: StepPlan, data: bytes) -> bytes:
        """Apply one operation: `data` holds `plan.tokens` packed tokens; returns `plan.answers` packed tokens.

        The first one, and one that has to replace a peer, may wait for room (`SessionConfig.patience_seconds`); to
        cancel it leaves every queue at once. Raises NoChainError, PeerBusy with a time to come back if the swarm stays
        full, or another SwarmError that no repair can help; the session is of no more use then.
        """
        async with self._lock:
            if self._next_seq == 1 and self._config.page_names is not None:
                plan, data = await self._begin_with_held(self._config.page_names, plan, data)
            answers = []
            offset = 0
            for part in split_plan(plan, OPERATION_TOKENS):
                size = part.tokens * self._config.token_bytes
                answers.append(await self._run_operation(part, data[offset : offset + size]))
                offset += size
            return answers[0] if len(answers) == 1 else b"".join(answers)

    async def close(self) -> None:
        """End the session on every peer; their memory is free at once, but for what they are asked to remember."""
        self._last_used = self._last_used or tuple(self._chain.hops)
        if self._operation is None and self._config.page_names is not None:
            prefixes = await self._worth_remembering(self._config.page_names)
            if prefixes:
                await self._chain.remember(prefixes, self._config.timing.remember_seconds)
        await self._chain.close()

    # --- what peers hold from earlier sessions, and keep for later ones ---

    async def _begin_with_held(self, names: PageNames, plan: StepPlan, data: bytes) -> tuple[StepPlan, bytes]:
        """Open the chain, and leave out of the first operation what every peer holds of it already.

        That costs a round trip, so it is only done for rows of a page or more. Raises SwarmError.
        """
        if plan.source_rows is not None or not PAGE_TOKENS <= plan.tokens <= MAX_PREFIX_TOKENS:
            return plan, data
        ends = list(itertools.accumulate(piece.count * self._config.token_bytes for piece in plan.rows))
        rows = [memoryview(data)[start:end] for start, end in itertools.pairwise([0, *ends])]
        self._pages = self._chain.prefixes = await named(lambda: tuple(map(names.chain, rows)), len(data))
        if not any(self._pages):
            return plan, data
        await self._carry_out(Operation((), (), self._rollback(StepPlan(()))), self._until_opened)
        # Answers can only come from tokens that are computed.
        adopted = tuple(
            max(0, min(held, len(pages) * PAGE_TOKENS, piece.count - max(1, piece.answers)))
            for held, pages, piece in zip(self._chain.adoptable(), self._pages, plan.rows, strict=True)
        )
        self._chain.prefixes = ()
        if not any(adopted):
            return plan, data
        sizes = [tokens * self._config.token_bytes for tokens in adopted]
        begin = tuple(RowSlice(row, 0, tokens, 0) for row, tokens in enumerate(adopted))
        # A peer that fails is rebuilt from here: nobody else has the inputs of what was adopted.
        self._inputs.apply(StepPlan(begin), b"".join(row[:size] for row, size in zip(rows, sizes, strict=True)))
        rest = tuple(
            RowSlice(piece.row, tokens, piece.count - tokens, piece.answers)
            for piece, tokens in zip(plan.rows, adopted, strict=True)
        )
        self._config.on_event(SessionEvent("adopted", None, f"{sum(adopted)} of {plan.tokens} tokens"))
        return StepPlan(rest, adopted=adopted), b"".join(row[size:] for row, size in zip(rows, sizes, strict=True))

    async def _until_opened(self, operation: Operation) -> None:
        """Wait until every peer has said what it holds. Raises ChainBroken."""
        hops = self._chain.hops
        if not await self._chain.wait(lambda: all(hop.opened for hop in hops), self._config.timing.answer_seconds):
            for hop in hops:
                if not hop.opened:
                    hop.fail_silent()
            raise ChainBroken

    async def _worth_remembering(self, names: PageNames) -> tuple[Digests, ...]:
        """The pages of all rows, if there are more than those that peers have kept already."""
        lengths = self._table.lengths
        known = {pages[-1] for pages in self._pages if pages}
        if not self._chain.hops or sum(lengths) > MAX_PREFIX_TOKENS or max(lengths, default=0) < PAGE_TOKENS:
            return ()
        rows = [RowSlice(row, 0, length, 0) for row, length in enumerate(lengths)]
        nbytes = sum(lengths) * self._config.token_bytes
        pages = await named(lambda: tuple(names.chain(self._inputs.read([row])) for row in rows), nbytes)
        return pages if any(page[-1] not in known for page in pages if page) else ()

    # --- one operation ---

    async def _run_operation(self, plan: StepPlan, data: bytes) -> bytes:
        table = self._table.after(plan)
        operation = Operation.of(plan, data, self._config.token_bytes, self._rollback(plan))
        self._inputs.apply(plan, data)
        self._operation = operation
        await self._carry_out(operation, self._drive)
        self._operation = None
        self._table = table
        self._next_seq += len(operation.steps)
        return operation.answer

    async def _carry_out(self, operation: Operation, drive: Callable[[Operation], Awaitable[None]]) -> None:
        """Have the chain do an operation, with repairs until it does. Raises SwarmError."""
        repairs, answered = 0, 0
        while True:
            try:
                if not self._chain.hops:
                    raise ChainBroken
                if repairs == 0 and not operation.untouched:
                    await self._hand_over_leaving(operation.state)
                await drive(operation)
                return
            except ChainBroken:
                if self._chain.refused:  # waiting for room is limited by time, not by attempts
                    operation.refusals += 1
                else:
                    operation.give_up_at = None
                    repairs, answered = repairs + 1 if len(operation.answers) == answered else 1, len(operation.answers)
                if repairs > REPAIR_ATTEMPTS:
                    raise self._drop_failed() or PeerUnavailable("the chain of peers does not hold") from None
                await self._repair(operation)
                operation.sent = 0

    def _rollback(self, plan: StepPlan) -> Rollback:
        permuted = self._table.begun(plan.adopted).permuted(plan.source_rows).truncated(plan.rows)
        return Rollback(self._next_seq, self._table.lengths, permuted.lengths, self._inputs)

    async def _drive(self, operation: Operation) -> None:
        """Send the steps and wait for the answers. Raises ChainBroken."""
        chances = 2
        while not operation.done:
            self._chain.raise_if_broken()
            self._chain.changed.clear()
            answered = len(operation.answers)
            timeout = self._stall_seconds(operation)
            try:
                async with asyncio.timeout(timeout):
                    await self._send_steps(operation, timeout)
                    if not operation.done:
                        await self._chain.changed.wait()
            except TimeoutError:
                if len(operation.answers) == answered:
                    chances -= 1
                    await self._chain.examine(operation.unanswered, last_chance=chances == 0)

    async def _send_steps(self, operation: Operation, timeout_seconds: float) -> None:
        first = self._chain.hops[0]
        while operation.sent < len(operation.steps) and operation.in_flight < first.credits:
            await first.send(operation.next_step(self._chain.epoch, 4 * timeout_seconds, self._config.clock()))

    def _on_answer(self, hop: HopStream, step: WireStep) -> None:
        operation = self._operation
        if operation is None:
            return
        if not operation.has_step(step):
            hop.fail(LocalProtocolError(f"{hop.address} answered a question that was not asked"))
        elif step.seq not in operation.answers:
            operation.answers[step.seq] = step.data
            self._note_timing(operation, step)
            self._chain.changed.set()

    def _note_timing(self, operation: Operation, step: WireStep) -> None:
        now = self._config.clock()
        sent_at = operation.sent_at[step.seq]
        self._timings.add(sent_at, now, step.timings)
        predicted = self._config.router.predict_seconds(self.chain, step.plan.tokens)
        if len(operation.steps) == 1 and predicted > 0:
            self._slowness += 0.1 * ((now - sent_at) / predicted - self._slowness)

    def _stall_seconds(self, operation: Operation) -> float:
        """How long the next answer may take, from the announced and the observed speed."""
        tokens = operation.steps[operation.unanswered - operation.first_seq].tokens
        predicted = self._config.router.predict_seconds(self.chain, tokens) * max(1, operation.in_flight)
        timing = self._config.timing
        return timing.min_stall_seconds + timing.stall_factor * max(1.0, self._slowness) * predicted

    # --- peers that leave ---

    async def _hand_over_leaving(self, state: Rollback) -> None:
        """Replace the peers that are about to leave; nothing was done yet after `state`. Raises ChainBroken.

        A peer that nobody can replace stays until it is gone.
        """
        router, now = self._config.router, self._config.clock()
        if now < self._next_handover_at:
            return
        for hop in [hop for hop in self._chain.hops if router.leaving(hop.peer)]:
            self._next_handover_at = now + self._config.timing.handover_pause_seconds
            try:
                choices = await self._route(hop.blocks, peers_of(self._chain.hops))
            except (NoChainError, PeerBusy):
                continue
            if longest_wait_seconds(choices) > self._config.timing.handover_wait_seconds:
                continue
            await hand_over(self._chain, hop, choices, state)

    # --- repair ---

    async def _repair(self, operation: Operation) -> None:
        """Bring up a chain in which every hop has the operation's first state or has gone beyond it.

        Raises SwarmError.
        """
        now = self._config.clock()
        give_up_at = operation.give_up_at = operation.give_up_at or now + self._config.patience_seconds
        first_chain = self._chain.epoch == 0
        last_error: SwarmError = PeerUnavailable("the chain of peers does not hold")
        attempts = 0
        while attempts < REPAIR_ATTEMPTS:
            last_error = self._drop_failed() or last_error
            if isinstance(last_error, PeerBusy) and self._config.clock() >= give_up_at:
                break
            chain = await self._choose_patiently(last_error, give_up_at, first_chain, operation)
            try:
                if operation.has_to_wait(chain):
                    patience = max(self._config.timing.no_chain_pause_seconds, give_up_at - self._config.clock())
                    chain = await self._chain.reserve(chain, patience)
                await self._chain.connect(chain)
                await rebuild(self._chain, operation.state)
                return
            except ChainBroken:
                attempts += not self._chain.refused
                operation.refusals += self._chain.refused
            except NotAdmitted as refusal:
                last_error = refusal.error
                attempts += not isinstance(last_error, PeerBusy)
                if not refusal.waited:
                    await self._pause(last_error, give_up_at)
        raise last_error

    async def _pause(self, error: SwarmError, give_up_at: float) -> None:
        timing = self._config.timing
        seconds = error.retry_after_seconds if isinstance(error, PeerBusy) else 0.0
        seconds = min(max(seconds, timing.no_chain_pause_seconds), timing.max_busy_pause_seconds)
        await asyncio.sleep(max(0.0, min(seconds, give_up_at - self._config.clock())))

    def _drop_failed(self) -> SwarmError | None:
        """Ban and report the hops that failed; the last of their errors."""
        return self._chain.report_failed(self._chain.hops)

    async def _choose_patiently(
        self, last_error: SwarmError, give_up_at: float, first_chain: bool, operation: Operation
    ) -> Sequence[HopStream | HopChoice]:
        """A new chain, looking until `give_up_at` for room and for peers to rejoin.

        A first chain waits only for room; but what was last seen of the swarm may be old, so it has a second look.
        Raises SwarmError.
        """
        looks = 0
        while True:
            try:
                return await self._choose(operation)
            except (NoChainError, PeerBusy) as error:
                if isinstance(last_error, GiveUp):
                    raise last_error from None
                hopeless = first_chain and isinstance(error, NoChainError) and looks > 0
                if hopeless or self._config.clock() >= give_up_at:
                    raise error from None
            if looks > 0:
                await asyncio.sleep(self._config.timing.no_chain_pause_seconds)
            await self._config.router.refresh()
            looks += 1

    async def _choose(self, operation: Operation) -> Sequence[HopStream | HopChoice]:
        """The new chain: hops that work stay, the gaps are filled; where they cannot be at once, all is chosen anew.

        Of a session for which nothing was computed no hop stays if it has to wait for any peer: it would hold room
        meanwhile, and all sessions take room in the order of the peers' ids.
        """
        everything = BlockRange(0, self._config.num_blocks)
        alive = [hop for hop in self._chain.hops if hop.error is None]
        filled: Sequence[HopStream | HopChoice] = ()
        if alive:
            with suppress(NoChainError, PeerBusy):
                filled = await self._fill_gaps(alive, everything)
            if filled and not operation.has_to_wait(filled):
                return filled
        try:
            choices = await self._route(everything, frozenset())
        except (NoChainError, PeerBusy):
            if operation.untouched:
                self._chain.release()
            elif filled:
                return filled
            raise
        if operation.has_to_wait(choices):
            if operation.untouched:
                self._chain.release()
                return choices
            if filled:
                return filled
        kept = {(hop.peer, hop.blocks): hop for hop in alive}
        return [kept.get((choice.address.peer, choice.blocks), choice) for choice in choices]

    async def _route(self, blocks: BlockRange, excluded: frozenset[PeerId]) -> tuple[HopChoice, ...]:
        config = self._config
        return await config.router.choose(blocks, excluded, self._request, config.min_precision)

    async def _fill_gaps(self, alive: Sequence[HopStream], everything: BlockRange) -> list[HopStream | HopChoice]:
        chain: list[HopStream | HopChoice] = [*alive]
        repair = Repair(everything, tuple((hop.peer, hop.blocks) for hop in alive))
        while repair.gap is not None:
            choices = await self._route(repair.gap, repair.peers)
            repair = repair.filled((choice.address.peer, choice.blocks) for choice in choices)
            chain += choices
        return sorted(chain, key=lambda hop: hop.blocks.start)
