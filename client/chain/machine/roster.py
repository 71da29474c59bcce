"""The hops of a chain and their epoch: which are in it, which are opened beside it, and which pushes to which.

The roster does not decide when or why to change; the machine calls it, and it adds what peers must be told to the
machine's actions.  Every change of the chain raises the epoch on every hop, so nothing of the old chain can interfere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ....proto.errors import PeerBusy, SwarmError
from ....routing.swarm import BlockRange, PeerId, short_id
from ...config import SessionEvent
from . import events as ev
from .facts import HopFacts, layout_of


@dataclass(slots=True)
class Roster:
    """The chain's hops, in order, and those beside it."""

    emit: Callable[[ev.Action], None]
    record_of: Callable[[PeerId], bytes | None]
    """Returns the newest signed record of a peer: a record lasts a minute, a session longer."""
    relay_always: bool = False
    hops: list[HopFacts] = field(default_factory=list)
    beside: list[HopFacts] = field(default_factory=list)
    """Opened, or being opened, and not part of the chain yet."""
    epoch: int = 0
    """The epoch of the hops in the chain; those beside it are opened in later ones."""
    relayed: set[tuple[PeerId, PeerId]] = field(default_factory=set)
    """Pairs of neighbours that cannot push: outputs of the first to the second go through the client."""
    mixed: bool = False
    """Whether the predecessors of a peer in use have changed their formats: no page name then describes its cache."""
    _formats_before: dict[ev.HopId, tuple[str, ...]] = field(default_factory=dict)
    _last_id: int = 0
    _newest_epoch: int = 0
    """The newest epoch that any hop was told of."""

    def find(self, hop: ev.HopId) -> HopFacts | None:
        """Return the hop with this id, in the chain or beside it; None if it was given up."""
        return next((known for known in (*self.hops, *self.beside) if known.id == hop), None)

    def new_hop(self, choice: ev.HopChoice) -> HopFacts:
        self._last_id += 1
        return HopFacts(ev.HopId(self._last_id), choice)

    def hops_of(self, chain: Sequence[HopFacts | ev.HopChoice]) -> list[HopFacts]:
        """Return the hops of a chain, with new ones made for the choices."""
        return [hop if isinstance(hop, HopFacts) else self.new_hop(hop) for hop in chain]

    def replaced(self, old: HopFacts, by: Sequence[HopFacts | ev.HopChoice]) -> list[HopFacts | ev.HopChoice]:
        """Return the chain with the hops `by` in place of `old`."""
        index = self.hops.index(old)
        return [*self.hops[:index], *by, *self.hops[index + 1 :]]

    def is_broken(self) -> bool:
        """Return whether a hop has failed or a link cannot push; relay such links from the next epoch on."""
        for hop, successor in itertools.pairwise(self.hops):
            if hop.push_failed_epoch == self.epoch:
                self.relay(hop, successor)
        return self.has_failed() or self.has_unpushable_link()

    def has_failed(self) -> bool:
        return any(not hop.alive for hop in self.hops)

    def has_unpushable_link(self) -> bool:
        return any(hop.push_failed_epoch == self.epoch for hop in self.hops[:-1])

    def relay(self, hop: HopFacts, successor: HopFacts) -> bool:
        """Relay outputs of `hop` to `successor` from the next epoch on; return False if they are relayed already."""
        pair = (hop.peer, successor.peer)
        if self.relay_always or pair in self.relayed:
            return False
        self.relayed.add(pair)
        self.emit(ev.Tell(SessionEvent("relayed", hop.peer, f"to {successor.peer}")))
        return True

    # --- changing ---

    def connect(self, chain: Sequence[HopFacts | ev.HopChoice]) -> list[HopFacts]:
        """Make `chain` the chain, in a new epoch; return the hops that must confirm their new neighbours."""
        self.next_epoch()
        self.epoch = self._newest_epoch
        hops = self.hops_of(chain)
        opened = [hop for hop in hops if hop in self.hops or hop in self.beside]
        changes = any(hop in opened for hop in self.hops)
        for hop in [*self.hops, *self.beside]:
            if hop not in hops:
                self.emit(ev.Leave(hop.id))
        self.hops, self.beside = hops, []
        before = {hop.id: _formats_before(hops, index) for index, hop in enumerate(hops)}
        self.mixed |= any(self._formats_before.get(hop, formats) != formats for hop, formats in before.items())
        self._formats_before = before
        for index, hop in enumerate(hops):
            after = hops[index + 1] if index + 1 < len(hops) else None
            relay = self.relay_always or (after is not None and (hop.peer, after.peer) in self.relayed)
            neighbours = self._neighbours(hops, index, relay)
            if hop in opened:
                self.emit(ev.Reroute(hop.id, neighbours, self.mixed))
            else:
                self._open(hop, hops, index, neighbours, 0.0)
        kind = "rerouted" if changes else "opened"
        self.emit(ev.Tell(SessionEvent(kind, None, describe(layout_of(hops)))))
        return opened

    def next_epoch(self) -> None:
        """Open hops beside the chain in a new epoch from now on."""
        self._newest_epoch += 1

    def open_beside(self, hop: HopFacts, chain: Sequence[HopFacts], wait_seconds: float) -> None:
        """Open a hop of a future chain: it is told its neighbours, and does not push to its successor yet."""
        index = chain.index(hop)
        if hop not in self.beside:
            self.beside.append(hop)
        self._open(hop, chain, index, self._neighbours(chain, index, relay=True), wait_seconds)

    def leave(self, hops: Sequence[HopFacts]) -> None:
        """End the session on some peers, and drop them from the roster."""
        for hop in hops:
            self.emit(ev.Leave(hop.id))
        self.hops = [hop for hop in self.hops if hop not in hops]
        self.beside = [hop for hop in self.beside if hop not in hops]

    def drop_failed(self, hops: Sequence[HopFacts], *, ban: bool = True) -> SwarmError | None:
        """Leave the failed hops among `hops`, tell the user, and ban those to blame; return the last error."""
        failed = [hop for hop in hops if hop.error is not None]
        error = None
        for hop in failed:
            error = hop.error
            assert error is not None
            kind = "refused" if isinstance(error, PeerBusy) else "hop-lost"
            self.emit(ev.Tell(SessionEvent(kind, hop.peer, str(error))))
            if ban and hop.to_blame:
                self.emit(ev.Ban(hop.peer, error))
        self.leave(failed)
        return error

    def _open(
        self, hop: HopFacts, chain: Sequence[HopFacts], index: int, neighbours: ev.Neighbours, wait_seconds: float
    ) -> None:
        self.emit(ev.Open(hop.id, hop.choice, neighbours, wait_seconds, _formats_before(chain, index)))

    def _neighbours(self, chain: Sequence[HopFacts], index: int, relay: bool) -> ev.Neighbours:
        before = chain[index - 1] if index else None
        after = chain[index + 1] if index + 1 < len(chain) else None
        record = (self.record_of(after.peer) or after.choice.record) if after is not None else b""
        return ev.Neighbours(
            self._newest_epoch,
            before.peer if before else None,
            after.peer if after else None,
            record,
            relay,
            before.choice.stream_format if before else None,
        )


def _formats_before(chain: Sequence[HopFacts], index: int) -> tuple[str, ...]:
    return tuple(before.choice.arithmetic for before in chain[:index])


def describe(layout: Sequence[tuple[PeerId, BlockRange]]) -> str:
    """Return a chain as text for people: "0:4 at ..abcdef, 4:8 at ..ghijkl"."""
    return ", ".join(f"{blocks} at {short_id(peer)}" for peer, blocks in layout)
