"""The nodes that keep the records under a key: remembered for some minutes, so that no walk is needed. Pure.

Five nodes keep a key; each reader chooses two of them at random and asks these in turns, so that all readers together
spread over the five.  A node that left out a record that another one had is asked last for a while: it is new, or it
hides records, which must not work for ever.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from ...routing.swarm import PeerId
from ..wire.timing import OVERDUE_REFRESHES, RECORD_LIFETIME_SECONDS, RECORD_REFRESH_SECONDS
from .signed import SignedRecord

MAX_KEYS = 1024
MAX_DISTRUSTED = 256
FAVOURITES = 2

Node = TypeVar("Node", bound=Hashable)


class Keepers(Generic[Node]):
    """The nodes that keep the records under each key, in the order in which they are asked. Bounded."""

    def __init__(self, rng: random.Random, remembered_seconds: float, distrusted_seconds: float) -> None:
        """`remembered_seconds`: time after which the nodes of a key are searched again, since nearer ones may exist.
        `distrusted_seconds`: time for which a node that left out records is asked last.
        """
        self._rng = rng
        self._remembered_seconds = remembered_seconds
        self._distrusted_seconds = distrusted_seconds
        self._nodes: OrderedDict[bytes, tuple[tuple[Node, ...], float]] = OrderedDict()
        """The nodes of each key, beginning with the two that are asked in turns, and until when they are remembered."""
        self._distrusted: OrderedDict[Node, float] = OrderedDict()
        """Until when a node is asked last."""

    def of(self, key: bytes, monotonic: float) -> tuple[Node, ...]:
        """The nodes that keep a key, in the order in which to ask them; none if they have to be searched."""
        nodes, until = self._nodes.get(key, ((), 0.0))
        if monotonic >= until:
            self._nodes.pop(key, None)
            return ()
        favourites = self._rng.sample(nodes[:FAVOURITES], len(nodes[:FAVOURITES]))
        order = (*favourites, *nodes[FAVOURITES:])
        return tuple(sorted(order, key=lambda node: self._distrusted.get(node, 0.0) > monotonic))

    def found(self, key: bytes, nodes: Collection[Node], monotonic: float) -> None:
        """Remember the nodes that a walk has found."""
        self._nodes.pop(key, None)
        if nodes:
            chosen = self._rng.sample(list(nodes), len(nodes))
            self._nodes[key] = tuple(chosen), monotonic + self._remembered_seconds
        while len(self._nodes) > MAX_KEYS:
            self._nodes.popitem(last=False)

    def forget(self, key: bytes) -> None:
        """Forget the nodes of a key, so that they are searched again."""
        self._nodes.pop(key, None)

    def is_silent(self, key: bytes, node: Node) -> None:
        """Drop a node that has not answered; when few are left, the key's nodes are searched again."""
        nodes, until = self._nodes.get(key, ((), 0.0))
        left = tuple(other for other in nodes if other != node)
        if len(left) < FAVOURITES:
            self._nodes.pop(key, None)
        elif left != nodes:
            self._nodes[key] = left, until

    def left_out(self, node: Node, monotonic: float) -> None:
        """Note that a node left out a record that another one has."""
        self._distrusted.pop(node, None)
        self._distrusted[node] = monotonic + self._distrusted_seconds
        while len(self._distrusted) > MAX_DISTRUSTED:
            self._distrusted.popitem(last=False)


def fresh_owners(records: Sequence[SignedRecord], now: float) -> frozenset[PeerId]:
    """The owners whose records were renewed in time."""
    least_left = RECORD_LIFETIME_SECONDS - OVERDUE_REFRESHES * RECORD_REFRESH_SECONDS
    return frozenset(record.peer_id for record in records if record.expires_at_seconds - now >= least_left)


def those_that_left_out(answers: Mapping[Node, Collection[PeerId]], expected: Collection[PeerId]) -> frozenset[Node]:
    """The nodes whose answers (sets of fresh owners) lack an expected owner that another answer has."""
    still = {owner for owners in answers.values() for owner in owners if owner in expected}
    return frozenset(node for node, owners in answers.items() if not still <= set(owners))
