"""/api/v1/stream: server-sent events that send each new snapshot to a browser, from the last one that it knows on.

A snapshot replaces all earlier ones, so a client that was away or is slow gets only the newest, and nothing is queued
for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ....routing.admit.shares import surplus
from ...web.callers import network_of_caller
from ...web.sending import until_gone
from ..watch.keeper import SnapshotKeeper
from .rendering import Overloaded

MOST_STREAMS = 512
"""Where all are open, the network with most gives its oldest up to one that has fewer; others are refused with 503."""
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


@dataclass(eq=False, frozen=True, slots=True)
class StreamPlace:
    """The place of one open stream."""

    network: str
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the stream has to end: another network needs its place, or the program stops."""


class Streams:
    """The open streams of one dashboard; used on its loop."""

    def __init__(self, run_id: str, most: int = MOST_STREAMS) -> None:
        """`run_id` distinguishes the snapshots of this run of the program from those of other runs."""
        self.run_id = run_id
        self._most = most
        self._held: list[StreamPlace] = []
        """The oldest come first."""
        self._stopped = False

    @property
    def count(self) -> int:
        return len(self._held)

    @contextmanager
    def place(self, network: str) -> Iterator[StreamPlace]:
        """Hold a place during the block, or until another network needs it. Raises Overloaded if there is none."""
        if len(self._held) >= self._most:
            given_up = surplus(self._held, network, lambda place: place.network)
            if given_up is None:
                raise Overloaded
            self._held.remove(given_up)
            given_up.ended.set()
        mine = StreamPlace(network)
        if self._stopped:
            mine.ended.set()
        self._held.append(mine)
        try:
            yield mine
        finally:
            if mine in self._held:
                self._held.remove(mine)

    def stop(self) -> None:
        """End all streams, and begin no new ones."""
        self._stopped = True
        for place in self._held:
            place.ended.set()


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
        """Send events until the client is gone or the place is lost. Raises Overloaded if there is none."""
        with self._streams.place(network_of_caller(scope)) as place:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            await until_gone(receive, self._send_all(send, place.ended))

    async def _send_all(self, send: Send, ended: asyncio.Event) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await write(b"retry: 3000\n\n")
        version = self._known_version()
        while not ended.is_set():
            if self._keeper.snapshot.version == version and not await self._changed(version, ended):
                await write(b":\n\n")
                continue
            if ended.is_set():
                break
            version = self._keeper.snapshot.version
            data = await self._told()
            await write(b"id: %s\nevent: snapshot\ndata: %s\n\n" % (self._id_of(version), data))
            await asyncio.sleep(self._pause_seconds)
        await write(b"", more=False)

    async def _changed(self, version: int, ended: asyncio.Event) -> bool:
        """Wait for a new snapshot or the end of the stream; return False if neither comes within `idle_seconds`."""
        changed = asyncio.ensure_future(self._keeper.after(version))
        waiting = {changed, asyncio.ensure_future(ended.wait())}
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
