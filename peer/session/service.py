"""The network edge of a peer: streams in, validated values to the workers, frames out.

Everything from the network is checked here, before anything acts on it; an error ends the stream it came on with one
clear failure frame, and touches no other session.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from ...proto.directory.records import open_peer_record
from ...proto.directory.signed import SignatureCache, SignedRecord, verify_record
from ...proto.directory.swarm_key import SwarmKey
from ...proto.errors import (
    AuthenticationError,
    DeadlineExceeded,
    PeerUnavailable,
    PushFailed,
    RemoteProtocolError,
    SessionLost,
    SwarmError,
    UsageError,
)
from ...proto.identity import Identity
from ...proto.network.address import Reach, reaches_of
from ...proto.network.streams import Stream
from ...proto.network.transport import Dialer, Handlers
from ...proto.wire.frames import CREDITS, StepReader
from ...proto.wire.handshake import Grant, HelloChecker, check_capability, sign_hello
from ...proto.wire.messages.opening import OpenedFrame, OpenFrame, PushOpenFrame, PushReadyFrame, Signed
from ...proto.wire.messages.session import FailureFrame, RerouteFrame
from ...proto.wire.messages.streams import ClientFrame, PeerFrame, PushFrame, PushReply
from ...proto.wire.prefixes import Digests, check_prefixes, unpack_digests
from ...proto.wire.steps import MAX_ROWS
from ...proto.wire.tensors import WireFormat
from ...routing.admit.table import SessionTable
from ...routing.swarm import BlockRange, PeerId
from ..engine.engine import Engine, SessionKv
from ..tasks import Changes, run_to_end, run_until_first
from ..timing import PeerTiming
from .compute import EngineCompute
from .outlet import ClientOutlet
from .push import PushLink
from .reader import SessionReader, take_step
from .replay_store import ReplayStore
from .unary import UnaryCalls
from .waiting import Admission
from .worker import Counters, SessionParts, SessionWorker

logger = logging.getLogger(__name__)


class Hosts(Protocol):
    """Knows what the peer hosts now."""

    @property
    def blocks(self) -> BlockRange: ...


@dataclass
class PeerParts:
    """Everything that a peer's service is made of."""

    identity: Identity
    engine: Engine
    hosting: Hosts
    sessions: SessionTable
    replay: ReplayStore
    hellos: HelloChecker
    dialer: Dialer
    model_digest: str
    model_name: str
    swarm_key: SwarmKey | None
    lookup: Callable[[str], Awaitable[list[bytes]]]
    """Encoded signed records under a name, from the directory that this peer is part of."""
    dht_addresses: Callable[[], list[str]]
    clock: Callable[[], float] = time.time
    timing: PeerTiming = field(default_factory=PeerTiming)
    counters: Counters = field(default_factory=Counters)
    on_admitted: Callable[[float], None] = lambda wait_seconds: None
    """Is told how long each admitted session has waited for room."""
    record_signatures: SignatureCache = field(default_factory=SignatureCache)
    transfers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Attention caches move to and from this peer one at a time."""


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
        self._open: dict[bytes, _OpenSession] = {}
        self._changes = Changes()
        self._draining = False

    @property
    def handlers(self) -> Handlers:
        return Handlers(session=self.session, push=self.push, lookup=self._unary.lookup, ping=self._unary.ping)

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
        """Take no more sessions, also not those that wait for room; the open ones go on."""
        self._draining = True
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

    async def session(self, stream: Stream[ClientFrame, PeerFrame]) -> None:
        """One client's session, from its hello to its last frame."""
        outlet = ClientOutlet(stream, self._parts.timing.frame_seconds)
        try:
            async with _handshake(self._parts.timing.handshake_seconds):
                opening = await stream.read()
                if not isinstance(opening, OpenFrame):
                    raise RemoteProtocolError("a session begins with an open frame")
                grant = self._check_open(opening)
                await self._previous_ended(grant)
            async with self._admission.room(grant, opening.wait_seconds, outlet.queued):
                await self._serve_session(stream, outlet, grant, opening)
        except SwarmError as error:
            logger.info("session refused or ended: %s", error)
            await outlet.failure(error, 0, 0)
        finally:
            self._changes.notify()
            await run_to_end(outlet.close())

    def _check_open(self, opening: OpenFrame) -> Grant:
        if self._draining:
            raise _leaving()
        client, session_id = self._parts.hellos.check(opening.hello)
        grant = self._check_grant(opening.capability, client, session_id)
        self._check_hosted(grant)
        return grant

    def _check_hosted(self, grant: Grant) -> None:
        """For a session that opens; one that is open keeps the blocks that it opened on. Raises SessionLost."""
        hosted = self._parts.hosting.blocks
        if not hosted.covers(grant.blocks):
            raise SessionLost(f"the peer hosts blocks {hosted} now, not {grant.blocks}")

    def _check_grant(self, signed: Signed, client: PeerId, session_id: bytes) -> Grant:
        parts = self._parts
        return check_capability(
            signed,
            client=client,
            session_id=session_id,
            me=parts.identity.peer_id,
            model_digest=parts.model_digest,
            max_rows=MAX_ROWS,
            now=parts.clock(),
        )

    async def _previous_ended(self, grant: Grant) -> None:
        """End the previous stream of the session, if it is left over from an earlier epoch.

        A client that left the session a moment ago may come before its old stream is cleared away; one whose connection
        is dead comes while nothing here tells that it is.
        """
        table, key, previous = self._parts.sessions, grant.key, self._open.get(grant.key)
        if not table.is_open(key):
            return
        if previous is not None and grant.epoch > previous.worker.epoch:
            previous.reader.supersede()
        try:
            async with asyncio.timeout(self._parts.timing.previous_stream_seconds):
                await self._changes.wait_for(lambda: not table.is_open(key))
        except TimeoutError:
            raise RemoteProtocolError("the session is open on this peer already") from None

    async def _serve_session(
        self, stream: Stream[ClientFrame, PeerFrame], outlet: ClientOutlet, grant: Grant, opening: OpenFrame
    ) -> None:
        """Everything between the reservation of the room and its return; nothing of the session is left then."""
        wire_format = self._parts.engine.wire_format(grant.wire_format)
        check_prefixes(opening.prefixes, grant.kv_tokens, grant.max_rows)
        prefixes = unpack_digests(opening.prefixes)
        async with self._engine_session(grant, wire_format, prefixes) as kv:
            link = self._make_link(grant, opening.successor_record, opening.relay, outlet)
            worker = SessionWorker(grant, link, self._session_parts(grant, kv, outlet, wire_format, prefixes))
            try:
                await self._run_session(stream, outlet, worker, kv)
            finally:
                await run_to_end(self._close_worker(grant.key, worker))

    @asynccontextmanager
    async def _engine_session(
        self, grant: Grant, wire_format: WireFormat, prefixes: tuple[Digests, ...]
    ) -> AsyncIterator[SessionKv]:
        """The session's rows in the engine. At the end of the block their memory is free, however the block ends."""
        engine = self._parts.engine
        self._check_hosted(grant)  # again: the session may have waited for its room
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
    ) -> SessionParts:
        parts = self._parts
        return SessionParts(
            compute=EngineCompute(parts.engine, kv, lambda: self._note_step(grant, kv)),
            replay=parts.replay,
            outlet=outlet,
            counters=parts.counters,
            clock=parts.clock,
            transfers=parts.transfers,
            token_bytes=wire_format.token_bytes,
            lengths=lambda: kv.table.lengths,
            prefixes=prefixes,
        )

    async def _run_session(
        self, stream: Stream[ClientFrame, PeerFrame], outlet: ClientOutlet, worker: SessionWorker, kv: SessionKv
    ) -> None:
        """Say that the session is open, and work for it until its client closes it. Raises SwarmError."""
        parts, grant = self._parts, worker.grant
        steps = StepReader(self._input_bytes(grant))
        reader = SessionReader(
            worker,
            outlet,
            steps,
            lambda message: self._reroute(worker, message, outlet, steps),
            parts.transfers,
            kv.largest_import,
            parts.timing,
        )
        self._open[grant.key] = _OpenSession(worker, reader)
        self._changes.notify()
        await outlet.write(OpenedFrame(CREDITS, grant.epoch, kv.held_tokens))
        try:
            async with asyncio.timeout(max(0.0, grant.expires_at_seconds - parts.clock())):
                await run_until_first(
                    worker.run(), reader.run(stream), reader.until_superseded(), cancel_inside=outlet.between_frames
                )
        except TimeoutError:
            raise SessionLost("the session's capability has expired") from None

    async def _close_worker(self, key: bytes, worker: SessionWorker) -> None:
        self._open.pop(key, None)
        self._changes.notify()
        await worker.close()

    def _note_step(self, grant: Grant, kv: SessionKv) -> None:
        lengths = kv.table.lengths
        self._parts.sessions.note_step(grant.key, sum(lengths), len(lengths), self._parts.clock())

    async def _reroute(
        self, worker: SessionWorker, message: RerouteFrame, outlet: ClientOutlet, steps: StepReader
    ) -> None:
        """Give a session new neighbours; what the next `steps` come in follows the predecessor."""
        old = worker.grant
        grant = self._check_grant(message.capability, old.client, old.session_id)
        same = (grant.blocks, grant.kv_tokens, grant.max_rows, grant.wire_format, grant.successor is None)
        if same != (old.blocks, old.kv_tokens, old.max_rows, old.wire_format, old.successor is None):
            raise RemoteProtocolError("a reroute changes neighbours and the format of inputs only")

        def make_link() -> PushLink | None:
            return self._make_link(grant, message.successor_record, message.relay, outlet)

        await worker.put_reroute(grant, message.relay, make_link, message.forget_prefixes)
        steps.token_bytes = self._input_bytes(grant)
        self._changes.notify()

    def _input_bytes(self, grant: Grant) -> int:
        """Bytes of a token in the steps that come."""
        return self._parts.engine.wire_format(grant.input_format).token_bytes

    def _make_link(self, grant: Grant, successor_record: bytes, relay: bool, outlet: ClientOutlet) -> PushLink | None:
        """The way to the successor; None where outputs go back to the client. Raises SwarmError."""
        if grant.successor is None or relay:
            return None
        successor, parts = grant.successor, self._parts

        def hello() -> Signed:
            return sign_hello(parts.identity, successor, grant.key, parts.clock(), parts.swarm_key)

        addresses = self._addresses_in(successor_record, successor)

        def broken(error: PushFailed) -> None:
            # The link may outlive the epoch that it was made in; the client ignores what is about another one.
            session = self._open.get(grant.key)
            outlet.failure_soon(error, session.worker.epoch if session is not None else grant.epoch)

        return PushLink(parts.dialer, addresses, hello, broken, parts.timing.push_connect_seconds)

    def _addresses_in(self, encoded: bytes, successor: PeerId) -> tuple[Reach, ...]:
        """Only addresses that the successor signed itself are dialled: a client cannot aim us at anybody else."""
        parts = self._parts
        record = SignedRecord.decode(encoded)
        if record.peer_id != successor:
            raise AuthenticationError("the successor's record belongs to another peer")
        verify_record(record, parts.clock(), cache=parts.record_signatures)
        return reaches_of(open_peer_record(record, parts.swarm_key))

    # --- pushes from the predecessor ---

    async def push(self, stream: Stream[PushFrame, PushReply]) -> None:
        """Steps of one session from its predecessor."""
        try:
            async with _handshake(self._parts.timing.handshake_seconds):
                opening = await stream.read()
                if not isinstance(opening, PushOpenFrame):
                    raise RemoteProtocolError("a push begins with an open frame")
                pusher, key = self._parts.hellos.check(opening.hello)
                session = await self._wait_for_push(pusher, key)
            session.reader.touch()
            await stream.write(PushReadyFrame())
            await self._take_pushes(stream, session, pusher, key)
        except SwarmError as error:
            await stream.write(FailureFrame.of(error))

    async def _wait_for_push(self, pusher: PeerId, key: bytes) -> _OpenSession:
        """The session, once it is open here and names `pusher` as its predecessor (the two are set up side by side)."""

        def ready() -> bool:
            session = self._open.get(key)
            return session is not None and session.worker.grant.predecessor == pusher

        await self._changes.wait_for(ready)
        return self._open[key]

    async def _take_pushes(
        self, stream: Stream[PushFrame, PushReply], session: _OpenSession, pusher: PeerId, key: bytes
    ) -> None:
        worker = session.worker
        reader = StepReader(self._input_bytes(worker.grant))
        while (frame := await stream.read()) is not None:
            if self._open.get(key) is not session:
                raise SessionLost("the session has ended")
            if worker.grant.predecessor != pusher:
                raise AuthenticationError("the session has another predecessor now")
            reader.token_bytes = self._input_bytes(worker.grant)
            step = take_step(reader, frame)
            if step is not None:
                session.reader.touch()
                await worker.put_step(step)


def _leaving() -> PeerUnavailable:
    return PeerUnavailable("the peer is leaving and takes no new sessions")


@asynccontextmanager
async def _handshake(seconds: float) -> AsyncIterator[None]:
    """The time in which a stream has to say what it wants."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"the stream was not opened within {seconds:.0f} s") from None
    except UsageError as error:
        raise RemoteProtocolError(str(error)) from None
