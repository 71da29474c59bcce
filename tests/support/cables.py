"""A network that can go away: everything that a node hears from others passes through a cable that a test can cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket


class Cable:
    """Forwards TCP connections from `port` on loopback to `target_port`.

    While it is cut nothing passes, in either direction, and nobody is told: connections stay open, and new ones are
    taken and stay silent, as when packets are lost.  What was sent meanwhile arrives when it is mended, as TCP repeats
    it.  All in the event loop in which it was laid.
    """

    def __init__(self) -> None:
        self.port = 0
        self.target_port = 0
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @classmethod
    async def lay(cls, target_port: int) -> Cable:
        self = cls()
        self.target_port = target_port
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with contextlib.closing(writer):
            await self._whole.wait()
            try:
                back, there = await asyncio.open_connection("127.0.0.1", self.target_port)
            except OSError:
                return
            with contextlib.closing(there):
                ways = [
                    asyncio.ensure_future(self._pass(reader, there)),
                    asyncio.ensure_future(self._pass(back, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()


def free_port() -> int:
    """A port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
