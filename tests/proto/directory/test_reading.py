"""Which nodes are asked for the shards of a look: five that keep every key, some of which are silent."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

from blockswarm.proto.directory.reading import READS_AT_ONCE, Reader
from blockswarm.proto.directory.shards import Shards
from blockswarm.proto.directory.signed import SignatureCache
from blockswarm.routing.swarm import PeerId

KEEPERS = ("a", "b", "c", "d", "e")


class Network:
    """Answers that nothing is kept, and notes who was asked and how often was walked."""

    def __init__(self) -> None:
        self.silent: frozenset[str] = frozenset()
        self.asked: Counter[str] = Counter()
        self.walks = 0
        self.under_way: Counter[str] = Counter()
        self.most_at_once = 0
        self.shards = Shards(b"b" * 20, PeerId("me"), random.Random(1))
        self.shards.bits = 4
        self.keys = self.shards.next_look().keys
        places = SimpleNamespace(records_under=lambda key: {})
        settings: Any = SimpleNamespace(client_mode=False, places=places, clock=lambda: 1e9, cache=SignatureCache())
        self.reader = Reader(settings, random.Random(1), self._ask, self._walk)

    @staticmethod
    def node() -> Any:
        return SimpleNamespace(dht=SimpleNamespace(blacklist=set()), others=KEEPERS)

    async def look(self, node: Any) -> None:
        self.asked.clear()
        await self.reader.read(node, self.keys, self.shards)

    async def _ask(self, node: Any, peer: str, key: bytes) -> list[Any] | None:
        self.asked[peer] += 1
        self.under_way[peer] += 1
        self.most_at_once = max(self.most_at_once, self.under_way[peer])
        await asyncio.sleep(0)
        self.under_way[peer] -= 1
        if peer in self.silent:
            node.dht.blacklist.add(peer)
            return None
        return []

    async def _walk(self, *_: object) -> list[str]:
        self.walks += 1
        return list(KEEPERS)


def test_nodes_that_are_silent_are_not_waited_for_at_every_key() -> None:
    network, node = Network(), Network.node()

    async def scenario() -> None:
        await network.look(node)
        assert all(network.asked[peer] > READS_AT_ONCE for peer in KEEPERS)
        network.silent = frozenset("abc")
        await network.look(node)

    asyncio.run(scenario())
    assert sum(network.asked[peer] for peer in network.silent) <= 2 * READS_AT_ONCE
    assert network.walks == len(network.keys), "two of each five answer"


def test_a_node_that_was_started_again_seeks_the_keepers_again() -> None:
    """Its daemon knows no addresses of those that the one before has met, and would take all of them for silent."""
    network = Network()

    async def scenario() -> None:
        for node in (network.node(), network.node()):
            await network.look(node)
            await network.look(node)

    asyncio.run(scenario())
    assert network.walks == 2 * len(network.keys)


def test_looks_at_a_time_ask_no_node_more_than_it_answers() -> None:
    """A call too many is refused, and its node would be taken for silent."""
    network, node = Network(), Network.node()

    async def scenario() -> None:
        await asyncio.gather(*(network.look(node) for _ in range(4)))

    asyncio.run(scenario())
    assert network.most_at_once <= READS_AT_ONCE
