"""The records that a node keeps for others, and who gets a place when there is no room for all. No I/O.

Identities are free, and so is what a record says of its owner; an address from which its owner has connected is not.
So places are shared between networks (the first 24 bits of an IPv4 address, 48 of an IPv6 one), fairly and only when
they are scarce: a newcomer takes the place of the youngest record of the network that has the most, if that has at
least two more than its own.  Owners that this node has no connection with share a small reserve.  So it is with the
places under one key, with those under all keys, and with the keys: a key counts for the network of its oldest record,
and of a network's keys the one with records from the fewest networks goes first.

Ages are by the monotonic clock: a clock that is set back must neither keep old records nor keep new ones out.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...network.address import prefix_of
from ...wire.messages.limits import MAX_RECORDS_PER_KEY
from ..signed import lives_too_long

Network = str
"""The prefix of the addresses of one network."""
NOBODY = ""
"""No network."""

_Place = tuple[bytes, str]
"""Key and owner."""

_HOST = re.compile(r"/ip([46])/([^/]+)/")


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """The most that a node keeps for others; what it is given under the keys of its own records comes on top."""

    keys: int = 256
    records_per_key: int = MAX_RECORDS_PER_KEY
    records: int = 8192
    """Records under all keys together: at most 26 MB."""
    unreached_per_key: int = 64
    """Places for owners that this node has no connection with, when places are scarce."""
    unreached: int = 512
    """The same under all keys together."""
    unreached_keys: int = 32
    """Keys whose oldest record is of such an owner, when keys are scarce."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A record in its place."""

    value: bytes
    expires_at_seconds: float
    until: float
    """When it is dropped, on the monotonic clock."""
    since: float
    """When its owner got the place."""
    network: Network | None


_Records = Mapping[bytes, Mapping[str, Kept]]
"""Kept records by key and owner."""
_Choose = Callable[[_Records, Network | None], _Place]
"""Chooses the record of a network that goes."""


class Places:
    """Records by key and owner. `clock` gives Unix seconds, `monotonic` seconds of a clock that nobody sets."""

    def __init__(
        self, own_id: str, limits: StorageLimits, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._own_id = own_id
        self._limits = limits
        self._clock = clock
        self._monotonic = monotonic
        self._keys: dict[bytes, dict[str, Kept]] = {}
        self._look_at: dict[bytes, float] = {}
        """When the records under a key are looked through next for those that are over."""
        self._sizes: Counter[Network | None] | None = None
        """Records of each network under all keys but those of this node's own records; None if it must be counted."""

    def records_under(self, key: bytes) -> Mapping[str, Kept]:
        """The records under a key, by owner. One that is over stays among them for a second at most."""
        kept, now = self._keys.get(key, {}), self._monotonic()
        if now >= self._look_at.get(key, 0.0):
            for owner in [owner for owner, place in kept.items() if place.until <= now]:
                del kept[owner]
                self._sizes = None
            self._look_at[key] = now + 1.0
        if not kept:
            self._keys.pop(key, None)
            self._look_at.pop(key, None)
        return kept

    def keys(self) -> tuple[bytes, ...]:
        """The keys that have records."""
        return tuple(key for key in list(self._keys) if self.records_under(key))

    def would_keep(self, key: bytes, owner: str, expires_at_seconds: float, network: Network | None) -> bool:
        """Whether such a record would get a place now: asked before the cost of a signature check."""
        now, kept = self._clock(), self.records_under(key)
        if expires_at_seconds <= now or lives_too_long(expires_at_seconds, now):
            return False
        known = kept.get(owner)
        if known is not None:  # a record that is refused by now (the clock was set back) is in nobody's way
            later = expires_at_seconds > known.expires_at_seconds
            return later or lives_too_long(known.expires_at_seconds, now)
        return owner == self._own_id or self._losers(key, network, _anybody) is not None

    def keep(self, key: bytes, owner: str, value: bytes, expires_at_seconds: float, network: Network | None) -> bool:
        """Give a checked record a place; whether it has got one."""
        if not self.would_keep(key, owner, expires_at_seconds, network):
            return False
        known, now = self.records_under(key).get(owner), self._monotonic()
        if known is None and owner != self._own_id:
            for loser_key, loser in self._losers(key, network, _youngest) or ():
                del self._keys[loser_key][loser]
        self._sizes = None
        self._keys.setdefault(key, {})[owner] = Kept(
            value,
            expires_at_seconds,
            until=now + expires_at_seconds - self._clock(),
            since=known.since if known is not None else now,
            network=network or (known.network if known is not None else None),
        )
        return True

    def _losers(self, key: bytes, network: Network | None, choose: _Choose) -> Sequence[_Place] | None:
        """The places that are taken from others for a newcomer of a network under a key; None if it gets none."""
        kept, limits = self.records_under(key), self._limits
        losers: list[_Place] = []
        if self._own_id not in kept:  # where this node announces itself, others do, too
            foreign = {other: self._keys[other] for other in self.keys() if self._own_id not in self._keys[other]}
            if key not in foreign and len(foreign) >= limits.keys:
                lost = _key_to_go(foreign, network, limits.unreached_keys)
                if lost is None:
                    return None
                losers = [(lost, owner) for owner in foreign[lost]]
            elif sum(map(len, foreign.values())) >= limits.records:
                if self._sizes is None:
                    self._sizes = _sizes_of(foreign)
                group = group_to_go(self._sizes, network, limits.unreached)
                if group == NOBODY:
                    return None
                losers = [choose(foreign, group)]
        if len(kept) >= limits.records_per_key:
            others = {key: {owner: place for owner, place in kept.items() if owner != self._own_id}}
            group = group_to_go(_sizes_of(others), network, limits.unreached_per_key)
            if group == NOBODY:
                return None
            losers.append(choose(others, group))
        return list(dict.fromkeys(losers))


def _sizes_of(records: _Records) -> Counter[Network | None]:
    """The number of records of each network."""
    return Counter(place.network for kept in records.values() for place in kept.values())


def group_to_go(sizes: Mapping[Network | None, int], newcomer: Network | None, reserve: int) -> Network | None:
    """The network that makes room for a newcomer of a network, by the number of places that each has.

    None stands for those without a connection, who have no more than the `reserve`; NOBODY: the newcomer gets no room.
    """
    unreached = sizes.get(None, 0)
    if newcomer is None and unreached >= reserve:
        return NOBODY
    if unreached > reserve:
        return None
    networks = {name: size for name, size in sizes.items() if name is not None}
    largest = max(networks, key=lambda name: (networks[name], name), default=NOBODY)
    mine = networks.get(newcomer, 0) if newcomer is not None else 0
    return largest if networks.get(largest, 0) >= mine + 2 else NOBODY


def _youngest(keys: _Records, network: Network | None) -> _Place:
    """The place of a network under some keys that was given last."""
    places = ((key, owner) for key, kept in keys.items() for owner, place in kept.items() if place.network == network)
    return max(places, key=lambda place: (keys[place[0]][place[1]].since, place))


def _anybody(keys: _Records, network: Network | None) -> _Place:
    """Stands for `_youngest` where it does not matter who that is: looking for it takes a millisecond."""
    return next(iter(keys)), ""


def _key_to_go(keys: _Records, newcomer: Network | None, reserve: int) -> bytes | None:
    """The key that makes room for another one, whose first record is of a newcomer; None if none does."""
    first = {key: min(kept.values(), key=lambda place: place.since) for key, kept in keys.items()}
    group = group_to_go(Counter(place.network for place in first.values()), newcomer, reserve)
    if group == NOBODY:
        return None
    spread = {key: len({place.network for place in keys[key].values()}) for key in keys if first[key].network == group}
    return max(spread, key=lambda key: (-spread[key], first[key].since, key))


def network_of_maddr(maddr: str) -> Network | None:
    """The network of a multiaddress with an IP address."""
    match = _HOST.match(maddr + "/")
    if match is None:
        return None
    try:
        return prefix_of(ipaddress.ip_address(match[2]))
    except ValueError:
        return None
