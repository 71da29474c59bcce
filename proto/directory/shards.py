"""Records of a large swarm spread over several DHT keys. Pure: which keys a node writes and reads next, no I/O.

**Keys.** Every record is written under the base key, the one of its name, and where there are many also under one of
2^b shard keys.  A peer's shard follows from the first b bits of an HMAC over base key and peer id, so nobody needs to
be asked, and the shards of b + 1 bits are the halves of those of b.  The record is the same: it is signed for the base
key, and a node that is asked to keep it under a shard key can check that it belongs there (`belongs_under`).

**The number of shards** is no claim of anybody: every node finds it by itself, from the records that it has seen.  As
long as the base key is not full it has all records, and is all that is read.  Beyond, the records of the node's own
group (the two shards that share its first b - 1 bits) and those of groups that are read in turn are counted; the median
of these counts, times the number of groups, is the size of the swarm, so that ids that were chosen to fall into one
group move nobody far.  b grows when a shard has more than 300 records and shrinks when it has fewer than 100; between
the two it stays.  Nodes that disagree, by one as a rule, still find and count each other: of its own group a node also
reads the shards of b - 1 and b + 1 bits, and where these have records, those of other groups as well.  b is at most 7,
whatever is stored, and a look reads a bounded number of keys.

**At 900 records in the base key** it is full, at each of the nodes that keep it.  Those that are there stay: a renewed
record keeps its place, however many others ask for one.  A newcomer gets a place when one becomes free (its owner has
left, or let its record run out), or if its network has at least two places fewer than the network with the most, whose
youngest record goes (`hivemind/places.py`).  So the set changes only as peers come and go.  A peer that is not kept
there is found by its shard, which it has written since there were 300, and asks again every five minutes or so.

**Beyond**, the five nodes near the base key must not be asked more the more peers there are: in a swarm of k times 900
a peer reads the full base key, and asks it for a place again, k times more rarely.
"""

from __future__ import annotations

import functools
import hmac
import random
import statistics
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ...routing.swarm import PeerId
from ..wire.messages.limits import MAX_RECORDS_PER_KEY
from .signed import KEY_BYTES, SignedRecord, newest_per_peer

MAX_BITS = 7
"""128 shards, of 300 records each as a rule: 38,400 peers."""
MOST_PER_SHARD = 300
LEAST_PER_SHARD = 100
FULL = MAX_RECORDS_PER_KEY * 9 // 10
"""Records under the base key from which on some may be missing there."""
MAX_KNOWN = 4 * MAX_RECORDS_PER_KEY
"""Records that are remembered from look to look, 11 MB at most."""
MANY = 100
"""Records under a key from which on it is read from two nodes."""
PACED = 30
"""Records under a key from which on a look is followed by a rest."""
ALL_ANSWERS, FEW_ANSWERS = 5, 2
READ_BYTES_PER_SECOND = 25e3
"""Pace at which a node reads records, on average: as much again is asked of it."""
LONGEST_REST = 40.0
"""Seconds without a look; a record lives for 60."""
MAX_NAMES = 16
"""Names of others that are remembered."""
COUNTED_GROUPS = 7
"""Groups whose last counts are remembered."""
PATIENCE = 15
"""Announcements for which a peer that the full base key has no place for does not ask again, if it is just full."""
BASE_EVERY = 16
"""One look in this many reads the base key, if it is just full."""
NEIGHBOURS_EVERY = 4
"""One look in this many reads the shards of one bit more and one bit less that were empty before."""
_ALL_BITS = range(1, MAX_BITS + 1)


def prefix_of(base: bytes, peer: PeerId, bits: int) -> int:
    """The first bits of a peer's place among the shards of a base key."""
    digest = hmac.digest(base, b"blockswarm-shard-of\0" + peer.encode(), "sha256")
    return int.from_bytes(digest[:2], "big") >> (16 - bits)


@functools.lru_cache(maxsize=4096)
def shard_key(base: bytes, bits: int, prefix: int) -> bytes:
    """The DHT id of a shard."""
    return hmac.digest(base, b"blockswarm-shard\0" + bytes([bits, prefix]), "sha256")[:KEY_BYTES]


def keys_of(base: bytes, peer: PeerId) -> tuple[bytes, ...]:
    """Every key under which a record of a peer may be kept: the base key first, then by bits."""
    return (base, *(shard_key(base, bits, prefix_of(base, peer, bits)) for bits in _ALL_BITS))


def belongs_under(key: bytes, base: bytes, peer: PeerId) -> bool:
    """Whether a record of a peer that is signed for `base` may be kept under `key`."""
    return key == base or key in keys_of(base, peer)


def bits_for(peers: float, before: int) -> int:
    """The bits of a swarm of this size, for a node that had `before`: it stays as it is while that will do."""
    bits = before
    while bits < MAX_BITS and peers / 2**bits > MOST_PER_SHARD:
        bits += 1
    while bits > 0 and peers / 2**bits < LEAST_PER_SHARD:
        bits -= 1
    return bits


@dataclass(frozen=True, slots=True)
class ReadingList:
    """The keys that a node reads in one look."""

    keys: tuple[bytes, ...]
    groups: tuple[int, ...] = ()
    """The groups of which these are all shards."""
    probe: bool = False
    """The keys are the node's own shards for every number of bits from 1 on, after the base key."""


class Shards:
    """The records under one base key as one node has seen them, and what that says about the next keys. Bounded."""

    def __init__(self, base: bytes, own: PeerId, rng: random.Random) -> None:
        self.bits = 0
        """Number of bits of the shard that this node writes; 0: the base key only."""
        self.peers = 0
        """About how many records there are."""
        self.read_at = float("-inf")
        """When the last look was over, on the monotonic clock."""
        self.base = base
        self.own = own
        self._rng = rng
        self._records: OrderedDict[PeerId, SignedRecord] = OrderedDict()
        """The ones that were seen last come last."""
        self._counts: dict[bytes, int] = {}
        """Records under each key when it was read last."""
        self._groups: OrderedDict[int, int] = OrderedDict()
        """Records of the groups that were read last."""
        self._turn: list[int] = []
        """Groups that are still to be read in this turn."""
        self._looks = 0
        self._without_base = 0
        self._rest_until = float("-inf")
        self._received_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the base key may lack some records."""
        return self._counts.get(self.base, 0) >= FULL

    @property
    def times_full(self) -> int:
        """How many times over the base key could be filled; at least 1."""
        return max(self.peers // MAX_RECORDS_PER_KEY, 1)

    # --- reading ---

    def next_look(self) -> ReadingList:
        """The base key as long as it is not full; then at most fourteen keys.

        A node that knows nothing of the shards probes.  Otherwise it reads its own group and another one in its turn,
        and now and then the base key, for which five nodes answer to all.
        """
        self._looks += 1
        if not self.is_full:
            return ReadingList((self.base,))
        if not self._groups:
            own = (shard_key(self.base, bits, prefix_of(self.base, self.own, bits)) for bits in _ALL_BITS)
            return ReadingList((self.base, *own), probe=True)
        if self._looks % (BASE_EVERY * self.times_full) == 0:
            return ReadingList((self.base, *self._shards_in(self._own_group, True)), (self._own_group,))
        groups = dict.fromkeys((self._own_group, self._next_group()))
        keys = [key for group in groups for key in self._shards_in(group, group == self._own_group)]
        return ReadingList(tuple(keys), tuple(groups))

    def is_due(self, monotonic: float) -> bool:
        """Whether it is time for another look: a look at many records is followed by a rest."""
        return monotonic >= self._rest_until

    def has_many(self, key: bytes) -> bool:
        """Whether there were many records under a key when it was read last."""
        return self._counts.get(key, 0) > MANY

    def answers_from(self, key: bytes) -> int:
        """The number of nodes that are asked for the records under a key, out of the five that keep them."""
        return FEW_ANSWERS if self.has_many(key) else ALL_ANSWERS

    def received(self, count: int) -> None:
        """Bytes have come in a look that is under way."""
        self._received_bytes += count

    def took(self, look: ReadingList, found: Mapping[bytes, Sequence[SignedRecord]], monotonic: float) -> None:
        """Take what was found under the keys of a look."""
        if max(map(len, found.values()), default=0) > PACED or self.is_full:
            self._rest_until = monotonic + min(self._received_bytes / READ_BYTES_PER_SECOND, LONGEST_REST)
        self._received_bytes, self.read_at = 0, monotonic
        if not self.is_full and len(found.get(self.base, ())) < FULL:
            self._records.clear()  # all are there
        for key, records in found.items():
            self._counts[key] = len(records)
            for record in records:
                known = self._records.pop(record.peer_id, record)
                self._records[record.peer_id] = newest_per_peer([known, record])[0]
        while len(self._records) > MAX_KNOWN:
            self._records.popitem(last=False)
        self.peers = self._size_from(look, found)
        bits = bits_for(self.peers, self._bits_before(look, found))
        if bits != self.bits and not look.probe:
            self._groups.clear()  # to be probed
        if bits != self.bits:
            self.bits = bits
            self._turn.clear()
            self._counts = {self.base: self._counts.get(self.base, 0)}

    def known(self, now: float) -> tuple[SignedRecord, ...]:
        """The records that were seen and are not over, by peer id."""
        for peer in [peer for peer, record in self._records.items() if record.expires_at_seconds <= now]:
            del self._records[peer]
        return tuple(self._records[peer] for peer in sorted(self._records))

    def in_group(self, peer: PeerId) -> bool:
        """Whether a peer is in this node's own group: that is all peers as long as the base key has them all."""
        return not self.is_full or prefix_of(self.base, peer, self._group_bits) == self._own_group

    # --- writing ---

    def keys_to_write(self) -> tuple[bytes, ...]:
        """The keys under which the node's next record goes; the base key first, unless that would have no place."""
        shard = (shard_key(self.base, self.bits, prefix_of(self.base, self.own, self.bits)),) if self.bits else ()
        self._without_base = min(self._without_base, PATIENCE * self.times_full)  # the swarm may have shrunk
        if self._without_base and shard:
            self._without_base -= 1
            return shard
        return (self.base, *shard)

    def wrote(self, refused: Collection[bytes]) -> None:
        """The base key need not be tried again soon if nobody has kept the record there, and the shard's nodes have."""
        if self.base in refused and self.is_full:
            patience = PATIENCE * self.times_full
            self._without_base = self._rng.randint(patience * 2 // 3, patience)

    # --- groups ---

    @property
    def _group_bits(self) -> int:
        return max(self.bits - 1, 0)

    @property
    def _own_group(self) -> int:
        return prefix_of(self.base, self.own, self._group_bits)

    def _bits_before(self, look: ReadingList, found: Mapping[bytes, Sequence[SignedRecord]]) -> int:
        """The bits that stay if they will do: after a probe those of the most records, which are the swarm's."""
        if not look.probe:
            return self.bits
        counts = {bits: len(found.get(key, ())) for bits, key in zip(_ALL_BITS, look.keys[1:], strict=True)}
        most = max(counts, key=lambda bits: (counts[bits], -bits))
        return most if counts[most] else self.bits

    def _size_from(self, look: ReadingList, found: Mapping[bytes, Sequence[SignedRecord]]) -> int:
        """About how many records there are."""
        if not self.is_full or not (look.probe or look.groups):
            return self._counts.get(self.base, 0)
        if look.probe:
            sizes = {bits: len(found.get(key, ())) for bits, key in zip(_ALL_BITS, look.keys[1:], strict=True)}
            size = max(FULL, sum(count << bits for bits, count in sizes.items()))
            bits = bits_for(size, self._bits_before(look, found))
            self._groups[prefix_of(self.base, self.own, max(bits - 1, 0))] = round(size / 2 ** max(bits - 1, 0))
            return size
        peers = {record.peer_id for key, records in found.items() if key != self.base for record in records}
        of_group = Counter(prefix_of(self.base, peer, self._group_bits) for peer in peers)
        for group in look.groups:
            self._groups.pop(group, None)
            self._groups[group] = of_group[group]
        while len(self._groups) > COUNTED_GROUPS:
            self._groups.popitem(last=False)
        return max(FULL, round(statistics.median(self._groups.values())) << self._group_bits)

    def _shards_in(self, group: int, is_own: bool) -> list[bytes]:
        """The shards of a group, and those of one bit more or less, if they have any in this node's own group."""
        if self.bits == 0:
            return [self.base]
        every_one = is_own and self._looks % NEIGHBOURS_EVERY == 0
        mine = self._neighbours(self._own_group)
        keys = [shard_key(self.base, self.bits, 2 * group + half) for half in (0, 1)]
        for others, those_of_mine in zip(self._neighbours(group), mine, strict=True):
            if is_own:
                keys += [key for key in others if every_one or self._counts.get(key, 1)]
            elif any(self._counts.get(key, 1) for key in those_of_mine):
                keys += others
        return keys

    def _neighbours(self, group: int) -> tuple[list[bytes], list[bytes]]:
        """The shards of a group for one bit less, and for one more."""
        less = [shard_key(self.base, self.bits - 1, group)] if self.bits > 1 else []
        more = range(4 * group, 4 * group + 4) if self.bits < MAX_BITS else ()
        return less, [shard_key(self.base, self.bits + 1, quarter) for quarter in more]

    def _next_group(self) -> int:
        if not self._turn:
            self._turn = self._rng.sample(range(2**self._group_bits), 2**self._group_bits)
        return self._turn.pop()


class ShardsByName:
    """The shards of a node's own names, and of a few that others have asked it for."""

    def __init__(self, peer: PeerId) -> None:
        self.own: frozenset[bytes] = frozenset()
        """The base keys under which the node announces itself: strangers' questions displace none of these."""
        self._peer = peer
        self._rng = random.Random()
        self._shards: dict[bytes, Shards] = {}

    def of(self, base: bytes) -> Shards:
        """The shards of a base key; those that were asked for first are forgotten."""
        if base not in self._shards:
            foreign = [key for key in self._shards if key not in self.own]
            for key in foreign[: max(len(foreign) + 1 - MAX_NAMES, 0)]:
                del self._shards[key]
            self._shards[base] = Shards(base, self._peer, self._rng)
        return self._shards[base]
