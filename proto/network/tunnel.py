"""The two ends of a tunnel through a relay: bytes of a local socket <-> frames of a stream at the relay.

gRPC cannot use a transport of the caller's.  So on the dialling side the channel connects to a socket on loopback
(`LocalEnd`), and on the other side the peer connects the relay's stream to its own port.  TLS runs inside, from one
node to the other: the relay sees only sizes, and the pin on the peer's id holds.

Memory is bounded: each direction has one frame in flight, the contents of a socket's two buffers, and gRPC's window.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..errors import PeerUnavailable, RemoteProtocolError, SwarmError
from ..wire.messages.limits import MAX_TUNNEL_BYTES
from ..wire.messages.relay import TunnelCall, TunnelData, TunnelReadyFrame, TunnelReply
from ..wire.messages.session import FailureFrame
from .address import LOOPBACK
from .streams import DialedStream

logger = logging.getLogger(__name__)

MAX_LOCAL_CONNECTIONS = 4
"""Simultaneous connections of one channel: the working one, and those that gRPC is about to give up."""
BUFFER_BYTES = MAX_TUNNEL_BYTES // 2
"""Buffer limit of a socket's reader, bytes; it stops reading at twice as much."""

TunnelStream = DialedStream[TunnelReply, TunnelCall]


async def pump(stream: TunnelStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Move bytes both ways until one side ends, then close both.

    Raises SwarmError if the relay refuses or fails, or sends invalid frames.
    """
    ways = [
        asyncio.create_task(_upward(reader, stream), name="into a tunnel"),
        asyncio.create_task(_downward(stream, writer), name="out of a tunnel"),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        ended = [way for way in ways if way.done()]
    finally:
        stream.cancel()
        writer.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    for way in ended:
        if not way.cancelled():
            way.result()


async def _upward(reader: asyncio.StreamReader, stream: TunnelStream) -> None:
    with suppress(OSError):  # the local side is gone, whatever the reason
        while data := await reader.read(MAX_TUNNEL_BYTES):
            await stream.write(TunnelData(data))


async def _downward(stream: TunnelStream, writer: asyncio.StreamWriter) -> None:
    ready = False
    while (frame := await stream.read()) is not None:
        if isinstance(frame, FailureFrame):
            raise frame.error
        if isinstance(frame, TunnelReadyFrame) == ready:
            raise RemoteProtocolError("a relay says once, and first, that a connection is ready")
        if isinstance(frame, TunnelReadyFrame):
            ready = True
            continue
        writer.write(frame.data)
        with suppress(OSError):
            await writer.drain()
    if not ready:
        raise PeerUnavailable("the relay ended the connection before it was there")


class LocalEnd:
    """The dialling end of the tunnels to one peer: every connection to `target` goes through its own tunnel."""

    def __init__(self, connect: Callable[[], Awaitable[TunnelStream]]) -> None:
        """`connect` opens a stream at the relay that leads to the peer; it raises SwarmError.

        Raises PeerUnavailable if this machine has no socket left.
        """
        self._connect = connect
        try:
            self._socket = socket.create_server((LOOPBACK, 0), backlog=MAX_LOCAL_CONNECTIONS)
        except OSError as error:
            raise PeerUnavailable(f"there is no socket for a tunnel: {error.strerror}") from error
        self._socket.setblocking(False)
        self.target = f"{LOOPBACK}:{self._socket.getsockname()[1]}"
        self._room = asyncio.Semaphore(MAX_LOCAL_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._accept(), name="tunnels to a peer")

    async def close(self) -> None:
        """End all connections."""
        tasks = [self._task, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                accepted, _ = await loop.sock_accept(self._socket)
            except OSError as error:
                logger.debug("a local connection was not accepted: %s", error)
                self._room.release()
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self._carry(accepted), name="tunnel")
            self._tasks.add(task)
            task.add_done_callback(self._carried)

    def _carried(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _carry(self, accepted: socket.socket) -> None:
        """Carry one connection; however it ends, its socket is closed, which tells gRPC."""
        reader, writer = await asyncio.open_connection(sock=accepted, limit=BUFFER_BYTES)
        try:
            await pump(await self._connect(), reader, writer)
        except SwarmError as error:
            logger.debug("a tunnel has ended: %s", error)
        finally:
            writer.close()
