"""Ports on loopback behind which no peer is: they count who knocks, and say nothing or hang up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class SilentPort:
    """A port that takes connections; `hang_up`: and ends them at once."""

    def __init__(self, hang_up: bool) -> None:
        self.knocks = 0
        self.open = 0
        """Connections that are open now."""
        self.port = 0
        self.changed = asyncio.Condition()
        self._hang_up = hang_up

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def until_knocks(self, count: int, seconds: float) -> bool:
        """Whether there are `count` knocks within that time."""
        try:
            async with asyncio.timeout(seconds), self.changed:
                await self.changed.wait_for(lambda: self.knocks >= count)
        except TimeoutError:
            return False
        return True

    async def until_left(self) -> None:
        """Return when nobody is connected."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.open == 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.knocks += 1
        self.open += 1
        await self._tell()
        try:
            if not self._hang_up:
                while await reader.read(1 << 16):
                    pass
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.open -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


@asynccontextmanager
async def silent_port(*, hang_up: bool = False) -> AsyncIterator[SilentPort]:
    """A port on loopback for the time of the block."""
    port = SilentPort(hang_up)
    server = await asyncio.start_server(port._serve, "127.0.0.1", 0)
    port.port = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
