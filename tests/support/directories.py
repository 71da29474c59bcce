"""Small swarms of directories: in memory, through look-ups, and real DHT nodes on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blockswarm.proto.directory.directory import Directory, LookupDirectory, MemoryDirectory, MemoryStore
from blockswarm.proto.directory.signed import SignedRecord, sign_record
from blockswarm.proto.directory.swarm_key import SwarmKey, dht_id
from blockswarm.proto.identity import Identity

if TYPE_CHECKING:
    from blockswarm.proto.directory.hivemind.daemon import HivemindTiming

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)

_Result = TypeVar("_Result")
_names = itertools.count()


class AdjustableClock:
    """The real time, moved by `offset_seconds`."""

    def __init__(self) -> None:
        self.offset_seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset_seconds


class DirectorySwarm:
    """`announcers` and `readers` of one swarm; `run` runs a coroutine in the one loop that they all live in."""

    def __init__(self) -> None:
        self.clock = AdjustableClock()
        self.announcers: Sequence[Any] = ()
        self.readers: Sequence[Any] = ()
        self.identities: Sequence[Identity] = ()
        """Those of the announcers, where they are nodes."""
        self._runner = asyncio.Runner()

    def run(self, coroutine: Coroutine[Any, Any, _Result], timeout_seconds: float = 120.0) -> _Result:
        async def bounded() -> _Result:
            async with asyncio.timeout(timeout_seconds):
                return await coroutine

        return self._runner.run(bounded())

    def close(self) -> None:
        async def close_all() -> None:
            for directory in reversed([*self.announcers, *self.readers]):
                await directory.close()

        self.run(close_all())
        self._runner.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that tells nobody when it happens; the caller's timeout bounds the wait."""
    while not condition():  # noqa: ASYNC110 -- there is no event to wait for
        await asyncio.sleep(0.01)


def memory_swarm() -> DirectorySwarm:
    swarm = DirectorySwarm()
    store = MemoryStore()
    swarm.announcers = swarm.readers = [MemoryDirectory(store, swarm.clock) for _ in range(2)]
    return swarm


def lookup_swarm() -> DirectorySwarm:
    """Clients that ask two peers, each of which answers from its own directory in the encoded form."""
    swarm = memory_swarm()

    def ask(directory: Directory) -> Any:
        async def call(name: str) -> list[bytes]:
            return [record.encode() for record in await directory.lookup(name)]

        return call

    peers = {f"peer-{index}:1": ask(directory) for index, directory in enumerate(swarm.announcers)}
    swarm.readers = [LookupDirectory(peers, swarm.clock)]
    return swarm


def hivemind_swarm(
    folder: Path, num_nodes: int, swarm_key: SwarmKey | None = None, timing: HivemindTiming | None = None
) -> DirectorySwarm:
    """Real DHT nodes, each with its own daemon."""
    from blockswarm.proto.directory.hivemind.node import HivemindDirectory

    swarm = DirectorySwarm()

    async def start() -> list[HivemindDirectory]:
        nodes: list[HivemindDirectory] = []
        for index in range(num_nodes):
            initial = await nodes[0].visible_maddrs() if nodes else ()
            path = folder / f"identity-{index}"
            node = await HivemindDirectory.start(path, initial, LOOPBACK, swarm_key, swarm.clock, timing=timing)
            nodes.append(node)
        return nodes

    swarm.announcers = swarm.readers = swarm.run(start())
    swarm.identities = [Identity.load_or_create(folder / f"identity-{index}") for index in range(num_nodes)]
    return swarm


def fresh_name() -> str:
    """A name under which no test has stored anything."""
    return hashlib.sha256(b"name %d" % next(_names)).hexdigest()


def a_record(owner: Identity, name: str, expires_at_seconds: float, payload: bytes = b"payload") -> SignedRecord:
    return sign_record(owner, dht_id(name), payload, expires_at_seconds)
