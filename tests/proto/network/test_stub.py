"""The calls of a peer that speaks HTTP/2 as it likes: whatever it says, its caller hears of a SwarmError."""

from __future__ import annotations

import asyncio

import pytest
from blockswarm.proto.errors import RemoteProtocolError, SwarmError
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.stub import PeerStub
from blockswarm.proto.network.transport import Dialer, ping
from blockswarm.proto.wire.messages.calls import LookupRequest
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.proto.wire.messages.relay import ReachRequest
from blockswarm.proto.wire.messages.streams import PeerFrame
from support.raw_http2 import CONTENT, GOAWAY, RST_STREAM, Answer, frame, headers, message, raw_http2_peer

SECONDS = 5.0


def ended(*fields: tuple[str, str]) -> Answer:
    """All that is said is how the call has ended."""
    return lambda stream: headers(stream, [*CONTENT, *fields], ends=True)


def said(content: bytes, status: str, *fields: tuple[str, str], flag: int = 0) -> Answer:
    """A message, and then how the call has ended."""
    return lambda stream: (
        headers(stream, [*CONTENT, *fields])
        + message(stream, content, flag)
        + headers(stream, [("grpc-status", status)], ends=True)
    )


WELL = ended(("grpc-status", "0"))
ANSWERS = {
    "it ends well and says nothing": WELL,
    "a status that is not known": ended(("grpc-status", "99")),
    "a status below zero": ended(("grpc-status", "-1")),
    "a status of many digits": ended(("grpc-status", "9" * 40)),
    "a status that is no number": ended(("grpc-status", "all is well")),
    "words that are not UTF-8": ended(("grpc-status", "2"), ("grpc-message", "\xff%ff%c3")),
    "an error of ours that is no number": ended(("grpc-status", "10"), ("blockswarm-error", "\xff")),
    "an error of ours that is not known": ended(("grpc-status", "10"), ("blockswarm-error", "999")),
    "a field that is not base64": ended(("grpc-status", "10"), ("blockswarm-error-bin", "!!")),
    "a page of the web": lambda stream: headers(stream, [(":status", "404")], ends=True),
    "a message and an unknown status": said(b"", "77"),
    "a message that is none": said(b"\xff" * 50, "0"),
    "a message that is not compressed as it says": said(b"junk", "0", ("grpc-encoding", "gzip"), flag=1),
    "a message in an unknown form": said(b"junk", "0", ("grpc-encoding", "zzz"), flag=1),
    "the stream is broken off": lambda stream: frame(RST_STREAM, 0, stream, bytes(4)),
    "the connection is given up": lambda stream: frame(GOAWAY, 0, 0, bytes(8)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_none_is_an_error_of_ours(name: str) -> None:
    async def main() -> None:
        async with raw_http2_peer(ANSWERS[name]) as address:
            dialer = Dialer(rule=EVERY_RANGE)
            stub = dialer.stub(address)
            with pytest.raises(SwarmError):
                await ping(stub, address, SECONDS)
            with pytest.raises(SwarmError):
                await stub.lookup(LookupRequest("key", Signed()), SECONDS)
            with pytest.raises(SwarmError):
                await stub.reach(ReachRequest(Signed(), 1), SECONDS)
            assert await first_frame(stub) is None or name.startswith("a message and")
            await dialer.close()

    asyncio.run(main())


async def first_frame(stub: PeerStub) -> PeerFrame | None:
    """None also where there is a SwarmError instead."""
    stream = stub.session()
    try:
        return await stream.read()
    except SwarmError:
        return None
    finally:
        stream.cancel()


def test_a_call_without_an_answer_names_the_peer() -> None:
    async def main() -> None:
        async with raw_http2_peer(WELL) as address:
            dialer = Dialer(rule=EVERY_RANGE)
            with pytest.raises(RemoteProtocolError, match=f"{address}: the call Ping"):
                await ping(dialer.stub(address), address, SECONDS)
            await dialer.close()

    asyncio.run(main())
