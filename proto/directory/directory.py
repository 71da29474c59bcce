"""Where peers announce themselves and are found: one interface, three ways to reach it.

* `hivemind.node.HivemindDirectory`: a node of the DHT, in this process; for peers.
* `LookupDirectory`: asks a few known peers over the data plane; for clients. No peer is trusted: records are signed,
  and other peers make up for one that hides some.
* `MemoryDirectory`: the same promises without a network; for tests and simulations.

A directory gives hints, not facts: a record says what its owner promised less than a minute ago.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from ...routing.swarm import PeerId
from ..errors import GiveUp, LocalProtocolError, PeerUnavailable, SwarmError, UsageError
from ..wire.messages.limits import MAX_RECORDS_PER_KEY
from .signed import CHECKS_AT_ONCE, SignatureCache, SignedRecord, newest_per_peer, verify_record
from .swarm_key import dht_id

log = logging.getLogger(__name__)


class Directory(Protocol):
    @property
    def isolated(self) -> bool:
        """Whether other nodes are known and none answers: look-ups then find only this node's own records."""

    async def announce(self, record: SignedRecord) -> None:
        """Make the record visible to all; returns when another node is known to keep it.

        Raises LocalProtocolError if no node would accept it (its signature, expiry or size is wrong, or a later record
        of this peer is there), PeerUnavailable if it reached no node.
        """

    async def lookup(self, name: str) -> tuple[SignedRecord, ...]:
        """The verified, unexpired records under `name` (see `swarm_key_name`): the newest of each peer, by peer id.

        Raises PeerUnavailable if no node answered.
        """

    async def close(self) -> None:
        """Free all resources; the records stay until they expire."""


def check_announcement(record: SignedRecord, now: float, cache: SignatureCache) -> None:
    """Raise LocalProtocolError if other nodes would refuse the record."""
    try:
        verify_record(SignedRecord.decode(record.encode()), now, cache=cache)
    except SwarmError as error:
        raise LocalProtocolError(f"no node would accept this record: {error}") from None


def superseded(record: SignedRecord) -> LocalProtocolError:
    return LocalProtocolError(
        f"a later record of {record.peer_id} is there already",
        hint="Is the same key in use twice? Otherwise look up the previous record and pass its expiry to next_expiry.",
    )


async def verified_records(
    key: bytes, encoded: Iterable[bytes], now: float, cache: SignatureCache
) -> tuple[SignedRecord, ...]:
    """The valid records (key, signature, time) among the first 900 of `encoded`: the newest of each peer.

    Other work of the event loop gets its turn every eight records, about a millisecond.
    """
    records = []
    for count, data in enumerate(itertools.islice(encoded, MAX_RECORDS_PER_KEY), start=1):
        if count % CHECKS_AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            record = SignedRecord.decode(data)
            verify_record(record, now, cache=cache)
        except SwarmError as error:
            log.debug("a record is ignored: %s", error)
            continue
        if record.key == key:
            records.append(record)
    return newest_per_peer(records)


class MemoryStore:
    """The records that several MemoryDirectories share, in their encoded form."""

    def __init__(self) -> None:
        self.records: dict[bytes, dict[PeerId, bytes]] = {}


class MemoryDirectory:
    """A directory in memory. `clock` gives Unix seconds."""

    def __init__(self, store: MemoryStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._cache = SignatureCache()

    @property
    def isolated(self) -> bool:
        return False

    async def announce(self, record: SignedRecord) -> None:
        check_announcement(record, self._clock(), self._cache)
        kept = self._store.records.setdefault(record.key, {})
        encoded = record.encode()
        previous = kept.get(record.peer_id)
        if previous not in (None, encoded):
            known = await verified_records(record.key, [previous], self._clock(), self._cache)
            if known and known[0].expires_at_seconds >= record.expires_at_seconds:
                raise superseded(record)
        kept[record.peer_id] = encoded

    async def lookup(self, name: str) -> tuple[SignedRecord, ...]:
        key = dht_id(name)
        kept = self._store.records.get(key, {})
        return await verified_records(key, list(kept.values()), self._clock(), self._cache)

    async def close(self) -> None:
        pass


LookupCall = Callable[[str], Awaitable[Sequence[bytes]]]
"""Asks one peer for the encoded records under a name; raises SwarmError if that fails."""


class LookupDirectory:
    """The union of the records of several known peers; read-only.

    `lookups` maps the address of a peer to the call that asks it, and is read again at every look-up, so its owner
    may add peers as it learns of them.  All are asked at once.  As soon as two have answered, the others have
    `grace_seconds` left, so that a silent peer costs little.  `clock` gives Unix seconds.
    """

    def __init__(
        self,
        lookups: Mapping[str, LookupCall],
        clock: Callable[[], float],
        timeout_seconds: float = 5.0,
        grace_seconds: float = 0.5,
    ) -> None:
        self._lookups = lookups
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._grace_seconds = grace_seconds
        self._cache = SignatureCache()

    @property
    def isolated(self) -> bool:
        return False

    async def announce(self, record: SignedRecord) -> None:
        raise UsageError("a client looks up records but announces none", hint="Join the DHT to announce.")

    async def lookup(self, name: str) -> tuple[SignedRecord, ...]:
        answers, failures = await self._ask_all(name)
        if not answers:
            raise _no_answer(list(self._lookups), failures)
        key = dht_id(name)
        now = self._clock()
        found = [await verified_records(key, answer, now, self._cache) for answer in answers]
        return newest_per_peer([record for records in found for record in records])

    async def close(self) -> None:
        pass

    async def _ask_all(self, name: str) -> tuple[list[Sequence[bytes]], list[SwarmError]]:
        """The answers that came in time, and the failures."""
        loop = asyncio.get_running_loop()
        pending = {asyncio.ensure_future(call(name)) for call in self._lookups.values()}
        deadline = loop.time() + self._timeout_seconds
        answers: list[Sequence[bytes]] = []
        failures: list[SwarmError] = []
        try:
            while pending and (left := deadline - loop.time()) > 0:
                done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        answers.append(task.result())
                    except SwarmError as error:
                        failures.append(error)
                if len(answers) >= 2:
                    deadline = min(deadline, loop.time() + self._grace_seconds)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return answers, failures


def _no_answer(addresses: Sequence[str], failures: Sequence[SwarmError]) -> SwarmError:
    """One error for many: a reason to give up (wrong key, wrong swarm) tells more than an unreachable peer."""
    for failure in failures:
        if isinstance(failure, GiveUp):
            return failure
    reasons = "; ".join(sorted({str(failure) for failure in failures})) or "no answer in time"
    return PeerUnavailable(
        f"none of the known peers answered ({', '.join(addresses) or 'none was given'}): {reasons}",
        hint="Check the addresses and that at least one of these peers is running.",
    )
