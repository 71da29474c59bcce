"""Look-ups of other models at a peer, over real connections: made-up names of a stranger keep nobody else waiting."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.peer.offer.lookups import MAX_LOOKUPS_AT_ONCE, MAX_LOOKUPS_WAITING, RecentLookups
from blockswarm.peer.session.unary import UnaryCalls
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.signed import SignedRecord, sign_record
from blockswarm.proto.errors import PeerBusy
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, Handlers, serve
from blockswarm.proto.wire.handshake import SESSION_ID_BYTES, HelloChecker, sign_hello
from blockswarm.proto.wire.messages.calls import LookupReply, LookupRequest

PEER = Identity.generate()
RECORD = sign_record(Identity.generate(), bytes(20), b"record", 1e12)


class SlowDirectory:
    """A directory that answers when the test says so."""

    isolated = False

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._answers: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Condition()

    async def lookup(self, name: str) -> Sequence[SignedRecord]:
        async with self._changed:
            self.asked.append(name)
            self._changed.notify_all()
        await self._answers.setdefault(name, asyncio.Event()).wait()
        return (RECORD,)

    def answer(self, name: str) -> None:
        self._answers.setdefault(name, asyncio.Event()).set()

    async def wait_asked(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.asked) >= count)


async def unused(*args: Any) -> Any:
    raise AssertionError("not called in this test")


async def look_up(dialer: Dialer, address: PeerAddress, name: str) -> LookupReply:
    """Look a name up as somebody new: identities cost nothing."""
    hello = sign_hello(Identity.generate(), PEER.peer_id, bytes(SESSION_ID_BYTES), time.time(), None)
    return await dialer.stub(address).lookup(LookupRequest(name, hello), 60)


@asynccontextmanager
async def forwarded(port: int, source: str) -> AsyncIterator[int]:
    """A port from which connections go on to `port`, and come from the address `source` there."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        await asyncio.gather(pipe(reader, back), pipe(there, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of this machine")
def test_made_up_names_are_bounded_and_another_network_is_next() -> None:
    async def scenario() -> None:
        directory = SlowDirectory()
        lookups = RecentLookups(directory, "ab" * 32, None, time.time, PeerTiming())  # type: ignore[arg-type]
        parts: Any = SimpleNamespace(
            swarm_key=None, hellos=HelloChecker(PEER.peer_id, time.time, None), lookup=lookups.lookup
        )
        calls = UnaryCalls(parts)
        server, port = await serve(PEER, Handlers(unused, unused, calls.lookup, unused), "127.0.0.1", 0)
        stranger, honest = Dialer(rule=EVERY_RANGE), Dialer(rule=EVERY_RANGE)
        address, most = PeerAddress(PEER.peer_id, f"127.0.0.1:{port}"), MAX_LOOKUPS_AT_ONCE + MAX_LOOKUPS_WAITING
        async with asyncio.timeout(120), forwarded(port, "127.0.0.2") as elsewhere:
            names = [f"made up {number}" for number in range(most + 1)]
            made_up = {asyncio.create_task(look_up(stranger, address, name)) for name in names}
            (refused,), _ = await asyncio.wait(made_up, return_when=asyncio.FIRST_COMPLETED)
            with pytest.raises(PeerBusy, match="try again") as busy:
                refused.result()
            assert busy.value.retry_after_seconds > 0

            there = PeerAddress(PEER.peer_id, f"127.0.0.1:{elsewhere}")
            other_model = asyncio.create_task(look_up(honest, there, "another model"))
            done, _ = await asyncio.wait(made_up - {refused}, return_when=asyncio.FIRST_COMPLETED)
            assert all(isinstance(task.exception(), PeerBusy) for task in done), "it made room"
            directory.answer(directory.asked[0])
            await directory.wait_asked(MAX_LOOKUPS_AT_ONCE + 1)
            assert directory.asked[MAX_LOOKUPS_AT_ONCE] == "another model"
            directory.answer("another model")
            assert (await other_model).records == (RECORD.encode(),)
            for task in made_up:
                task.cancel()
            await asyncio.gather(*made_up, return_exceptions=True)
        await stranger.close()
        await honest.close()
        await server.stop(grace=0)
        await lookups.close()

    asyncio.run(scenario())
