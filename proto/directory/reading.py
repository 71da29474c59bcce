"""How a node reads the records of a swarm: which nodes it asks for each key of a look.

The base key of a small swarm has all records: all nodes that keep it are asked, and the next ones in the place of those
that are silent.  Of a shard, of which a look reads many, the nodes that keep it are remembered (`keepers.py`).  One of
them will do if it has whatever was there before, renewed; otherwise, and the first time, two are asked and their
records united.  Records prove themselves, so that a node can only leave some out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from ...routing.swarm import PeerId
from ..errors import PeerUnavailable
from .directory import verified_records
from .hivemind.daemon import NodeSettings, RunningNode
from .hivemind.entries import Entry, encoded_in, entries_of
from .hivemind.exchange import REPLICAS, ask, at_nearest, in_turns, nearest_nodes
from .keepers import Keepers, fresh_owners, those_that_left_out
from .shards import Shards
from .signed import SignedRecord, newest_per_peer

log = logging.getLogger(__name__)

FEW_ANSWERS = 2
READS_AT_ONCE = 6
"""Keys that are read side by side, of all looks: a node answers eight calls of another one at a time."""
BEAM = 2 * REPLICAS
"""Nodes that are asked on a walk to a shard's key, at least."""

Call = asyncio.Future[Sequence[Entry] | None]
Ask = Callable[[RunningNode, Any, bytes], Awaitable[Sequence[Entry] | None]]
NearestNodes = Callable[[RunningNode, bytes, bool, int], Awaitable[Sequence[Any]]]


class Reader:
    """Reads keys for one directory, and remembers who keeps them."""

    def __init__(
        self, settings: NodeSettings, rng: random.Random, ask: Ask = ask, nearest_nodes: NearestNodes = nearest_nodes
    ) -> None:
        """`ask` and `nearest_nodes` reach the network, for shards."""
        self._settings = settings
        self._ask = ask
        self._nearest_nodes = nearest_nodes
        self._rng = rng
        self._keepers = self._no_keepers()
        self._turn = asyncio.Semaphore(READS_AT_ONCE)
        self._node: RunningNode | None = None
        """The node that has found them; one that is started again has the addresses of few."""
        self._late: dict[Call, Any] = {}
        """Calls that are waited for no longer, and the nodes that they are to."""

    async def read(
        self, node: RunningNode, keys: Sequence[bytes], shards: Shards
    ) -> dict[bytes, Sequence[SignedRecord]]:
        """The records under each key of a look. Raises PeerUnavailable if that fails for all of them."""
        if node is not self._node:
            self._node, self._keepers = node, self._no_keepers()
        failures: list[PeerUnavailable] = []

        async def read(key: bytes) -> Sequence[SignedRecord]:
            async with self._turn:
                try:
                    if key == shards.base and not shards.bits:
                        return await self._read_of_all(node, key, shards)
                    return await self._read_of_some(node, key, shards)
                except PeerUnavailable as error:
                    log.debug("a key is not read: %s", error)
                    failures.append(error)
                    return shards.under(key)

        found = dict(zip(keys, await asyncio.gather(*map(read, keys)), strict=True))
        if len(failures) == len(keys):
            raise failures[0]
        return found

    def _no_keepers(self) -> Keepers[Any]:
        timing = self._settings.timing
        return Keepers(self._rng, timing.keepers_seconds, timing.distrust_seconds)

    def close(self) -> None:
        """Give up the calls that are waited for no longer."""
        for call in tuple(self._late):
            call.cancel()

    async def _read_of_all(self, node: RunningNode, key: bytes, shards: Shards) -> Sequence[SignedRecord]:
        """The records of all nodes that keep a key, or of two where these have many."""
        with_self = not self._settings.client_mode
        answers: Mapping[Any, list[Entry]] = {}
        if not shards.has_few(key):
            answers = await at_nearest(node, key, with_self, lambda peer: ask(node, peer, key), FEW_ANSWERS, self._rng)
        if not shards.is_many(max(map(len, answers.values()), default=0)):
            answers = await at_nearest(node, key, with_self, lambda peer: ask(node, peer, key))
        shards.received(sum(len(entry.value) for answer in answers.values() for entry in answer))
        return await self._verified(shards.base, [self._own(key), *answers.values()])

    async def _read_of_some(self, node: RunningNode, key: bytes, shards: Shards) -> Sequence[SignedRecord]:
        """The records of one node that keeps a key, or of two. Raises PeerUnavailable if none answers."""
        own = await self._verified(shards.base, [self._own(key)])
        expected = frozenset(record.peer_id for record in shards.under(key))
        nodes = self._keepers.of(key, time.monotonic())
        answers = await self._ask_in_turn(node, key, shards, nodes, expected - self._fresh(own), 1) if nodes else {}
        if not answers:
            nodes = tuple(await self._nearest_nodes(node, key, not self._settings.client_mode, BEAM))
            self._keepers.found(key, nodes, time.monotonic())
            nodes = self._keepers.of(key, time.monotonic())
            answers = await self._ask_in_turn(node, key, shards, nodes, expected, FEW_ANSWERS)
        if not answers and node.others:
            raise PeerUnavailable("no node that keeps a key of the DHT answers")
        fresh = {peer: self._fresh(records) for peer, records in answers.items()}
        for peer in those_that_left_out(fresh, expected):
            self._keepers.left_out(peer, time.monotonic())
            self._keepers.forget(key)
        return newest_per_peer([*own, *(record for records in answers.values() for record in records)])

    async def _ask_in_turn(
        self,
        node: RunningNode,
        key: bytes,
        shards: Shards,
        nodes: Sequence[Any],
        expected: Collection[PeerId],
        enough: int,
    ) -> dict[Any, Sequence[SignedRecord]]:
        """The answers of the first `enough` nodes, and of two if these lack an owner that is expected.

        While nodes are silent for longer than `patience_seconds`, the next ones are asked as well: many may be gone.
        """
        answers: dict[Any, Sequence[SignedRecord]] = {}
        calls: dict[Call, Any] = {}
        waiting, late = list(nodes), set[Call]()
        try:
            while len(answers) < enough and (waiting or calls):
                self._put_silent_last(node, waiting)
                for _ in range(min(enough - len(answers) - len(calls.keys() - late), len(waiting))):
                    peer = waiting.pop(0)
                    calls[asyncio.ensure_future(self._ask(node, peer, key))] = peer
                patience = node.timing.patience_seconds if waiting else None
                done, _ = await asyncio.wait(calls, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                late = late - done if done else set(calls)
                for call in done:
                    peer, answer = calls.pop(call), call.result()
                    if answer is None:
                        self._keepers.is_silent(key, peer)
                        continue
                    shards.received(sum(len(entry.value) for entry in answer))
                    answers[peer] = await self._verified(shards.base, [answer])
                present = frozenset(owner for records in answers.values() for owner in self._fresh(records))
                if answers and not present >= frozenset(expected):
                    enough = FEW_ANSWERS
        except BaseException:
            for call in calls:
                call.cancel()
            raise
        self._leave(key, calls)
        return answers

    def _put_silent_last(self, node: RunningNode, peers: list[Any]) -> None:
        """Sort nodes that do not answer behind the others: they would be waited for at every key."""
        late = set(self._late.values())
        peers.sort(key=lambda peer: peer in node.dht.blacklist or peer in late)

    def _leave(self, key: bytes, calls: Mapping[Call, Any]) -> None:
        """Wait no longer for calls, which end by their own time-out and say then whether the node is gone."""

        def note(call: Call) -> None:
            peer = self._late.pop(call)
            if not call.cancelled() and call.exception() is None and call.result() is None:
                self._keepers.is_silent(key, peer)

        for call, peer in calls.items():
            self._late[call] = peer
            call.add_done_callback(note)

    def _own(self, key: bytes) -> list[Entry]:
        return entries_of(self._settings.places.records_under(key))

    def _fresh(self, records: Sequence[SignedRecord]) -> frozenset[PeerId]:
        return fresh_owners(records, self._settings.clock())

    async def _verified(self, base: bytes, answers: Sequence[Sequence[Entry]]) -> tuple[SignedRecord, ...]:
        encoded = (encoded for entry in in_turns(answers, self._rng) if (encoded := encoded_in(entry.value)))
        return await verified_records(base, encoded, self._settings.clock(), self._settings.cache)
