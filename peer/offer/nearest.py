"""Chooses, out of many records, those that help the asking node most: hosts of every block that are near it.

A record says whatever its owner likes, so a choice by what records say cannot be the whole answer: every fourth record
is taken by chance.  Ids with invented places and speeds then cannot crowd out the others, and the asking node pings the
peers that it is told of.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Iterator, Sequence

from ...proto.directory.records import PeerRecord, open_peer_record
from ...proto.directory.signed import CHECKS_AT_ONCE, SignedRecord
from ...proto.directory.swarm_key import SwarmKey
from ...proto.errors import SwarmError
from ...routing.nearby import Asker, HostTable
from ...routing.swarm import PeerId

logger = logging.getLogger(__name__)

HOSTS_PER_BLOCK = 8
"""Hosts that are chosen for each block; if there is room for more records, these are taken by chance."""
BY_CHANCE = 4
"""One record in this many is taken by chance."""


class NearestHosts:
    """Reads each record once, and keeps the table of the latest ones."""

    def __init__(self, num_blocks: int, swarm_key: SwarmKey | None) -> None:
        """`num_blocks` of the model: hosts of other blocks do not count."""
        self._num_blocks = num_blocks
        self._swarm_key = swarm_key
        self._of: Sequence[SignedRecord] = ()
        self._opened: dict[PeerId, tuple[SignedRecord, PeerRecord]] = {}
        self._hosts: list[SignedRecord] = []
        self._table = HostTable.of((), num_blocks)

    def choose(
        self, records: Sequence[SignedRecord], asker: Asker, most: int, rng: random.Random
    ) -> list[SignedRecord]:
        """Return about `most` of the records, the most useful ones first; `records` is not changed.

        A peer behind a relay is reached with the relay's record, which therefore follows its own.
        """
        if records is not self._of:
            self._take(records)
        wanted = min(most, len(records))
        best = [self._hosts[i] for i in self._table.best(asker, HOSTS_PER_BLOCK, most=wanted)]
        by_chance = rng.sample(records, wanted)
        told: dict[PeerId, SignedRecord] = {}
        for record in _in_turns(best, by_chance):
            if len(told) >= wanted:
                break
            told.setdefault(record.peer_id, record)
            if (known := self._opened.get(record.peer_id)) is not None:
                for relay in known[1].relays:
                    if relay in self._opened:
                        told.setdefault(relay, self._opened[relay][0])
        return list(told.values())

    async def read(self, records: Sequence[SignedRecord]) -> None:
        """Open the records of a new look before anybody asks, yielding to other tasks on the way."""
        for number, record in enumerate(records):
            self._open(record)
            if number % CHECKS_AT_ONCE == 0:
                await asyncio.sleep(0)
        there = {record.peer_id for record in records}
        self._opened = {peer: known for peer, known in self._opened.items() if peer in there}

    def _open(self, record: SignedRecord) -> tuple[SignedRecord, PeerRecord] | None:
        """Return the record and its content, opened now or before; None if it cannot be opened."""
        known = self._opened.get(record.peer_id)
        if known is None or known[0] != record:
            try:
                known = self._opened[record.peer_id] = record, open_peer_record(record, self._swarm_key)
            except SwarmError as error:
                logger.debug("a record is ignored: %s", error)
                return None
        return known

    def _take(self, records: Sequence[SignedRecord]) -> None:
        opened = {record.peer_id: known for record in records if (known := self._open(record)) is not None}
        self._of, self._opened = records, opened
        self._hosts = [record for record, _ in opened.values()]
        self._table = HostTable.of([read.spec for _, read in opened.values()], self._num_blocks)


def _in_turns(best: Sequence[SignedRecord], by_chance: Sequence[SignedRecord]) -> Iterator[SignedRecord]:
    """The best ones, and after every third of them one by chance; then whatever is left."""
    others = iter(by_chance)
    for number, record in enumerate(best, start=1):
        yield record
        if number % (BY_CHANCE - 1) == 0:
            yield from itertools.islice(others, 1)
    yield from others
