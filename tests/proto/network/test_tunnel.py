"""The ends of a tunnel: bytes arrive as they were sent, and nothing that a relay says breaks more than its tunnel."""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from blockswarm.proto.errors import PeerBusy, PeerUnavailable, RemoteProtocolError, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import HostPort, PeerAddress, RelayedAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, ping
from blockswarm.proto.network.tunnel import MAX_LOCAL_CONNECTIONS, LocalEnd, pump
from blockswarm.proto.wire.messages.limits import MAX_TUNNEL_BYTES
from blockswarm.proto.wire.messages.relay import TunnelData, TunnelReadyFrame
from blockswarm.proto.wire.messages.session import FailureFrame


class FakeRelay:
    """The relay's stream, as the end of a tunnel sees it: `say` puts frames, `heard` has those that came."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = False

    def say(self, *frames: Any) -> None:
        for frame in frames:
            self._said.put_nowait(frame)

    @property
    def unread(self) -> int:
        return self._said.qsize()

    async def read(self) -> Any:
        frame = await self._said.get()
        if isinstance(frame, SwarmError):
            raise frame
        return frame

    async def write(self, frame: Any) -> None:
        await self.heard.put(frame)

    def cancel(self) -> None:
        self.cancelled = True


@asynccontextmanager
async def local_end(*relays: FakeRelay) -> AsyncIterator[LocalEnd]:
    """Every connection gets the next of the relays; a further one is refused."""
    remaining = list(relays)

    async def connect() -> Any:
        if not remaining:
            raise PeerBusy(1.0)
        return remaining.pop(0)

    end = LocalEnd(connect)
    try:
        yield end
    finally:
        await end.close()


async def dial(end: LocalEnd) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    target = HostPort.parse(end.target)
    return await asyncio.open_connection(target.host, target.port)


def test_bytes_arrive_as_they_were_sent_in_both_directions() -> None:
    async def main() -> None:
        rng, relay = random.Random(1), FakeRelay()
        there, back = rng.randbytes(700_001), [rng.randbytes(size) for size in (1, 70_000, MAX_TUNNEL_BYTES, 3)]
        async with local_end(relay) as end:
            reader, writer = await dial(end)
            with closing(writer):
                relay.say(TunnelReadyFrame(), *map(TunnelData, back))
                writer.write(there)
                got = await asyncio.wait_for(reader.readexactly(sum(map(len, back))), 60)
                assert got == b"".join(back)
                heard = b""
                while len(heard) < len(there):
                    frame = await asyncio.wait_for(relay.heard.get(), 60)
                    assert 0 < len(frame.data) <= MAX_TUNNEL_BYTES
                    heard += frame.data
                assert heard == there

    asyncio.run(main())


@pytest.mark.parametrize(
    "frames",
    [
        [FailureFrame.of(PeerUnavailable("no such peer"))],
        [None],
        [PeerUnavailable("the connection broke")],
        [TunnelData(b"too early")],
        [TunnelReadyFrame(), TunnelReadyFrame()],
        [TunnelReadyFrame(), None],
        [TunnelReadyFrame(), FailureFrame.of(PeerBusy(1.0))],
    ],
    ids=["refused", "ended", "broke", "data too early", "ready twice", "ended later", "failed later"],
)
def test_however_a_relay_ends_a_connection_its_socket_is_closed(frames: list[Any]) -> None:
    """That is how gRPC hears of it; and the next connection is another one."""

    async def main() -> None:
        first, second = FakeRelay(), FakeRelay()
        async with local_end(first, second) as end:
            reader, writer = await dial(end)
            with closing(writer):
                first.say(*frames)
                assert await asyncio.wait_for(reader.read(), 60) == b""
                assert first.cancelled
            reader, writer = await dial(end)
            with closing(writer):
                second.say(TunnelReadyFrame(), TunnelData(b"hello"))
                assert await asyncio.wait_for(reader.readexactly(5), 60) == b"hello"

    asyncio.run(main())


def test_a_relay_that_cannot_be_asked_closes_the_socket_too() -> None:
    async def main() -> None:
        async with local_end() as end:
            reader, writer = await dial(end)
            with closing(writer):
                assert await asyncio.wait_for(reader.read(), 60) == b""

    asyncio.run(main())


def test_when_the_local_side_goes_the_relay_is_told() -> None:
    async def main() -> None:
        relay = FakeRelay()
        async with local_end(relay) as end:
            _, writer = await dial(end)
            relay.say(TunnelReadyFrame())
            writer.close()
            async with asyncio.timeout(60):
                while not relay.cancelled:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_reader_that_takes_nothing_stops_the_relay() -> None:
    """The relay would send 256 MiB; no more is read than the buffers of the sockets hold."""

    async def main() -> None:
        relay = FakeRelay()
        async with local_end(relay) as end:
            _, writer = await dial(end)
            with closing(writer):
                relay.say(TunnelReadyFrame(), *[TunnelData(bytes(MAX_TUNNEL_BYTES))] * 1024)
                before = -1
                async with asyncio.timeout(60):
                    while before != relay.unread:
                        before = relay.unread
                        await asyncio.sleep(0.1)
                assert relay.unread > 1024 - 64

    asyncio.run(main())


def test_a_channel_has_few_connections_at_once() -> None:
    async def main() -> None:
        relays = [FakeRelay() for _ in range(MAX_LOCAL_CONNECTIONS + 1)]
        async with local_end(*relays) as end:
            made = [await dial(end) for _ in relays]
            for relay in relays:
                relay.say(TunnelReadyFrame(), TunnelData(b"x"))
            for reader, _ in made[:-1]:
                assert await asyncio.wait_for(reader.readexactly(1), 60) == b"x"
            assert relays[-1].unread == 2, "the last one waits"
            made[0][1].close()
            assert await asyncio.wait_for(made[-1][0].readexactly(1), 60) == b"x"
            for _, writer in made:
                writer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([FailureFrame.of(PeerUnavailable("no such peer"))], PeerUnavailable),
        ([TunnelData(b"too early")], RemoteProtocolError),
        ([None], PeerUnavailable),
    ],
)
def test_the_reason_of_a_relay_is_raised(frames: list[Any], error: type[SwarmError]) -> None:
    async def main() -> None:
        relay = FakeRelay()
        relay.say(*frames)
        accepted: asyncio.Future[Callable[[], None]] = asyncio.get_running_loop().create_future()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await pump(relay, reader, writer)
            except SwarmError as raised:
                accepted.set_exception(raised)

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
            with closing(writer), pytest.raises(error):
                await asyncio.wait_for(accepted, 60)

    asyncio.run(main())


def test_without_a_socket_for_it_a_peer_behind_a_relay_is_not_reached() -> None:
    """An error of another class would end a peer that only looks whether another one is there."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        relay, hidden = Identity.generate().peer_id, Identity.generate().peer_id
        dialer = Dialer(rule=EVERY_RANGE)
        reach = RelayedAddress(hidden, PeerAddress(relay, "127.0.0.1:1"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(PeerUnavailable, match="no socket"):
                await ping(dialer.stub(reach), reach, 5.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await dialer.close()

    asyncio.run(main())
