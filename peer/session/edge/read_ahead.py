"""A session's stream while the session waits for room: it is read, and any frame but a probe is too early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ....proto.errors import RemoteProtocolError, SessionLost, SwarmError
from ....proto.network.streams import Stream
from ....proto.wire.messages.session import ProbeFrame
from ....proto.wire.messages.streams import ClientFrame, PeerFrame


class ReadAhead:
    """Reads the next frame before anybody asks for it.

    Otherwise early frames would stay in gRPC's buffers, half a megabyte for each session that waits.
    """

    def __init__(self, stream: Stream[ClientFrame, PeerFrame]) -> None:
        self._stream = stream
        self._next: asyncio.Task[ClientFrame | None] | None = None
        self._waits = False

    def begin(self, too_early: Callable[[SwarmError], None]) -> None:
        """Start to read; `too_early` gets the error for a frame, or the stream's end, that comes during the wait."""

        def heard(reading: asyncio.Task[ClientFrame | None]) -> None:
            if reading.cancelled() or not self._waits:
                return
            error = reading.exception()
            if isinstance(error, SwarmError):
                too_early(error)
            elif error is None and reading.result() is None:
                too_early(SessionLost("the client has gone"))
            elif error is None:
                too_early(RemoteProtocolError("a session that waits for room sends nothing but probes"))

        self._waits = True
        self._next = asyncio.create_task(self._read_on(), name="read ahead")
        self._next.add_done_callback(heard)

    async def _read_on(self) -> ClientFrame | None:
        """Return the next frame; probes are not answered while the session waits."""
        while isinstance(frame := await self._stream.read(), ProbeFrame) and self._waits:
            pass
        return frame

    def admitted(self) -> None:
        """Note that the session waits no longer: frames are for its reader from now on."""
        self._waits = False

    async def read(self) -> ClientFrame | None:
        """Return the next frame; None at the end of the stream. Raises SwarmError."""
        if self._next is None:
            return await self._stream.read()
        reading, self._next = self._next, None
        return await reading

    async def write(self, frame: PeerFrame) -> None:
        await self._stream.write(frame)

    async def close(self) -> None:
        """Stop reading."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
