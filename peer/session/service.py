"""The network edge of a peer: streams in, validated values to the workers, frames out.

Everything from the network is checked here, before anything acts on it; an error ends the stream it came on with one
clear failure frame, and touches no other session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from ...proto.errors import (
    AuthenticationError,
    PeerUnavailable,
    PushFailed,
    RemoteProtocolError,
    SessionLost,
    SwarmError,
)
from ...proto.network.streams import Stream
from ...proto.network.transport import Handlers
from ...proto.wire.frames import CREDITS, StepReader
from ...proto.wire.handshake import Grant, sign_hello
from ...proto.wire.messages.opening import OpenedFrame, OpenFrame, PushOpenFrame, PushReadyFrame, Signed
from ...proto.wire.messages.session import FailureFrame, RerouteFrame
from ...proto.wire.messages.streams import ClientFrame, PeerFrame, PushFrame, PushReply
from ...proto.wire.prefixes import Digests, unpack_digests
from ...proto.wire.tensors import WireFormat
from ...routing.swarm import PeerId
from ..engine.engine import SessionKv
from ..tasks import Changes, run_to_end, run_until_first
from .edge.handshakes import Handshakes
from .edge.opening import Neighbourhood, Opening, OpeningCheck
from .edge.read_ahead import ReadAhead
from .edge.refusals import Refusals
from .edge.room_use import RoomUse
from .edge.usage import UsageLog
from .outlet import ClientOutlet
from .parts import PeerParts
from .push import PushLink
from .reader import SessionReader, take_step
from .transfer import TakeTurn, Transfers, TurnLimits
from .unary import UnaryCalls
from .waiting import Admission
from .work.compute import EngineCompute, largest_part
from .work.seams import SessionParts
from .work.worker import SessionWorker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _OpenSession:
    worker: SessionWorker
    reader: SessionReader


class PeerService:
    """Serves sessions, pushes, look-ups and pings."""

    def __init__(self, parts: PeerParts) -> None:
        self._parts = parts
        self._unary = UnaryCalls(parts)
        self._admission = Admission(parts.sessions, parts.clock, parts.on_admitted, parts.timing)
        self._check = OpeningCheck(parts)
        self._handshakes = Handshakes(parts.timing.handshake_seconds)
        self._questions = Handshakes(parts.timing.handshake_seconds)
        """Apart from those of streams, so that a flood of one kind takes no places from the other."""
        limits = TurnLimits(parts.timing.transfer_silence_seconds, parts.timing.transfer_hold_seconds)
        self._transfers = Transfers(limits, parts.timing.transfer_link_share)
        self._refusals = Refusals(parts.timing.refusals_seconds, parts.on_failure)
        self.usage = UsageLog(parts.timing.usage_seconds)
        self._open: dict[bytes, _OpenSession] = {}
        self._changes = Changes()
        self.draining = False
        """Whether it takes no more sessions."""

    @property
    def handlers(self) -> Handlers:
        unary = self._unary
        return Handlers(self.session, self.push, unary.lookup, unary.ping, question_time=self._questions.handshake)

    @property
    def open_sessions(self) -> int:
        return self._parts.sessions.sessions

    @property
    def open_ids(self) -> frozenset[bytes]:
        """The sessions that steps can be pushed into."""
        return frozenset(self._open)

    @property
    def waiting_sessions(self) -> int:
        """The number of sessions whose streams wait for room."""
        return self._admission.waiting

    def drain(self) -> None:
        """Take no more sessions, and refuse those that wait for room; the open ones go on."""
        self.draining = True
        self._admission.refuse_waiting(_leaving())

    def rehost(self, kv_token_blocks: int) -> None:
        """Other blocks are hosted now, with room for `kv_token_blocks`; the open sessions keep what they have.

        Waiting sessions that can no longer be served are refused.
        """
        hosted = self._parts.hosting.blocks
        gone = SessionLost(f"the peer hosts blocks {hosted} now")
        self._admission.refuse_waiting(gone, lambda grant: not hosted.covers(grant.blocks))
        self._admission.resize(kv_token_blocks)

    async def wait_idle(self) -> None:
        """Return when no session is open."""
        await self._changes.wait_for(lambda: self._parts.sessions.sessions == 0)

    # --- sessions ---

    async def session(self, stream: Stream[ClientFrame, PeerFrame], host: str) -> None:
        """Serve one client's session, from its hello to its last frame; the client is seen at `host`."""
        outlet = ClientOutlet(stream, self._parts.timing)
        ahead = ReadAhead(stream)
        opening = None
        try:
            async with self._handshakes.handshake():
                opening = self._check_open(await stream.read(), host)
                await self._previous_ended(opening.grant)
            await self._admit(opening, ahead, outlet)
        except SwarmError as error:
            self._refusals.note(error)
            with suppress(SessionLost):  # a client that takes no frames cannot hear why
                await outlet.failure(error, 0, 0)
        finally:
            if opening is not None:
                self._parts.names.give_back(opening.grant.client, opening.prefixes)
            self._changes.notify()
            await run_to_end(self._close(ahead, outlet))

    def _check_open(self, frame: ClientFrame | None, host: str) -> Opening:
        if not isinstance(frame, OpenFrame):
            raise RemoteProtocolError("a session begins with an open frame")
        if self.draining:
            raise _leaving()
        return self._check.opening(frame, host)

    async def _admit(self, opening: Opening, ahead: ReadAhead, outlet: ClientOutlet) -> None:
        """Serve a session once it has its room; any frame but a probe that comes before ends the wait."""
        grant, wait_seconds = opening.grant, opening.wait_seconds
        if wait_seconds > 0:
            ahead.begin(lambda error: self._admission.refuse(grant.key, error))
        try:
            async with self._admission.room(grant, wait_seconds, outlet.queued):
                ahead.admitted()
                if opening.place is not None:
                    self._parts.on_client(grant.client, opening.place)
                await self._serve_session(ahead, outlet, opening)
        finally:
            self._changes.notify()  # before the client is told why, which may take long if its connection is dead

    @staticmethod
    async def _close(ahead: ReadAhead, outlet: ClientOutlet) -> None:
        await ahead.close()
        await outlet.close()

    async def _previous_ended(self, grant: Grant) -> None:
        """End the previous stream of the session, open or waiting, if it is left over from an earlier epoch.

        A client that left the session a moment ago may return before its old stream is cleared away; a client whose
        connection died may return before this peer notices.
        """
        table, key, previous = self._parts.sessions, grant.key, self._open.get(grant.key)
        if not table.is_open(key):
            return
        if previous is not None and grant.epoch > previous.worker.epoch:
            previous.reader.supersede()
        anew = SessionLost("the client has opened the session anew")
        self._admission.refuse_waiting(anew, lambda waiting: waiting.key == key and waiting.epoch < grant.epoch)
        try:
            async with asyncio.timeout(self._parts.timing.previous_stream_seconds):
                await self._changes.wait_for(lambda: not table.is_open(key))
        except TimeoutError:
            raise RemoteProtocolError("the session is open on this peer already") from None

    async def _serve_session(
        self, stream: Stream[ClientFrame, PeerFrame], outlet: ClientOutlet, opening: Opening
    ) -> None:
        """Do everything between the reservation of the room and its return; nothing of the session is left then."""
        grant, prefixes = opening.grant, unpack_digests(opening.prefixes)
        wire_format = self._parts.engine.wire_format(grant.wire_format)
        async with self._engine_session(grant, wire_format, prefixes) as kv:
            use = RoomUse(
                grant, self._parts.timing, lambda: worker.at_work, lambda: self._parts.sessions.crowds(grant.client)
            )
            turn = partial(self._transfers.turn, opening.taker)
            parts = self._session_parts(grant, kv, outlet, wire_format, prefixes, use, turn)
            worker = SessionWorker(grant, self._make_link(opening.neighbourhood, outlet), parts)
            try:
                await self._run_session(stream, outlet, worker, kv, use, turn)
            finally:
                self.usage.ended(use.tokens, use.seconds)
                await run_to_end(self._close_worker(grant.key, worker))

    @asynccontextmanager
    async def _engine_session(
        self, grant: Grant, wire_format: WireFormat, prefixes: tuple[Digests, ...]
    ) -> AsyncIterator[SessionKv]:
        """Open the session's rows in the engine, and free their memory at the end of the block, however it ends."""
        engine = self._parts.engine
        self._check.hosted(grant)  # again: the session may have waited for its room
        kv = engine.open(grant.blocks, wire_format, grant.kv_tokens, grant.max_rows, grant.client, prefixes)
        try:
            yield kv
        finally:
            await run_to_end(engine.release(kv))

    def _session_parts(
        self,
        grant: Grant,
        kv: SessionKv,
        outlet: ClientOutlet,
        wire_format: WireFormat,
        prefixes: tuple[Digests, ...],
        use: RoomUse,
        take_turn: TakeTurn,
    ) -> SessionParts:
        parts = self._parts

        def computed(tokens: int) -> None:
            use.step_computed(tokens)
            self.usage.computed(tokens)
            lengths = kv.table.lengths
            parts.sessions.note_step(grant.key, sum(lengths), len(lengths), parts.clock())

        return SessionParts(
            compute=EngineCompute(parts.engine, kv, computed),
            replay=parts.replay,
            outlet=outlet,
            counters=parts.counters,
            clock=parts.clock,
            take_turn=take_turn,
            token_bytes=wire_format.token_bytes,
            lengths=lambda: kv.table.lengths,
            on_visit=parts.on_visit,
            prefixes=prefixes,
        )

    async def _run_session(
        self,
        stream: Stream[ClientFrame, PeerFrame],
        outlet: ClientOutlet,
        worker: SessionWorker,
        kv: SessionKv,
        use: RoomUse,
        take_turn: TakeTurn,
    ) -> None:
        """Say that the session is open, and work for it until its client closes it. Raises SwarmError."""
        parts, grant = self._parts, worker.grant
        steps = StepReader(self._input_bytes(grant))
        reader = SessionReader(
            worker,
            outlet,
            steps,
            lambda frame: self._reroute(worker, frame, outlet, steps),
            take_turn,
            partial(largest_part, kv),
        )
        self._open[grant.key] = _OpenSession(worker, reader)
        self._changes.notify()
        await outlet.write(OpenedFrame(CREDITS, grant.epoch, kv.held_tokens))
        try:
            async with asyncio.timeout(max(0.0, grant.expires_at_seconds - parts.clock())):
                work = worker.run(), worker.send_parts(), reader.run(stream), reader.until_superseded(), use.watch()
                await run_until_first(*work, cancel_inside=outlet.between_frames)
        except TimeoutError:
            raise SessionLost("the session's capability has expired") from None

    async def _close_worker(self, key: bytes, worker: SessionWorker) -> None:
        self._open.pop(key, None)
        self._changes.notify()
        await worker.close()

    async def _reroute(
        self, worker: SessionWorker, frame: RerouteFrame, outlet: ClientOutlet, steps: StepReader
    ) -> None:
        """Give a session new neighbours; from now on `steps` come in the input format of the new predecessor."""
        new = self._check.reroute(frame, worker.grant)
        await worker.put_reroute(new.grant, new.relay, lambda: self._make_link(new, outlet), frame.forget_prefixes)
        steps.token_bytes = self._input_bytes(new.grant)
        self._changes.notify()

    def _input_bytes(self, grant: Grant) -> int:
        """Bytes of a token in incoming steps."""
        return self._parts.engine.wire_format(grant.input_format).token_bytes

    def _make_link(self, neighbourhood: Neighbourhood, outlet: ClientOutlet) -> PushLink | None:
        """Make the link to the successor; None if outputs go back to the client."""
        grant, parts = neighbourhood.grant, self._parts
        if grant.successor is None or neighbourhood.relay:
            return None
        successor = grant.successor

        def hello() -> Signed:
            return sign_hello(parts.identity, successor, grant.key, parts.clock(), parts.swarm_key)

        def broken(error: PushFailed) -> None:
            # The link may outlive the epoch that it was made in; the client ignores failures of other epochs.
            session = self._open.get(grant.key)
            outlet.failure_soon(error, session.worker.epoch if session is not None else grant.epoch)

        dial = partial(parts.dials.dial, grant.client)
        return PushLink(parts.dialer, neighbourhood.successor, hello, broken, parts.timing, dial)

    # --- pushes from the predecessor ---

    async def push(self, stream: Stream[PushFrame, PushReply]) -> None:
        """Take the steps of one session from its predecessor. One that breaks the protocol is named in the log."""
        pusher = None
        try:
            async with self._handshakes.handshake():
                opening = await stream.read()
                if not isinstance(opening, PushOpenFrame):
                    raise RemoteProtocolError("a push begins with an open frame")
                pusher, key = self._parts.hellos.check(opening.hello)
                worker = await self._wait_for_push(pusher, key)
            await self._answer_push(stream, PushReadyFrame())
            await self._take_pushes(stream, worker, pusher, key)
        except SwarmError as error:
            if pusher is not None and isinstance(error, RemoteProtocolError):
                self._refusals.note(RemoteProtocolError(f"{error} (in the steps that peer {pusher} pushes)"))
            with suppress(SessionLost):
                await self._answer_push(stream, FailureFrame.of(error))

    async def _answer_push(self, stream: Stream[PushFrame, PushReply], frame: PushReply) -> None:
        """Write one frame. Raises SessionLost if the predecessor does not take it in time."""
        try:
            async with asyncio.timeout(self._parts.timing.write_seconds):
                await stream.write(frame)
        except TimeoutError:
            raise SessionLost("the predecessor takes no frames") from None

    async def _wait_for_push(self, pusher: PeerId, key: bytes) -> SessionWorker:
        """Wait for the session to be open and to name `pusher` as its predecessor (both are set up side by side)."""

        def ready() -> bool:
            session = self._open.get(key)
            return session is not None and session.worker.grant.predecessor == pusher

        await self._changes.wait_for(ready)
        return self._open[key].worker

    async def _take_pushes(
        self, stream: Stream[PushFrame, PushReply], worker: SessionWorker, pusher: PeerId, key: bytes
    ) -> None:
        reader = StepReader(self._input_bytes(worker.grant))
        while (frame := await stream.read()) is not None:
            session = self._open.get(key)
            if session is None or session.worker is not worker:
                raise SessionLost("the session has ended")
            if worker.grant.predecessor != pusher:
                raise AuthenticationError("the session has another predecessor now")
            reader.token_bytes = self._input_bytes(worker.grant)
            step = take_step(reader, frame)
            if step is not None:
                await worker.put_step(step)


def _leaving() -> PeerUnavailable:
    return PeerUnavailable("the peer is leaving and takes no new sessions")
