"""/api/v1/stream: server-sent events that send each new snapshot to a browser, from the last one that it knows on.

A snapshot replaces all earlier ones, so a client that was away or is slow gets only the newest, and nothing is queued
for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...web.sending import until_gone
from ..watch.keeper import SnapshotKeeper

MOST_STREAMS = 512
"""Further streams are refused with 503."""
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Streams:
    """The open streams of one dashboard; used on its loop."""

    def __init__(self, run_id: str) -> None:
        """`run_id` distinguishes the snapshots of this run of the program from those of other runs."""
        self.count = 0
        self.run_id = run_id
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        """End all streams, and begin no new ones."""
        self.stopped.set()


class SnapshotStream(Response):
    """One stream, to one client."""

    def __init__(
        self,
        streams: Streams,
        keeper: SnapshotKeeper,
        last_id: str,
        told: Callable[[], Awaitable[bytes]],
        *,
        pause_seconds: float,
        idle_seconds: float,
    ) -> None:
        """`last_id` is the last event that the client has; `told` returns the JSON of the newest snapshot.

        Sends at most one event per `pause_seconds`, and a comment after `idle_seconds` without one; a client that reads
        neither is taken as gone.
        """
        super().__init__()
        self._streams = streams
        self._keeper = keeper
        self._last_id = last_id
        self._told = told
        self._pause_seconds = pause_seconds
        self._idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client is gone or the streams are stopped."""
        self._streams.count += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            await until_gone(receive, self._send_all(send))
        finally:
            self._streams.count -= 1

    async def _send_all(self, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await write(b"retry: 3000\n\n")
        version = self._known_version()
        while not self._streams.stopped.is_set():
            if self._keeper.snapshot.version == version and not await self._changed(version):
                await write(b":\n\n")
                continue
            if self._streams.stopped.is_set():
                break
            version = self._keeper.snapshot.version
            data = await self._told()
            await write(b"id: %s\nevent: snapshot\ndata: %s\n\n" % (self._id_of(version), data))
            await asyncio.sleep(self._pause_seconds)
        await write(b"", more=False)

    async def _changed(self, version: int) -> bool:
        """Wait for a new snapshot or the end of the streams; return False if neither comes within `idle_seconds`."""
        changed = asyncio.ensure_future(self._keeper.after(version))
        stopped = asyncio.ensure_future(self._streams.stopped.wait())
        waiting = {changed, stopped}
        try:
            done, _ = await asyncio.wait(waiting, timeout=self._idle_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        return bool(done)

    def _known_version(self) -> int:
        run_id, _, version = self._last_id.rpartition("-")
        return int(version) if run_id == self._streams.run_id and version.isdecimal() and len(version) < 16 else -1

    def _id_of(self, version: int) -> bytes:
        return f"{self._streams.run_id}-{version}".encode()
