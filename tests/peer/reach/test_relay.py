"""Peers that are reached through a relay: who may, what the relay sees, and what hostile neighbours achieve."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from blockswarm.peer.config import RelayQuota
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.errors import (
    AuthenticationError,
    DeadlineExceeded,
    PeerBusy,
    PeerUnavailable,
    RemoteProtocolError,
    SwarmError,
    WrongKey,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.transport import RelayHandlers, introduction, ping
from blockswarm.proto.wire.messages.calls import LookupReply, LookupRequest
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.proto.wire.messages.relay import (
    AcceptFrame,
    ConnectFrame,
    IncomingFrame,
    ReservedFrame,
    ReserveFrame,
    TunnelData,
    TunnelReadyFrame,
)
from blockswarm.proto.wire.messages.session import FailureFrame
from support.relays import LocalRelay, answering, local_relay

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

SECRET = b"the activations of a prompt"


async def refused(stream: Any, frame: Any) -> SwarmError:
    """The error with which a relay answers the first frame of a stream."""
    await stream.write(frame)
    reply = await asyncio.wait_for(stream.read(), 60)
    assert isinstance(reply, FailureFrame), reply
    return reply.error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def echoing(identity: Identity) -> Any:
    """A peer that gives back what it is asked for, a thousand times."""

    async def lookup(request: LookupRequest, host: str) -> LookupReply:
        return LookupReply((request.key.encode(),) * 500)

    return answering(identity, lookup=lookup)


def test_a_peer_is_reached_and_the_relay_sees_nothing_but_tls() -> None:
    """The frames that pass are recorded; beside the handshake they must look like noise."""
    seen: list[bytes] = []

    def recording(handlers: RelayHandlers) -> RelayHandlers:
        async def connect(stream: Any, host: str) -> None:
            class Recorded:
                async def read(self) -> Any:
                    frame = await stream.read()
                    if isinstance(frame, TunnelData):
                        seen.append(frame.data)
                    return frame

                async def write(self, frame: Any) -> None:
                    if isinstance(frame, TunnelData):
                        seen.append(frame.data)
                    await stream.write(frame)

            await handlers.connect(Recorded(), host)

        return dataclasses.replace(handlers, connect=connect)

    async def main() -> None:
        async with local_relay(change=recording) as relay:
            identity = Identity.generate()
            await relay.relayed_peer(identity, echoing(identity))
            address = relay.reach(identity)
            stub = relay.dialer().stub(address)
            reply, _, _ = await ping(stub, address, 10)
            assert reply.peer_id == identity.peer_id
            answer = await stub.lookup(LookupRequest(SECRET.decode(), Signed()), 10)
            assert answer.records == (SECRET,) * 500
        wire = b"".join(seen)
        assert len(wire) > 500 * len(SECRET)
        assert wire[:2] == b"\x16\x03", "a TLS handshake"
        assert not any(SECRET[at : at + 8] in wire for at in range(len(SECRET) - 8))

    asyncio.run(main())


def test_a_relay_that_answers_itself_is_found_out_by_the_pin() -> None:
    """It leads the connection to a server of its own, which has every key but the one that counts."""

    async def main() -> None:
        async with local_relay() as relay:
            victim, liar = Identity.generate(), Identity.generate()
            await relay.tunnel(victim, await relay.serve_peer(liar))
            address = relay.reach(victim)
            with pytest.raises(AuthenticationError):
                await ping(relay.dialer().stub(address), address, 10)

    asyncio.run(main())


@pytest.mark.long
def test_a_relay_that_swallows_costs_the_deadline_and_no_more() -> None:
    def swallowing(handlers: RelayHandlers) -> RelayHandlers:
        async def connect(stream: Any, host: str) -> None:
            await stream.read()
            await stream.write(TunnelReadyFrame())
            while await stream.read() is not None:
                pass

        return dataclasses.replace(handlers, connect=connect)

    async def main() -> None:
        async with local_relay(change=swallowing) as relay:
            address = relay.reach(await relay.relayed_peer())
            async with asyncio.timeout(60):
                with pytest.raises((DeadlineExceeded, PeerUnavailable)):
                    await ping(relay.dialer().stub(address), address, 1.0)

    asyncio.run(main())


def test_a_peer_that_nobody_knows_is_not_reached() -> None:
    async def main() -> None:
        async with local_relay() as relay:
            address = relay.reach(Identity.generate())
            with pytest.raises(PeerUnavailable):
                await ping(relay.dialer().stub(address), address, 5)
            stranger = Identity.generate()
            stream = relay.dialer().stub(relay.address).connect()
            frame = ConnectFrame(introduction(stranger, None)(relay.address.peer), address.peer)
            assert isinstance(await refused(stream, frame), PeerUnavailable)

    asyncio.run(main())


def test_when_a_peer_goes_its_connections_and_its_place_go() -> None:
    async def main() -> None:
        async with local_relay() as relay:
            identity = Identity.generate()
            tunnel = await relay.tunnel(identity, await relay.serve_peer(identity))
            address = relay.reach(identity)
            stub = relay.dialer().stub(address)
            await ping(stub, address, 10)
            table = relay.service.table
            assert (table.peers, table.connections) == (1, 1)
            tunnel.cancel()
            await until(lambda: (table.peers, table.connections) == (0, 0))
            with pytest.raises(PeerUnavailable):
                await ping(stub, address, 5)
            await relay.tunnel(identity, await relay.serve_peer(identity))
            async with relay.dialer().dialed_once(address) as anew:
                await ping(anew, address, 10)

    asyncio.run(main())


def test_a_peer_that_comes_again_ends_its_older_place() -> None:
    async def main() -> None:
        async with local_relay() as relay:
            identity = Identity.generate()
            local = await relay.serve_peer(identity)
            old = await relay.tunnel(identity, local)
            await relay.tunnel(identity, local)
            with pytest.raises(PeerUnavailable, match="ended the reservation"):
                await asyncio.wait_for(old, 60)
            address = relay.reach(identity)
            await ping(relay.dialer().stub(address), address, 10)
            assert relay.service.table.peers == 1

    asyncio.run(main())


def test_a_relay_that_relays_for_nobody_says_so() -> None:
    """A peer that is itself reached through a relay takes nobody: there are no loops."""

    async def main() -> None:
        async with local_relay() as relay:
            relay.offering = False
            peer = Identity.generate()
            with pytest.raises(PeerUnavailable, match="relays for nobody"):
                await relay.tunnel(peer, await relay.serve_peer(peer))
            relay.offering = True
            tunnel = await relay.tunnel(peer, await relay.serve_peer(peer))
            relay.service.stop()
            with pytest.raises(PeerUnavailable):
                await asyncio.wait_for(tunnel, 60)

    asyncio.run(main())


def test_places_and_connections_beyond_the_quota_are_refused() -> None:
    async def main() -> None:
        async with local_relay(RelayQuota(peers=1, connections=1, connections_per_peer=1)) as relay:
            peer, other = Identity.generate(), Identity.generate()
            await relay.tunnel(peer, await relay.serve_peer(peer))
            with pytest.raises(PeerBusy):
                await relay.tunnel(other, await relay.serve_peer(other))
            address = relay.reach(peer)
            await ping(relay.dialer().stub(address), address, 10)
            frame = ConnectFrame(introduction(other, None)(relay.address.peer), peer.peer_id)
            assert isinstance(await refused(relay.dialer().stub(relay.address).connect(), frame), PeerBusy)

    asyncio.run(main())


class Caller:
    """A stream as the relay sees it, of a caller that says its first frame and then listens."""

    def __init__(self, frame: ConnectFrame) -> None:
        self.heard: list[Any] = []
        self._said = [frame]

    async def read(self) -> Any:
        if self._said:
            return self._said.pop()
        return await asyncio.get_running_loop().create_future()

    async def write(self, frame: Any) -> None:
        self.heard.append(frame)


def test_one_network_keeps_nobody_else_from_a_peer() -> None:
    """Connections that say nothing cost their sender nothing, and would take all that a peer behind a relay has."""

    async def main() -> None:
        async with local_relay(RelayQuota(connections_per_peer=2)) as relay:
            peer = await relay.relayed_peer()

            def call(host: str) -> tuple[Caller, asyncio.Task[None]]:
                hello = introduction(Identity.generate(), None)(relay.address.peer)
                caller = Caller(ConnectFrame(hello, peer.peer_id))
                return caller, asyncio.create_task(relay.service.handlers.connect(caller, host))  # type: ignore[arg-type]

            calls = []
            for host in ("1.2.3.4", "1.2.3.5", "5.6.7.8"):
                calls.append(call(host))
                await until(lambda: calls[-1][0].heard == [TunnelReadyFrame()])
            (first, held), (second, ended), (other, going_on) = calls
            async with asyncio.timeout(60):
                await ended
            assert isinstance(second.heard[1], FailureFrame)
            assert isinstance(second.heard[1].error, PeerBusy)
            assert (first.heard, other.heard) == ([TunnelReadyFrame()],) * 2
            assert relay.service.table.connections == 2
            refused_caller, refusing = call("1.2.3.6")
            async with asyncio.timeout(60):
                await refusing
            assert [type(frame) for frame in refused_caller.heard] == [FailureFrame]
            for task in (held, going_on):
                task.cancel()
            await asyncio.gather(held, going_on, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.long
def test_a_peer_gets_no_more_bytes_than_its_share() -> None:
    """64 KiB/s, with a burst of as much: the rest takes its time, on whatever machine."""

    async def main() -> None:
        rate = float(1 << 16)
        async with local_relay(RelayQuota(bytes_per_second=2 * rate, peer_share=0.5)) as relay:
            identity = Identity.generate()
            await relay.relayed_peer(identity, echoing(identity))
            stub = relay.dialer().stub(relay.reach(identity))
            await ping(stub, relay.reach(identity), 10)
            before, began = relay.service.table.relayed_bytes, time.monotonic()
            await stub.lookup(LookupRequest("x" * 250, Signed()), 30)
            moved = relay.service.table.relayed_bytes - before
            assert moved > 120_000
            assert time.monotonic() - began > (moved - rate) / rate - 0.1

    asyncio.run(main())


@pytest.mark.parametrize("key", [None, "other"])
def test_a_private_swarm_relays_for_members_only(key: str | None) -> None:
    async def main() -> None:
        own = SwarmKey(os.urandom(32))
        shown = SwarmKey(os.urandom(32)) if key else None
        async with local_relay(swarm_key=own) as relay:
            member, stranger = Identity.generate(), Identity.generate()
            local = await relay.serve_peer(member)
            await relay.tunnel(member, local, own)
            address = relay.reach(member)
            await ping(relay.dialer(Identity.generate(), own).stub(address), address, 10)
            with pytest.raises(WrongKey):
                await relay.tunnel(stranger, local, shown)
            with pytest.raises(PeerUnavailable):
                await ping(relay.dialer(stranger, shown).stub(address), address, 5)

    asyncio.run(main())


# --- hostile frames ---


def test_streams_that_begin_with_nonsense_are_refused() -> None:
    async def main() -> None:
        async with local_relay() as relay:
            peer, stranger = await relay.relayed_peer(), Identity.generate()
            stub, hello = relay.dialer().stub(relay.address), introduction(stranger, None)
            token = os.urandom(16)
            for stream, frame, error in [
                (stub.connect(), TunnelData(b"x"), RemoteProtocolError),
                (stub.connect(), AcceptFrame(token), RemoteProtocolError),
                (stub.connect(), ConnectFrame(Signed(), peer.peer_id), SwarmError),
                (stub.connect(), ConnectFrame(hello(stranger.peer_id), peer.peer_id), AuthenticationError),
                (stub.connect(), ConnectFrame(hello(relay.address.peer), relay.address.peer), PeerUnavailable),
                (stub.connect(), ConnectFrame(hello(relay.address.peer), "not an id"), PeerUnavailable),
                (stub.accept(), TunnelData(b"x"), RemoteProtocolError),
                (stub.accept(), AcceptFrame(token), AuthenticationError),
                (stub.reserve(), ReserveFrame(Signed()), SwarmError),
                (stub.reserve(), ReserveFrame(hello(peer.peer_id)), AuthenticationError),
            ]:
                shown = await refused(stream, frame)
                # The other side's RemoteProtocolError is seen as our fault from here.
                assert isinstance(shown, error) or error is RemoteProtocolError, frame
            address = relay.reach(peer)
            await ping(relay.dialer().stub(address), address, 10)

    asyncio.run(main())


def test_a_hello_is_good_once() -> None:
    async def main() -> None:
        async with local_relay() as relay:
            hello = introduction(Identity.generate(), None)(relay.address.peer)
            stub = relay.dialer().stub(relay.address)
            assert isinstance(await refused(stub.connect(), ConnectFrame(hello, "x")), PeerUnavailable)
            assert isinstance(await refused(stub.connect(), ConnectFrame(hello, "x")), AuthenticationError)

    asyncio.run(main())


async def raw_reservation(relay: LocalRelay, peer: Identity) -> Any:
    """The control stream of a peer that does what the test wants."""
    stream = relay.dialer().stub(relay.address).reserve()
    await stream.write(ReserveFrame(introduction(peer, None)(relay.address.peer)))
    assert isinstance(await stream.read(), ReservedFrame)
    return stream


def test_a_token_is_good_once_and_frames_out_of_turn_end_their_connection_only() -> None:
    async def main() -> None:
        async with local_relay() as relay:
            peer, caller = Identity.generate(), Identity.generate()
            control = await raw_reservation(relay, peer)
            stub = relay.dialer().stub(relay.address)
            calling = stub.connect()
            await calling.write(ConnectFrame(introduction(caller, None)(relay.address.peer), peer.peer_id))
            incoming = await asyncio.wait_for(control.read(), 60)
            assert isinstance(incoming, IncomingFrame)
            accepting, again = stub.accept(), stub.accept()
            await accepting.write(AcceptFrame(incoming.token))
            assert isinstance(await accepting.read(), TunnelReadyFrame)
            assert isinstance(await calling.read(), TunnelReadyFrame)
            assert isinstance(await refused(again, AcceptFrame(incoming.token)), AuthenticationError)
            await calling.write(TunnelData(b"there"))
            assert await accepting.read() == TunnelData(b"there")
            await accepting.write(TunnelData(b"back"))
            assert await calling.read() == TunnelData(b"back")
            await calling.write(ConnectFrame(introduction(caller, None)(relay.address.peer), peer.peer_id))
            reply = await asyncio.wait_for(calling.read(), 60)
            assert isinstance(reply, FailureFrame)
            assert await asyncio.wait_for(accepting.read(), 60) is None
            assert relay.service.table.peers == 1

    asyncio.run(main())


@pytest.mark.long
def test_a_peer_that_never_accepts_fills_its_own_room_only() -> None:
    async def main() -> None:
        timing = PeerTiming(relay_accept_seconds=0.5)
        async with local_relay(RelayQuota(connections_per_peer=2), timing=timing) as relay:
            silent, caller = Identity.generate(), Identity.generate()
            await raw_reservation(relay, silent)
            honest = await relay.relayed_peer()
            stubs = relay.dialer().stub(relay.address)
            hello = introduction(caller, None)
            calls = [stubs.connect() for _ in range(4)]
            errors = await asyncio.gather(
                *(refused(call, ConnectFrame(hello(relay.address.peer), silent.peer_id)) for call in calls)
            )
            assert {type(error) for error in errors} <= {PeerBusy, PeerUnavailable}
            assert sum(isinstance(error, PeerBusy) for error in errors) == 2
            address = relay.reach(honest)
            await ping(relay.dialer().stub(address), address, 10)
            assert relay.service.table.connections == 1

    asyncio.run(main())


def test_a_connection_on_which_nothing_comes_ends() -> None:
    async def main() -> None:
        async with local_relay(timing=PeerTiming(relay_idle_seconds=0.2)) as relay:
            peer, caller = Identity.generate(), Identity.generate()
            control = await raw_reservation(relay, peer)
            stub = relay.dialer().stub(relay.address)
            calling, accepting = stub.connect(), stub.accept()
            await calling.write(ConnectFrame(introduction(caller, None)(relay.address.peer), peer.peer_id))
            await accepting.write(AcceptFrame((await control.read()).token))
            assert isinstance(await calling.read(), TunnelReadyFrame)
            reply = await asyncio.wait_for(calling.read(), 60)
            assert isinstance(reply, FailureFrame)
            assert isinstance(reply.error, DeadlineExceeded)

    asyncio.run(main())


def test_a_peer_that_talks_on_its_control_stream_loses_its_place() -> None:
    async def main() -> None:
        async with local_relay() as relay:
            peer = Identity.generate()
            control = await raw_reservation(relay, peer)
            await control.write(ReserveFrame(introduction(peer, None)(relay.address.peer)))
            await until(lambda: relay.service.table.peers == 0)

    asyncio.run(main())


@pytest.mark.long
def test_a_side_that_reads_nothing_stops_the_other_one() -> None:
    """The bytes that wait between the two are bounded: the writer is held up, and the relay keeps no more."""

    async def main() -> None:
        async with local_relay(RelayQuota(bytes_per_second=float(1 << 30))) as relay:
            peer, caller = Identity.generate(), Identity.generate()
            control = await raw_reservation(relay, peer)
            calling, accepting = (
                relay.dialer().stub(relay.address).connect(),
                relay.dialer().stub(relay.address).accept(),
            )
            await calling.write(ConnectFrame(introduction(caller, None)(relay.address.peer), peer.peer_id))
            await accepting.write(AcceptFrame((await control.read()).token))
            assert isinstance(await calling.read(), TunnelReadyFrame)
            sent = 0

            async def send() -> None:
                nonlocal sent
                while sent < 64 << 20:
                    await asyncio.wait_for(calling.write(TunnelData(bytes(1 << 18))), 2)
                    sent += 1 << 18

            with pytest.raises(TimeoutError):
                await send()
            assert sent <= 8 << 20

    asyncio.run(main())


class Deaf:
    """A stream that says what it is given, and whose other side takes nothing."""

    def __init__(self, *frames: Any) -> None:
        self._frames = list(frames)

    async def read(self) -> Any:
        if not self._frames:
            await asyncio.Event().wait()
        return self._frames.pop(0)

    async def write(self, frame: Any) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("kind", ["reserve", "reserve badly", "connect", "accept"])
def test_a_side_that_takes_no_frames_holds_nothing_for_ever(kind: str) -> None:
    """Its window is full from the first frame on, which no time-out of the transport ends."""

    async def main() -> None:
        async with local_relay(timing=PeerTiming(write_seconds=0.1)) as relay:
            caller, service = Identity.generate(), relay.service
            hello = introduction(caller, None)(relay.address.peer)
            calls: dict[str, Callable[[], Awaitable[None]]] = {
                "reserve": lambda: service.reserve(Deaf(ReserveFrame(hello)), "192.0.2.1"),  # type: ignore[arg-type]
                "reserve badly": lambda: service.reserve(Deaf(ReserveFrame(Signed())), "192.0.2.1"),  # type: ignore[arg-type]
                "connect": lambda: service.connect(Deaf(ConnectFrame(hello, "nobody")), "192.0.2.1"),  # type: ignore[arg-type]
                "accept": lambda: service.accept(Deaf(AcceptFrame(bytes(16)))),  # type: ignore[arg-type]
            }
            async with asyncio.timeout(60):
                if kind == "reserve":
                    with pytest.raises(DeadlineExceeded):
                        await calls[kind]()
                else:
                    await calls[kind]()
            assert service.table.peers == 0

    asyncio.run(main())


@pytest.mark.long
def test_random_frames_leave_the_relay_as_it_was() -> None:
    """Streams of any frames in any order, some dropped in the middle; afterwards nothing is held for them."""

    async def main() -> None:
        rng = random.Random(7)
        async with local_relay(timing=PeerTiming(relay_accept_seconds=0.2)) as relay:
            honest = await relay.relayed_peer()
            stub, stranger = relay.dialer().stub(relay.address), Identity.generate()
            hello = introduction(stranger, None)

            def frame() -> Any:
                return rng.choice(
                    [
                        lambda: TunnelData(rng.randbytes(rng.randint(1, 2000))),
                        lambda: AcceptFrame(rng.randbytes(16)),
                        lambda: ConnectFrame(hello(relay.address.peer), honest.peer_id),
                        lambda: ConnectFrame(Signed(rng.randbytes(50), stranger.peer_id, rng.randbytes(64)), "x"),
                    ]
                )()

            async def attack(make: Callable[[], Any]) -> None:
                stream = make()
                try:
                    for _ in range(rng.randint(1, 5)):
                        await stream.write(frame())
                    await asyncio.wait_for(stream.read(), 0.05)
                except (SwarmError, TimeoutError):
                    pass
                finally:
                    stream.cancel()

            attacks: list[Awaitable[None]] = [attack(rng.choice([stub.connect, stub.accept])) for _ in range(150)]
            for begin in range(0, len(attacks), 15):
                await asyncio.gather(*attacks[begin : begin + 15])
            table = relay.service.table
            await until(lambda: table.connections == 0)
            assert table.peers == 1
            address = relay.reach(honest)
            await ping(relay.dialer().stub(address), address, 10)

    asyncio.run(main())
