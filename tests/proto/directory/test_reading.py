"""Which nodes are asked for the shards of a look: five that keep every key, some of which are silent."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

from blockswarm.proto.directory.hivemind.daemon import HivemindTiming
from blockswarm.proto.directory.reading import READS_AT_ONCE, Reader
from blockswarm.proto.directory.shards import Shards
from blockswarm.proto.directory.signed import SignatureCache
from blockswarm.proto.wire.timing import RECORD_LIFETIME_SECONDS, RECORD_REFRESH_JITTER, RECORD_REFRESH_SECONDS
from blockswarm.routing.swarm import PeerId

KEEPERS = ("a", "b", "c", "d", "e")


class Network:
    """Answers that nothing is kept, and notes who was asked and how often was walked."""

    def __init__(self) -> None:
        self.silent: frozenset[str] = frozenset()
        self.gone: frozenset[str] = frozenset()
        """They say nothing, and `time_out` has not come."""
        self.time_out, self.has_asked = asyncio.Event(), asyncio.Event()
        self.asked: Counter[str] = Counter()
        self.walks = 0
        self.under_way: Counter[str] = Counter()
        self.most_at_once = 0
        self.shards = Shards(b"b" * 20, PeerId("me"), random.Random(1), longest_rest_seconds=30.0)
        self.shards.bits = 4
        self.keys = self.shards.next_look().keys
        places = SimpleNamespace(records_under=lambda key: {})
        settings: Any = SimpleNamespace(
            client_mode=False, places=places, clock=lambda: 1e9, cache=SignatureCache(), timing=HivemindTiming()
        )
        self.reader = Reader(settings, random.Random(1), self._ask, self._walk)

    @staticmethod
    def node() -> Any:
        timing = SimpleNamespace(patience_seconds=0.05)
        return SimpleNamespace(dht=SimpleNamespace(blacklist=set()), others=KEEPERS, timing=timing)

    async def look(self, node: Any) -> None:
        self.asked.clear()
        await self.reader.read(node, self.keys, self.shards)

    async def _ask(self, node: Any, peer: str, key: bytes) -> list[Any] | None:
        self.asked[peer] += 1
        self.has_asked.set()
        self.under_way[peer] += 1
        self.most_at_once = max(self.most_at_once, self.under_way[peer])
        await asyncio.sleep(0)
        self.under_way[peer] -= 1
        if peer in self.gone:
            await self.time_out.wait()
        if peer in self.silent | self.gone:
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


def other_tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {task for task in (asyncio.current_task(),) if task is not None}


def test_while_nodes_say_nothing_others_are_asked_and_every_node_is_waited_for_once() -> None:
    """No call to the two that are gone has ended when the look is over, and the next look asks the others first."""
    network, node = Network(), Network.node()

    async def scenario() -> None:
        network.gone = frozenset("ab")
        await network.look(node)
        assert sum(network.asked[peer] for peer in network.gone) <= 2 * READS_AT_ONCE
        assert not node.dht.blacklist
        await network.look(node)
        assert not network.asked["a"] + network.asked["b"]
        late = other_tasks()
        assert late
        network.time_out.set()
        await asyncio.wait(late)
        assert node.dht.blacklist == network.gone, "their calls went on to the end"

    asyncio.run(scenario())


def test_a_reader_that_is_closed_gives_up_what_it_waits_for_no_longer() -> None:
    network, node = Network(), Network.node()

    async def scenario() -> None:
        network.gone = frozenset("ab")
        await network.look(node)
        late = other_tasks()
        assert late
        network.reader.close()
        await asyncio.wait(late)
        assert all(call.cancelled() for call in late)

    asyncio.run(scenario())
    assert not node.dht.blacklist


def test_a_look_that_is_given_up_takes_its_calls_with_it() -> None:
    network, node = Network(), Network.node()

    async def scenario() -> None:
        network.gone = frozenset(KEEPERS)
        look = asyncio.ensure_future(network.look(node))
        await network.has_asked.wait()
        look.cancel()
        await asyncio.wait({look})
        assert look.cancelled()
        if left := other_tasks():
            await asyncio.wait(left)

    asyncio.run(scenario())
    assert not node.dht.blacklist


def test_a_record_that_is_renewed_late_outlives_a_rest_and_the_look_after_it() -> None:
    """Else a peer would be unknown to a node now and then though it announces itself in time."""
    left_when_read = RECORD_LIFETIME_SECONDS - RECORD_REFRESH_SECONDS * (1 + RECORD_REFRESH_JITTER)
    assert HivemindTiming().longest_rest_seconds + HivemindTiming().call_seconds < left_when_read
