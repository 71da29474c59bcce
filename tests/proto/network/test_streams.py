"""Streams of values: what cannot be read, and whatever gRPC raises, is an error of that stream and names the peer."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from blockswarm.proto.errors import DeadlineExceeded, PeerUnavailable, RemoteProtocolError, SessionLost, SwarmError
from blockswarm.proto.network.streams import ERROR_CODE_KEY, CalledStream, ServedStream, StreamEnded
from blockswarm.proto.wire.frames import ChunkFrame
from blockswarm.proto.wire.messages.session import ProbeFrame, StatusFrame
from blockswarm.proto.wire.messages.streams import CLIENT_FRAME, PEER_FRAME


def failed(code: grpc.StatusCode, number: str | None = None) -> grpc.aio.AioRpcError:
    trailer = grpc.aio.Metadata(*([] if number is None else [(ERROR_CODE_KEY, number)]))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailer, "gone")


class Bytes:
    """gRPC's side of a stream: gives `said`, or raises it, and keeps what is written."""

    def __init__(self, said: bytes | object) -> None:
        self.said = said
        self.written: list[bytes] = []
        self.cancelled = False

    async def read(self) -> Any:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    async def write(self, data: bytes) -> None:
        if isinstance(self.said, Exception):
            raise self.said
        self.written.append(data)

    def cancel(self) -> None:
        self.cancelled = True


def called(said: object) -> tuple[Any, Bytes]:
    call = Bytes(said)
    return CalledStream(call, "QmPeer@h:1", PEER_FRAME, CLIENT_FRAME), call


def served(said: object) -> tuple[Any, Bytes]:
    context = Bytes(said)
    return ServedStream(context, CLIENT_FRAME, PEER_FRAME), context  # type: ignore[arg-type]


def test_values_go_in_and_come_out() -> None:
    async def main() -> None:
        stream, call = called(PEER_FRAME.encode(StatusFrame(1, 2, 3, 4)))
        assert await stream.read() == StatusFrame(1, 2, 3, 4)
        await stream.write(ProbeFrame(7))
        other, context = served(call.written[0])
        assert await other.read() == ProbeFrame(7)
        await other.write(ChunkFrame(b"x"))
        assert PEER_FRAME.decode(context.written[0]) == ChunkFrame(b"x")
        stream.cancel()
        assert call.cancelled

    asyncio.run(main())


@pytest.mark.parametrize("side", [called, served])
def test_the_end_of_a_stream_is_none(side: Any) -> None:
    assert asyncio.run(side(grpc.aio.EOF)[0].read()) is None


@pytest.mark.parametrize("side", [called, served])
def test_what_is_no_frame_is_refused_without_a_word_in_the_log(side: Any, caplog: pytest.LogCaptureFixture) -> None:
    """gRPC's own deserialisers log a traceback and give None, on which the first use fails."""
    with pytest.raises(RemoteProtocolError, match=r"QmPeer@h:1|a ClientFrame is not readable"):
        asyncio.run(side(b"\xff" * 20)[0].read())
    assert not caplog.records


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (failed(grpc.StatusCode.UNAVAILABLE), PeerUnavailable),
        (failed(grpc.StatusCode.ABORTED, "14"), DeadlineExceeded),
        (failed(grpc.StatusCode.ABORTED, "99999"), SessionLost),
        (grpc.aio.UsageError("finished"), SessionLost),
        (asyncio.InvalidStateError("finished"), SessionLost),
    ],
)
def test_what_grpc_raises_names_the_peer(raised: Exception, wanted: type[SwarmError]) -> None:
    for use in (lambda stream: stream.read(), lambda stream: stream.write(ProbeFrame(1))):
        with pytest.raises(wanted, match="QmPeer@h:1"):
            asyncio.run(use(called(raised)[0]))


@pytest.mark.parametrize("raised", [grpc.aio.UsageError("finished"), grpc.aio.InternalError("batch failed")])
def test_a_served_stream_whose_caller_is_gone_has_ended(raised: Exception) -> None:
    for use in (lambda stream: stream.read(), lambda stream: stream.write(StatusFrame(1, 2, 3, 4))):
        with pytest.raises(StreamEnded):
            asyncio.run(use(served(raised)[0]))
