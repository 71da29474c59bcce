"""Records of a swarm spread over several DHT keys. Pure: which keys a node writes and reads next, no I/O.

**Keys.** The base key is that of the swarm's name.  If there are more than a few records, every record is written under
one of 2^b shard keys.  A peer's shard is given by the first b bits of an HMAC over base key and peer id, so any node
can compute it, and the shards of b + 1 bits are the halves of those of b.  The record is the same: it is signed for the
base key, and a node that is asked to keep it under a shard key can check that it belongs there (`belongs_under`).  The
keys of all shards lie at even distances in the DHT, so that its nodes share them evenly: five nodes keep each key, and
answer everybody who reads it.

**The base key** is where a newcomer begins.  All peers write there while they are few.  In a larger swarm a sample
writes there, chosen by another part of the same HMAC, half as large for each further bit.  The HMACs in the sample tell
how large the swarm is.

**The number of shards** is not announced: every node derives it from the records that it has seen.  It counts the
records of its own group (up to 32 shards) and of parts that it reads in turn, and takes the median of the swarm sizes
that follow from these, so that ids chosen to fall into one group have little effect.  b grows when a shard has more
than 20 records and shrinks when it has fewer than 5; in between it stays.  If a swarm grows or shrinks many times over
at once, b changes by several, and for some looks nodes miss others (docs/design/announcements.md).  A peer whose b
changes also writes under the earlier keys for six more minutes.  Nodes whose b differs by one find each other: in its
own group a node also reads the shards of b - 1 and b + 1 bits that have records, and every few looks those that had
none; if its own group has some, it does the same in other groups.

**A look** reads the node's own group, and one other group in turn, or half of one if there are many.  Up to about 1,280
peers these are all.  b is at most 11, whatever is stored, and a look reads a bounded number of keys.
"""

from __future__ import annotations

import functools
import hmac
import random
import statistics
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...routing.swarm import PeerId
from ..wire.messages.limits import MAX_RECORDS_PER_KEY
from .signed import KEY_BYTES, SignedRecord, newest_per_peer

MAX_BITS = 11
"""2,048 shards, normally of at most 20 records each: 40,960 peers."""
MOST_PER_SHARD = 20
LEAST_PER_SHARD = 5
BITS_IN_GROUP = 5
"""A group has 32 shards."""
MAX_PART = 2 ** (BITS_IN_GROUP - 1)
"""The most shards of another group that are read in one look, if there are more than two groups."""
SAMPLE_BITS = 2
"""Number of bits up to which all peers write under the base key."""
MAX_KNOWN = 4 * MAX_RECORDS_PER_KEY
"""Records that are remembered from look to look, 11 MB at most."""
MAX_KEYS = 1024
"""Keys whose record owners are remembered."""
MANY = 20
"""Number of records under the base key above which it is read from two nodes, as a shard is at first."""
PACED = 10
"""Number of records under a key above which a look is followed by a rest."""
READ_BYTES_PER_SECOND = 10e3
"""Average pace at which a node reads records; other nodes read as much from it."""
MAX_NAMES = 16
"""Names asked for by other nodes that are remembered."""
COUNTED_PARTS = 7
"""Parts of the swarm whose last counts are remembered."""
BASE_EVERY = 16
"""One look in this many reads the base key, in a swarm of 800; proportionally fewer in a larger one."""
BASE_PEERS = 800
NEIGHBOURS_EVERY = 6
"""One look in this many reads the shards of one bit more and one bit less that were empty before."""
OVERLAP_ANNOUNCEMENTS = 18
"""Announcements under the earlier keys after a change: as long as `NEIGHBOURS_EVERY` looks at the slowest pace."""
_ALL_BITS = range(1, MAX_BITS + 1)


def _place_of(base: bytes, peer: PeerId) -> tuple[int, int]:
    """Two numbers of 16 bits: a peer's place among the shards of a base key, and in the sample."""
    digest = hmac.digest(base, b"blockswarm-shard-of\0" + peer.encode(), "sha256")
    return int.from_bytes(digest[:2], "big"), int.from_bytes(digest[2:4], "big")


def prefix_of(base: bytes, peer: PeerId, bits: int) -> int:
    """The first bits of a peer's place among the shards of a base key."""
    prefix: int = _place_of(base, peer)[0] >> (16 - bits)
    return prefix


@functools.lru_cache(maxsize=4096)
def shard_key(base: bytes, bits: int, prefix: int) -> bytes:
    """The DHT id of a shard. The ids for one number of bits lie at even distances, because each has another prefix."""
    begin = hmac.digest(base, b"blockswarm-shards\0" + bytes([bits]), "sha256")[:2]
    place = (prefix << (16 - bits)) ^ int.from_bytes(begin, "big")
    rest = hmac.digest(base, b"blockswarm-shard\0" + bytes([bits]) + prefix.to_bytes(2, "big"), "sha256")
    return place.to_bytes(2, "big") + rest[2:KEY_BYTES]


def keys_of(base: bytes, peer: PeerId) -> tuple[bytes, ...]:
    """Every key under which a record of a peer may be kept: the base key first, then by bits."""
    place = _place_of(base, peer)[0]
    return (base, *(shard_key(base, bits, place >> (16 - bits)) for bits in _ALL_BITS))


def belongs_under(key: bytes, base: bytes, peer: PeerId) -> bool:
    """Whether a peer's record that is signed for `base` may be kept under `key`."""
    return key == base or key in keys_of(base, peer)


def bits_for(peers: float, before: int) -> int:
    """The number of bits for a swarm of this size, for a node that had `before`, which is kept as long as possible."""
    bits = before
    while bits < MAX_BITS and peers / 2**bits > MOST_PER_SHARD:
        bits += 1
    while bits > 0 and peers / 2**bits < LEAST_PER_SHARD:
        bits -= 1
    return bits


def in_sample(base: bytes, peer: PeerId, bits: int) -> bool:
    """Whether a peer writes under the base key while its shard has this number of bits."""
    value = _place_of(base, peer)[1]
    return value < 2**16 >> max(bits - SAMPLE_BITS, 0)


def size_of_sample(base: bytes, peers: Sequence[PeerId]) -> int:
    """The approximate number of peers, given those under the base key; at least their number."""
    if not peers:
        return 0
    middle = statistics.median(float(_place_of(base, peer)[1]) for peer in peers) + 1.0
    return max(len(peers), round(len(peers) * min(2**15 / middle, float(2**MAX_BITS))))


Part = tuple[int, int]
"""Number of bits, and the prefix of that length that all peers of the part have."""


@dataclass(frozen=True, slots=True)
class ReadingList:
    """The keys that a node reads in one look."""

    keys: tuple[bytes, ...]
    parts: tuple[Part, ...] = ()
    """The parts of the swarm that these keys cover completely."""
    probe: bool = False
    """The keys are the node's own shards for every number of bits from 1 on, after the base key."""


class Shards:
    """The records under one base key that a node has seen, and the keys to read and write next. Bounded."""

    def __init__(self, base: bytes, own: PeerId, rng: random.Random, longest_rest_seconds: float) -> None:
        """`longest_rest_seconds`: longest time after a look until the next one is due."""
        self.bits = 0
        """Number of bits of the shard that this node writes; 0: the base key only."""
        self.peers = 0
        """Approximate number of records."""
        self.read_at = float("-inf")
        """When the last look was over, on the monotonic clock."""
        self.base = base
        self.own = own
        self._rng = rng
        self._longest_rest_seconds = longest_rest_seconds
        self._records: OrderedDict[PeerId, SignedRecord] = OrderedDict()
        """The ones that were seen last come last."""
        self._under: OrderedDict[bytes, frozenset[PeerId]] = OrderedDict()
        """The owners of the records under each key when it was last read."""
        self._sizes: OrderedDict[Part, int] = OrderedDict()
        """The size of the swarm as estimated from each of the last parts that were read."""
        self._earlier: dict[int, int] = {}
        """Former numbers of bits, and for how many more announcements their keys are written."""
        self._turn: list[Part] = []
        """Parts still to be read in this turn."""
        self._must_probe = False
        self._looks = 0
        self._rest_until = float("-inf")
        self._received_bytes = 0

    @property
    def has_groups(self) -> bool:
        """Whether the swarm is so large that a look reads only a part of it."""
        return self._group_bits > 0

    @property
    def is_settled(self) -> bool:
        """Whether the last look read the keys that hold the swarm's records; a newcomer has to find these first."""
        return not self._must_probe and (self.bits == 0 or bool(self._sizes))

    # --- reading ---

    def next_look(self) -> ReadingList:
        """The base key while it has all records; else the own group's shards and, in turn, a part of the others.

        A node that knows nothing about the shards probes.  The base key is read only now and then, because the same
        five nodes answer all its readers.
        """
        self._looks += 1
        if self._must_probe:
            own = (shard_key(self.base, bits, prefix_of(self.base, self.own, bits)) for bits in _ALL_BITS)
            return ReadingList((self.base, *own), probe=True)
        if self.bits == 0:
            return ReadingList((self.base,))
        mine = (self._group_bits, self._own_group)
        parts = dict.fromkeys((mine, *self._next_part()))
        keys = dict.fromkeys(key for part in parts for key in self._shards_in(part, part == mine))
        if self._looks % (BASE_EVERY * max(self.peers // BASE_PEERS, 1)) == 0:
            keys[self.base] = None
        return ReadingList(tuple(keys), tuple(parts))

    def is_due(self, monotonic: float) -> bool:
        """Whether the next look is due: a look at many records is followed by a rest."""
        return monotonic >= self._rest_until

    def has_many(self, key: bytes) -> bool:
        """Whether there were many records under a key when it was last read."""
        return self.is_many(len(self._under.get(key, ())))

    @staticmethod
    def is_many(records: int) -> bool:
        """Whether this is so large a number of records under a key that it should not be read more than necessary."""
        return records > MANY

    def has_few(self, key: bytes) -> bool:
        """Whether a key is known to have only few records."""
        return key in self._under and not self.has_many(key)

    def under(self, key: bytes) -> tuple[SignedRecord, ...]:
        """The newest known records of the owners that had one under a key when it was last read."""
        return tuple(self._records[peer] for peer in sorted(self._under.get(key, ())) if peer in self._records)

    def received(self, count: int) -> None:
        """Count bytes received in the look in progress."""
        self._received_bytes += count

    def took(self, look: ReadingList, found: Mapping[bytes, Sequence[SignedRecord]], monotonic: float) -> None:
        """Take in the records found under the keys of a look."""
        if self.bits or max(map(len, found.values()), default=0) > PACED:
            rest = min(self._received_bytes / READ_BYTES_PER_SECOND, self._longest_rest_seconds)
            self._rest_until = monotonic + rest
        self._received_bytes, self.read_at = 0, monotonic
        if self.bits == 0 and not look.probe:
            self._records.clear()  # all are there
        self._remember(found)
        in_base = [record.peer_id for record in found.get(self.base, ())]
        if look.probe:
            self._must_probe = False
            self.peers = max(size_of_sample(self.base, in_base), 1)
            mine = zip(_ALL_BITS, look.keys[1:], strict=True)
            counts = {bits: sum(r.peer_id != self.own for r in found.get(key, ())) for bits, key in mine}
            likely = max(counts, key=lambda bits: (min(counts[bits], MOST_PER_SHARD), -bits))
            most = max(bits_for(self.peers, likely if counts[likely] else 0), 1)
            if not counts[likely] and len(in_base) <= MOST_PER_SHARD:
                self.peers, most = len(in_base), 0  # there are no shards: these are all
            self._change_to(min(max(most, likely - 2), likely + 2) if counts[likely] else most)
        elif look.parts:
            before, size = self.bits, self._size_from(look.parts, found)
            lost = len({record.peer_id for records in found.values() for record in records} | {self.own}) == 1
            bits = 0 if lost else bits_for(size, self.bits)
            self.peers = size
            self._change_to(min(max(bits, self.bits - 1), self.bits + 2) if bits else 0)
            many_more = bits_for(size_of_sample(self.base, in_base), self.bits) > self.bits
            self._must_probe = many_more and bits == before  # others write shards that are not read here
        else:
            self.peers = len(in_base)
            doubt = self._looks % NEIGHBOURS_EVERY == 1 and self.peers >= LEAST_PER_SHARD
            size = size_of_sample(self.base, in_base) if doubt else self.peers  # a score may be a sample of many
            self._must_probe = size > MOST_PER_SHARD

    def known(self, now: float) -> tuple[SignedRecord, ...]:
        """The known records that have not expired, by peer id."""
        for peer in [peer for peer, record in self._records.items() if record.expires_at_seconds <= now]:
            del self._records[peer]
        return tuple(self._records[peer] for peer in sorted(self._records))

    def in_group(self, peer: PeerId) -> bool:
        """Whether a peer is in this node's own group; all peers are, as long as a look reads them all."""
        return prefix_of(self.base, peer, self._group_bits) == self._own_group

    # --- writing ---

    def keys_to_write(self) -> tuple[bytes, ...]:
        """The keys for the next record: those that others read and, for a while after a change, the former ones."""
        levels = (self.bits, *(bits for bits in self._earlier if bits != self.bits))
        base = [self.base] if any(in_sample(self.base, self.own, bits) for bits in levels) else []
        self._earlier = {bits: left - 1 for bits, left in self._earlier.items() if left > 1}
        return (*base, *(shard_key(self.base, b, prefix_of(self.base, self.own, b)) for b in levels if b))

    # --- groups ---

    @property
    def _group_bits(self) -> int:
        return max(self.bits - BITS_IN_GROUP, 0)

    @property
    def _own_group(self) -> int:
        return prefix_of(self.base, self.own, self._group_bits)

    def _remember(self, found: Mapping[bytes, Sequence[SignedRecord]]) -> None:
        for key, records in found.items():
            self._under.pop(key, None)
            self._under[key] = frozenset(record.peer_id for record in records)
            for record in records:
                known = self._records.pop(record.peer_id, record)
                self._records[record.peer_id] = newest_per_peer([known, record])[0]
        while len(self._records) > MAX_KNOWN:
            self._records.popitem(last=False)
        while len(self._under) > MAX_KEYS:
            self._under.popitem(last=False)

    def _change_to(self, bits: int) -> None:
        if bits == self.bits:
            return
        if self.bits:  # a node that was at 0 has written where newcomers look
            self._earlier[self.bits] = OVERLAP_ANNOUNCEMENTS
        self._earlier.pop(bits, None)
        self.bits = bits
        self._turn.clear()
        if bits == 0:
            self._sizes.clear()

    def _size_from(self, parts: Iterable[Part], found: Mapping[bytes, Sequence[SignedRecord]]) -> int:
        """About how many records there are."""
        places = {r.peer_id: _place_of(self.base, r.peer_id)[0] for rs in found.values() for r in rs}
        for bits, prefix in parts:
            self._sizes.pop((bits, prefix), None)
            inside = Counter(place >> (16 - bits) for place in places.values())[prefix]
            self._sizes[bits, prefix] = inside << bits
        while len(self._sizes) > COUNTED_PARTS:
            self._sizes.popitem(last=False)
        if not self._group_bits:
            return self._sizes[0, 0]
        return max(round(statistics.median(self._sizes.values())), 1)

    def _shards_in(self, part: Part, is_own: bool) -> list[bytes]:
        """The shards of a part, and those of one bit more or less, if they have any in this node's own group."""
        keys = self._at(self.bits, part)
        mine = (self._group_bits, self._own_group)
        again = is_own and self._looks % NEIGHBOURS_EVERY == 0
        for bits in (self.bits - 1, self.bits + 1):
            if is_own:
                keys += [key for key in self._at(bits, part) if again or self._under.get(key, True)]
            elif any(self._under.get(key) for key in self._at(bits, mine)):
                keys += self._at(bits, part)
        return keys

    def _at(self, bits: int, part: Part) -> list[bytes]:
        """The shards of a number of bits that make up a part; the base key stands for the shard of none."""
        if bits == 0:
            return [self.base]
        if bits > MAX_BITS:
            return []
        shift = max(bits - part[0], 0)
        first = (part[1] << shift) >> max(part[0] - bits, 0)
        return [shard_key(self.base, bits, first + number) for number in range(2**shift)]

    def _next_part(self) -> list[Part]:
        """The next part of the other groups, in turn; none if there is only one group."""
        group_bits = self._group_bits
        if not group_bits:
            return []
        if not self._turn:
            bits = group_bits if group_bits == 1 else self.bits - (BITS_IN_GROUP - 1)
            all_parts = [(bits, prefix) for prefix in range(2**bits)]
            others = [part for part in all_parts if part[1] >> (bits - group_bits) != self._own_group]
            self._turn = self._rng.sample(others, len(others))
        return [self._turn.pop()]


class ShardsByName:
    """The shards of a node's own names, and of a few names that others have asked it for."""

    def __init__(self, peer: PeerId, longest_rest_seconds: float) -> None:
        self.own: frozenset[bytes] = frozenset()
        """The base keys under which the node announces itself; queries of strangers displace none of these."""
        self._peer = peer
        self._longest_rest_seconds = longest_rest_seconds
        self._rng = random.Random()
        self._shards: dict[bytes, Shards] = {}

    def of(self, base: bytes) -> Shards:
        """The shards of a base key; the oldest ones of other nodes' names are forgotten."""
        if base not in self._shards:
            foreign = [key for key in self._shards if key not in self.own]
            for key in foreign[: max(len(foreign) + 1 - MAX_NAMES, 0)]:
                del self._shards[key]
            self._shards[base] = Shards(base, self._peer, self._rng, self._longest_rest_seconds)
        return self._shards[base]
