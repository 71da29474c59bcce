"""A session: one request's chain of peers, its rows, and the shell around the machine that decides about the chain.

`run` applies one operation (a step of any length) to the chain and returns the answers.  Failures are repaired inside:
tokens already emitted never change, and the caller only notices that it took longer.  `ChainMachine` decides; the
session performs its actions and feeds the outcomes back as events.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...proto.errors import LocalProtocolError, SessionLost, SwarmError
from ...proto.wire.frames import StepReader, cut_step, replay_steps
from ...proto.wire.handshake import SESSION_ID_BYTES, Grant, sign_capability, sign_hello
from ...proto.wire.messages.opening import OpenFrame, Signed
from ...proto.wire.messages.session import ProbeFrame, RememberFrame, RerouteFrame
from ...proto.wire.messages.steps import ReplayFrame
from ...proto.wire.messages.streams import ClientFrame
from ...proto.wire.prefixes import MAX_PREFIX_TOKENS, PAGE_TOKENS, Digests, pack_digests
from ...proto.wire.replay import ReplayBuffer
from ...proto.wire.steps import RowSlice, RowTable, StepPlan, split_plan
from ...routing.swarm import RequestSpec
from ..config import SessionConfig, SessionEvent
from ..report import ChainReport, Trip
from ..tasks import OwnedTasks
from .formats import Links
from .hop import HopStream
from .machine import events as ev
from .machine.machine import ChainMachine
from .operation import OPERATION_TOKENS, STEP_TOKENS, Operation, join_bytes, leaves, split_bytes
from .prefixes import PageNames, named
from .timing_log import TimingLog


class ChainSession:
    """One session. Runs in one asyncio loop."""

    def __init__(self, config: SessionConfig, kv_tokens: int, max_rows: int) -> None:
        """The chain's peers reserve `max_rows` rows and `kv_tokens` tokens over all rows, when they are opened."""
        self._config = config
        self._id = os.urandom(SESSION_ID_BYTES)
        self._kv_tokens, self._max_rows = kv_tokens, max_rows
        half = max(1, kv_tokens // (2 * max_rows))  # of a row: the length of the prompt is not known yet
        self._request = RequestSpec(prompt_tokens=half, new_tokens=half, rows=max_rows, kv_tokens=kv_tokens)
        timing = replace(config.timing.chain, patience_seconds=config.patience_seconds)
        self._machine = ChainMachine(config.router, config.num_blocks, timing, relay_always=config.relay_always)
        self._links = Links(config.wire_format, config.codec)
        self._streams: dict[ev.HopId, HopStream] = {}
        self._background = OwnedTasks()
        """Questions to the view, and streams that are being closed."""
        self._timer: asyncio.TimerHandle | None = None
        self._done: dict[int, asyncio.Future[bytes]] = {}
        """The answers of each operation under way, by its first seq."""
        self._ready: asyncio.Future[tuple[int, ...]] | None = None
        self._failure: SwarmError | None = None
        self._next_seq = 1
        self._table = RowTable()
        """The rows after all operations that have begun."""
        self._prompt_tokens = 0  # of a first operation that waits for the chain to open
        self._inputs = ReplayBuffer(config.codec.token_bytes)
        """The inputs of block 0 in all operations that are over."""
        self._plans: dict[int, tuple[StepPlan, bytes]] = {}
        self._opening_prefixes: tuple[Digests, ...] = ()
        """The pages of the first operation's rows, to be named when peers are opened; empty once it has begun."""
        self._pages: tuple[Digests, ...] = ()
        """The pages of the first operation's rows; peers keep them without being asked again."""
        self._guessed: set[int] = set()
        """Steps of operations under way that carry no token of the text."""
        self._timings = TimingLog()
        self._last_used: tuple[ev.HopChoice, ...] = ()
        """The chain that answered the last operation."""
        self._lock, self._closing = asyncio.Lock(), False

    @property
    def chain(self) -> ev.Layout:
        """The peers in use now, and the blocks that each computes."""
        return self._machine.layout

    @property
    def answered_steps(self) -> int:
        """The number of steps that were answered."""
        return self._timings.answered_steps

    def report(self, since: int = 0) -> ChainReport:
        """Report where the time of the latest steps went, per hop, without the first `since`; from any thread."""
        choices = self._last_used or self._machine.choices  # read once: the chain may change meanwhile
        return self._timings.report(choices, self._config.router.clock_offset_seconds, since)

    @property
    def last_trip(self) -> Trip | None:
        """The times of the last answered step of the text, and the cost of a further token; from any thread."""
        return self._timings.last_trip(lambda tokens: self._config.router.predict_seconds(self.chain, tokens))

    async def run(self, plan: StepPlan, data: bytes, *, guessed: bool = False) -> bytes:
        """Apply one operation: `data` holds `plan.tokens` packed tokens; returns `plan.answers` packed tokens.

        Operations are carried out in the order of the calls. `guessed`: this one carries only guesses, no token of the
        text. It may wait for room (`ChainTiming.patience_seconds`) if it is the first one or must replace a peer;
        cancelling it ends the session at once. Raises NoChainError, PeerBusy with a time to come back if the swarm
        stays full, or another SwarmError that no repair can fix. After an error the session cannot be used again.
        """
        try:
            async with self._lock:
                if self._next_seq == 1 and self._config.page_names is not None:
                    plan, data = await self._begin_with_held(self._config.page_names, plan, data)
                *parts, last = split_plan(plan, OPERATION_TOKENS)
                *pieces, last_piece = split_bytes(
                    data, [p.tokens * self._config.codec.token_bytes for p in (*parts, last)]
                )
                answers = [await self.begin(part, piece) for part, piece in zip(parts, pieces, strict=True)]
                under_way = self.begin(last, last_piece, guessed=guessed)
            answers.append(await under_way)
        except asyncio.CancelledError:
            if not self._closing:
                self._feed(ev.Close())
            raise
        return join_bytes(answers)

    async def prepare(self, rows: int) -> tuple[int, ...]:
        """Open the chain before the first operation; return per row how many leading tokens all peers hold.

        Raises as `run` does.
        """
        if self._failure is not None:
            raise self._failure
        self._ready = asyncio.get_running_loop().create_future()
        self._feed(ev.Prepare(rows))
        return await self._ready

    def begin(self, plan: StepPlan, data: bytes, *, guessed: bool = False) -> asyncio.Future[bytes]:
        """Begin an operation after those begun before; the future has its answers, or raises as `run` does."""
        if self._failure is not None:
            raise self._failure
        operation = Operation.of(plan, data, self._table, self._next_seq, self._config.codec.token_bytes)
        self._table = self._table.after(plan)
        self._next_seq = operation.stop_seq
        self._plans[operation.first_seq] = plan, data
        if guessed:
            self._guessed.update(range(operation.first_seq, operation.stop_seq))
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._done[operation.first_seq] = future
        self._feed(ev.Begin(operation))
        return future

    async def close(self, confirmed: Sequence[int] | None = None) -> None:
        """End the session on every peer; these may keep up to `confirmed` tokens of each row for later sessions."""
        self._closing = True
        if self._failure is None and self._config.page_names is not None:
            self._feed(ev.Finish())  # a peer ends the session when it has kept its pages, and may do so before another
            if prefixes := await self._worth_remembering(self._config.page_names, confirmed):
                await self._have_remembered(prefixes)
        self._feed(ev.Close())
        self._fail(SessionLost("the session was closed"))
        await self._background.finish()

    # --- the shell: events in, actions performed ---

    def _feed(self, event: ev.Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            for action in self._machine.handle(event, loop.time()):
                self._perform(action)
        except Exception as error:
            self._fail_by(error)
            raise
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._machine.wake_at < float("inf"):
            self._timer = loop.call_at(self._machine.wake_at, self._feed, ev.Late())

    def _perform(self, action: ev.Action) -> None:
        match action:
            case ev.Send(hop, step):
                if hop == self._machine.hop_ids[0]:
                    self._timings.sent(step, self._config.clock())
                    step = self._links.to_first(self._streams[hop].choice, step)
                self._streams[hop].post(*cut_step(step))
            case ev.Open():
                self._open(action)
            case ev.Reroute(hop, neighbours, forget_prefixes):
                capability = self._capability(self._streams[hop].choice, neighbours)
                record, relay = neighbours.successor_record, neighbours.relay
                self._streams[hop].post(RerouteFrame(capability, record, relay, forget_prefixes))
            case ev.Replay():
                self._replay(action)
            case ev.Probe(hop, nonce):
                self._streams[hop].post(ProbeFrame(nonce))
            case ev.Export(source, target):
                self._streams[source].pass_cache_on(self._streams[target], action, self._config.timing.chain)
            case ev.StopExport(source):
                self._streams[source].stop_passing()
            case ev.Leave(hop):
                self._background.start(self._streams.pop(hop).close(), "close a stream")
            case ev.Ban(peer, error):
                self._config.router.ban(peer, error)
            case ev.Pardon(peers):
                self._config.router.pardon(peers)
            case ev.Tell(event):
                self._config.on_event(event)
            case ev.Choose():
                self._background.start(self._guarded(self._choose(action)), "choose a chain")
            case ev.Look():
                self._background.start(self._guarded(self._look()), "look at the swarm")
            case ev.AskAnybody():
                self._background.start(self._guarded(self._reach()), "reach anybody")
            case ev.Ready(held):
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(held)
            case ev.Done(operation, answers):
                self._finish(operation, answers)
            case ev.Fail(error):
                self._fail(error)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work whose outcome the machine waits for: if it fails, fail the session instead of waiting for ever."""
        try:
            await work
        except Exception as error:
            self._fail_by(error)
            raise

    def _fail_by(self, defect: Exception) -> None:
        """Fail the session because of a bug of ours, so that no caller waits for ever."""
        self._fail(LocalProtocolError(f"the session failed: {type(defect).__name__}: {defect}"))

    def _finish(self, operation: Operation, answers: Sequence[bytes]) -> None:
        lost = self._links.lost_guesses(operation.steps, answers)
        self._inputs.apply(*self._plans.pop(operation.first_seq), lost)
        self._guessed.difference_update(range(operation.first_seq, operation.stop_seq))
        self._last_used = self._machine.choices or self._last_used
        future = self._done.pop(operation.first_seq)
        if not future.done():
            future.set_result(join_bytes(answers))

    def _fail(self, error: SwarmError) -> None:
        self._failure = self._failure or error
        waiting: list[asyncio.Future[Any]] = [*self._done.values()]
        if self._ready is not None:
            waiting.append(self._ready)
        self._done = {}
        for future in waiting:
            if not future.done():
                future.set_exception(self._failure)

    # --- questions to the view ---

    async def _choose(self, question: ev.Choose) -> None:
        config = self._config
        try:
            choices = await config.router.fill(
                question.kept, question.excluded, self._request, config.min_precision, check=question.check
            )
        except SwarmError as error:
            self._feed(ev.NotChosen(question.number, error, config.router.seen_whole(config.min_precision)))
        else:
            self._feed(ev.Chosen(question.number, tuple(choices)))

    async def _look(self) -> None:
        error = None
        try:
            await self._config.router.refresh()
        except SwarmError as failure:
            error = failure
        self._feed(ev.Looked(error))

    async def _reach(self) -> None:
        reached = await self._config.router.reaches_anybody(self._config.timing.chain.probe_seconds)
        self._feed(ev.NetworkBack() if reached else ev.NetworkAway())

    # --- messages to peers ---

    def _open(self, action: ev.Open) -> None:
        config, choice, neighbours = self._config, action.choice, action.neighbours
        opening = OpenFrame(
            hello=sign_hello(config.identity, choice.peer, self._id, config.clock(), config.swarm_key),
            capability=self._capability(choice, neighbours),
            successor_record=neighbours.successor_record,
            relay=neighbours.relay,
            wait_seconds=action.wait_seconds,
            prefixes=pack_digests(self._named(action.formats_before, self._opening_prefixes)),
            place=config.place(),
        )
        last = choice.blocks.stop == config.num_blocks
        reader = StepReader(config.codec.link_bytes(self._links.format_from(choice)), answers=last)
        stream = HopStream(action.hop, choice, reader, self._heard, self._links.taking_from(choice, last))
        self._streams[action.hop] = stream
        stream.open(config.dialer.stub(choice.address), opening)

    def _capability(self, choice: ev.HopChoice, neighbours: ev.Neighbours) -> Signed:
        config = self._config
        grant = Grant(
            session_id=self._id,
            epoch=neighbours.epoch,
            client=config.identity.peer_id,
            peer=choice.peer,
            blocks=choice.blocks,
            kv_tokens=self._kv_tokens,
            max_rows=self._max_rows,
            predecessor=neighbours.predecessor,
            successor=neighbours.successor,
            wire_format=self._links.format_from(choice),
            input_format=self._links.format_to(choice, neighbours.stream_before),
            expires_at_seconds=config.clock() + config.timing.chain.capability_seconds,
            model_digest=config.model_digest,
            prompt_tokens=min(self._kv_tokens, max(self._prompt_tokens, self._table.tokens)),
        )
        return sign_capability(config.identity, grant)

    def _replay(self, action: ev.Replay) -> None:
        if action.source is not None:
            wish = ReplayFrame(action.epoch, action.lengths, action.mark, action.timeout_seconds)
            self._streams[action.source].post(wish)
            return
        first = self._streams[action.target].choice
        steps = replay_steps(self._inputs, action.epoch, action.lengths, action.mark, action.timeout_seconds)

        def frames() -> Iterator[ClientFrame]:
            for step in steps:
                if self._machine.epoch != action.epoch:
                    return  # the chain has changed again
                yield from cut_step(self._links.to_first(first, step))

        self._streams[action.target].post_lazily(frames())

    def _heard(self, event: ev.Event) -> None:
        """Take in an event from a peer, and record the clock readings of an answer."""
        if isinstance(event, ev.Answered) and event.hop == (self._machine.hop_ids or (None,))[-1]:
            self._timings.answered(event.step, self._config.clock(), guessed=event.step.seq in self._guessed)
        self._feed(event)

    # --- prefix caches from earlier sessions, and for later ones ---

    async def _begin_with_held(self, names: PageNames, plan: StepPlan, data: bytes) -> tuple[StepPlan, bytes]:
        """Open the chain, and drop from the first operation the tokens that every peer holds from earlier sessions.

        That costs a round trip, so it is done only for operations of at least a page. Raises SwarmError.
        """
        if plan.source_rows is not None or not PAGE_TOKENS <= plan.tokens <= MAX_PREFIX_TOKENS:
            return plan, data
        self._prompt_tokens = plan.tokens
        token_bytes = self._config.codec.token_bytes
        rows = split_bytes(data, [piece.count * token_bytes for piece in plan.rows])
        self._pages = self._opening_prefixes = await named(lambda: tuple(map(names.chain, rows)), len(data))
        if not any(self._pages):
            return plan, data
        held = await self.prepare(len(self._pages))
        # Only computed tokens have answers, so those that are answered are not adopted.
        adopted = tuple(
            max(0, min(tokens, len(pages) * PAGE_TOKENS, piece.count - max(1, piece.answers)))
            for tokens, pages, piece in zip(held, self._pages, plan.rows, strict=True)
        )
        self._opening_prefixes = ()
        if not any(adopted):
            return plan, data
        begin = tuple(RowSlice(row, 0, tokens, 0) for row, tokens in enumerate(adopted))
        # The replacement of a failed peer is rebuilt from here: no other node has the inputs of adopted tokens.
        kept = [row[: tokens * token_bytes] for row, tokens in zip(rows, adopted, strict=True)]
        self._inputs.apply(StepPlan(begin), b"".join(kept))
        rest = tuple(
            RowSlice(piece.row, tokens, piece.count - tokens, piece.answers)
            for piece, tokens in zip(plan.rows, adopted, strict=True)
        )
        self._config.on_event(SessionEvent("adopted", None, f"{sum(adopted)} of {plan.tokens} tokens"))
        new = [row[tokens * token_bytes :] for row, tokens in zip(rows, adopted, strict=True)]
        return StepPlan(rest, adopted=adopted), b"".join(new)

    async def _worth_remembering(self, names: PageNames, confirmed: Sequence[int] | None) -> tuple[Digests, ...]:
        """Return the pages of all rows, or none if peers keep them all already or must not keep them."""
        lengths = tuple(map(min, self._inputs.lengths, self._inputs.lengths if confirmed is None else confirmed))
        known = {pages[-1] for pages in self._pages if pages}
        unsuitable = sum(lengths) > MAX_PREFIX_TOKENS or max(lengths, default=0) < PAGE_TOKENS
        lasting = all(plan.tokens <= STEP_TOKENS and leaves(plan, lengths) for plan, _ in self._plans.values())
        if self._machine.mixed or not self._machine.is_whole or unsuitable or not lasting:
            return ()
        rows = [RowSlice(row, 0, length, 0) for row, length in enumerate(lengths)]
        nbytes = sum(lengths) * self._config.codec.token_bytes
        pages = await named(lambda: tuple(names.chain(self._inputs.read([row])) for row in rows), nbytes)
        return pages if any(page[-1] not in known for page in pages if page) else ()

    async def _have_remembered(self, prefixes: Sequence[Digests]) -> None:
        """Have the peers keep prefixes of their rows for later sessions, which ends the session there."""
        formats = [choice.arithmetic for choice in self._machine.choices]
        streams = [self._streams[hop] for hop in self._machine.hop_ids]
        for index, stream in enumerate(streams):
            stream.post(RememberFrame(pack_digests(self._named(formats[:index], prefixes))))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.timing.chain.remember_seconds):
                await asyncio.gather(*(stream.ended() for stream in streams))

    def _named(self, formats_before: Sequence[str], prefixes: Sequence[Digests]) -> list[Digests]:
        """Return the prefixes' names at a peer; `formats_before` is `HopChoice.arithmetic` of each peer before it."""
        names = self._config.page_names
        return [names.at_peer(pages, formats_before) for pages in prefixes] if names is not None else []
