"""A swarm of this process on a loop in a thread of its own, so that a program with its own loops can talk to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.swarm import LocalSwarm, local_swarm


class SwarmThread:
    """Made by `swarm_thread`."""

    def __init__(self, folder: Path, *ranges: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._context = local_swarm(folder, *ranges, **options)
        self.swarm: LocalSwarm = self.run(self._context.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    @property
    def initial(self) -> list[str]:
        return ["--initial-peers", str(self.swarm.peers[0].address)]

    def wait_idle(self) -> None:
        """Until no peer holds a session; fails if that takes long."""

        async def idle() -> None:
            async with asyncio.timeout(60):
                for peer in self.swarm.peers:
                    await peer.service.wait_idle()

        self.run(idle())

    def close(self) -> None:
        self.run(self._context.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def swarm_thread(folder: Path, *ranges: str, **options: Any) -> Iterator[SwarmThread]:
    """A swarm with one peer per range ("0:2") for the time of a block."""
    thread = SwarmThread(folder, *ranges, **options)
    try:
        yield thread
    finally:
        thread.close()
