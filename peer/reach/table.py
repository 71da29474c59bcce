"""The peers that are reached through this one, and the limits of this service. No network, no clock.

A reservation is one peer's right to be reached through this relay; it ends with the stream that holds it, and so do its
connections.  The limits bound the cost that peers can cause: reservations (also per network, because ids are free),
connections of one peer and of all, and bytes per second of one peer and of all, over both directions.  When no
place or connection is left, the network with most of them gives one back, so that no network keeps others out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ...proto.errors import PeerBusy, PeerUnavailable
from ...proto.wire.timing import RELAY_FULL_SECONDS
from ...routing.admit.shares import surplus
from ...routing.swarm import PeerId
from ..config import RelayQuota


class Throttle:
    """Decides how long a sender has to pause to keep to a rate; bursts of up to one second's bytes pass at once."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._credit = bytes_per_second
        self._at: float | None = None

    def delay(self, nbytes: int, now: float) -> float:
        """Take `nbytes` at `now`; return the seconds to wait before they are sent. Time never goes back."""
        if self._at is not None:
            self._credit = min(self._rate, self._credit + max(0.0, now - self._at) * self._rate)
        self._at = now if self._at is None else max(now, self._at)
        self._credit -= nbytes
        return max(0.0, -self._credit / self._rate)


@dataclass(eq=False, slots=True)
class RelayPlace:
    """The place of one peer that is reached through this relay."""

    peer: PeerId
    network: str
    throttle: Throttle
    end: Callable[[], None]
    """Called when another network needs the place."""
    relayed_bytes: int = 0


@dataclass(eq=False, frozen=True, slots=True)
class RelayedConnection:
    """One connection to such a peer."""

    place: RelayPlace
    network: str
    """The network that it comes from."""
    end: Callable[[], None]
    """Called when another network needs its room."""


@dataclass
class RelayTable:
    """The reservations of a relay."""

    me: PeerId
    quota: RelayQuota
    relayed_bytes: int = 0
    """Since the start."""
    _held: dict[PeerId, RelayPlace] = field(default_factory=dict)
    _connections: list[RelayedConnection] = field(default_factory=list)
    """The oldest come first."""

    def __post_init__(self) -> None:
        self._throttle = Throttle(self.quota.bytes_per_second)

    @property
    def free(self) -> int:
        """The number of places that are free."""
        return self.quota.peers - len(self._held)

    @property
    def peers(self) -> int:
        return len(self._held)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def reserve(self, peer: PeerId, network: str, end: Callable[[], None]) -> RelayPlace:
        """Reserve a place for `peer`, seen in `network`, until the table calls `end`; this replaces its older one.

        Raises PeerBusy if there is none, PeerUnavailable if the peer is the relay itself: a loop.
        """
        if peer == self.me:
            raise PeerUnavailable("a relay is not reached through itself")
        others = [reservation for reservation in self._held.values() if reservation.peer != peer]
        near = sum(reservation.network == network for reservation in others)
        full = PeerBusy(RELAY_FULL_SECONDS, "the relay has no place for another peer")
        if near >= max(1, self.quota.peers // 2):
            raise full
        if len(others) >= self.quota.peers:
            youngest = surplus(others[::-1], network, lambda place: place.network)
            if youngest is None:
                raise full
            self.release(youngest)
            youngest.end()
        self._held.pop(peer, None)  # the youngest is the last one
        self._held[peer] = RelayPlace(peer, network, Throttle(self.quota.bytes_per_second_per_peer), end)
        return self._held[peer]

    def release(self, reservation: RelayPlace) -> None:
        """End a reservation; does nothing for one that was replaced."""
        if self._held.get(reservation.peer) is reservation:
            del self._held[reservation.peer]

    @contextmanager
    def connection(self, peer: PeerId, network: str, end: Callable[[], None]) -> Iterator[RelayPlace]:
        """Count a connection to `peer` from `network` during the block, or until the table calls `end`.

        Raises PeerUnavailable, PeerBusy.
        """
        place = self._held.get(peer)
        if place is None:
            raise PeerUnavailable("that peer is not reached through this relay")
        mine = RelayedConnection(place, network, end)
        to_peer = [connection for connection in self._connections if connection.place is place]
        if len(to_peer) >= self.quota.connections_per_peer:
            self._make_room(to_peer, network)
        elif self.connections >= self.quota.connections:
            self._make_room(self._connections, network)
        self._connections.append(mine)
        try:
            yield place
        finally:
            if mine in self._connections:
                self._connections.remove(mine)

    def _make_room(self, held: Sequence[RelayedConnection], network: str) -> None:
        """End the youngest connection of another network that has more than `network` gets. Raises PeerBusy."""
        youngest = surplus(held[::-1], network, lambda connection: connection.network)
        if youngest is None:
            raise PeerBusy(RELAY_FULL_SECONDS, "the relay has no room for another connection")
        self._connections.remove(youngest)
        youngest.end()

    def delay(self, reservation: RelayPlace, nbytes: int, now: float) -> float:
        """Count bytes to forward for a peer; return the seconds to wait before they are sent."""
        self.relayed_bytes += nbytes
        reservation.relayed_bytes += nbytes
        return max(reservation.throttle.delay(nbytes, now), self._throttle.delay(nbytes, now))
