"""The records that a node keeps for others, and who gets a place when there is no room for all. No I/O.

Identities are free, and so is what a record says of its owner; an address from which its owner has connected is not.
So places are shared between networks (the first 24 bits of an IPv4 address, 48 of an IPv6 one), fairly and only when
they are scarce: a newcomer takes the place of the youngest record of the network that has the most, if that has at
least two more than its own.  Owners that this node has no connection with share a small reserve.  Ages are by the
monotonic clock: a clock that is set back must neither keep old records nor keep new ones out.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...network.address import prefix_of
from ...wire.messages.limits import MAX_RECORDS_PER_KEY
from ..signed import lives_too_long

Network = str
"""The prefix of the addresses of one network."""

_HOST = re.compile(r"/ip([46])/([^/]+)/")


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """The most that a node keeps for others; what it is given under the keys of its own records comes on top."""

    keys: int = 64
    records_per_key: int = MAX_RECORDS_PER_KEY
    records: int = 8192
    """Records under all keys together: at most 26 MB."""
    unreached_per_key: int = 64
    """Places for owners that this node has no connection with, when places are scarce."""


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

    def under(self, key: bytes) -> Mapping[str, Kept]:
        """The records under a key, by owner; some may be over for a second."""
        kept, now = self._keys.get(key, {}), self._monotonic()
        if now >= self._look_at.get(key, 0.0):
            for owner in [owner for owner, place in kept.items() if place.until <= now]:
                del kept[owner]
            self._look_at[key] = now + 1.0
        if not kept:
            self._keys.pop(key, None)
            self._look_at.pop(key, None)
        return kept

    def keys(self) -> tuple[bytes, ...]:
        """The keys that have records."""
        return tuple(key for key in list(self._keys) if self.under(key))

    def would_keep(self, key: bytes, owner: str, expires_at_seconds: float, network: Network | None) -> bool:
        """Whether such a record would get a place now: asked before the cost of a signature check."""
        now, kept = self._clock(), self.under(key)
        if expires_at_seconds <= now or lives_too_long(expires_at_seconds, now):
            return False
        known = kept.get(owner)
        if known is not None:  # a record that is refused by now (the clock was set back) is in nobody's way
            later = expires_at_seconds > known.expires_at_seconds
            return later or lives_too_long(known.expires_at_seconds, now)
        if owner == self._own_id:
            return True
        return self._has_room_for(key) and (
            len(kept) < self._limits.records_per_key or self._loser(kept, network) != ""
        )

    def keep(self, key: bytes, owner: str, value: bytes, expires_at_seconds: float, network: Network | None) -> bool:
        """Give a checked record a place; whether it has got one."""
        if not self.would_keep(key, owner, expires_at_seconds, network):
            return False
        kept, now = self._keys.setdefault(key, {}), self._monotonic()
        known = kept.get(owner)
        if known is None and owner != self._own_id and len(kept) >= self._limits.records_per_key:
            del kept[self._loser(kept, network)]
        kept[owner] = Kept(
            value,
            expires_at_seconds,
            until=now + expires_at_seconds - self._clock(),
            since=known.since if known is not None else now,
            network=network or (known.network if known is not None else None),
        )
        return True

    def _has_room_for(self, key: bytes) -> bool:
        """Whether the node may keep anything more under that key; always, where it announces itself."""
        if self._own_id in self._keys.get(key, {}):
            return True
        others = [kept for other in self.keys() if self._own_id not in (kept := self._keys[other])]
        room_for_key = key in self._keys or len(others) < self._limits.keys
        return room_for_key and sum(map(len, others)) < self._limits.records

    def _loser(self, kept: Mapping[str, Kept], network: Network | None) -> str:
        """The owner that makes room under a full key for a newcomer of a network; "" if nobody does."""
        sizes = Counter(place.network for owner, place in kept.items() if owner != self._own_id)
        unreached, reserve = sizes.pop(None, 0), self._limits.unreached_per_key
        if network is None and unreached >= reserve:
            return ""
        if unreached > reserve:
            largest: Network | None = None
        else:
            largest = max(sizes, key=lambda name: (sizes[name], name), default=None)
            mine = sizes[network] if network is not None else 0
            if largest is None or sizes[largest] < mine + 2:
                return ""
        members = [owner for owner, place in kept.items() if place.network == largest and owner != self._own_id]
        return max(members, key=lambda owner: (kept[owner].since, owner))


def network_of_maddr(maddr: str) -> Network | None:
    """The network of a multiaddress with an IP address."""
    match = _HOST.match(maddr + "/")
    if match is None:
        return None
    try:
        return prefix_of(ipaddress.ip_address(match[2]))
    except ValueError:
        return None
