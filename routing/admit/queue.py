"""Which sessions wait for room on a peer, and in which order: first come, first served, but clients take turns.

A session gets a *rank* when it first joins: a round, and within the round its arrival number.  The queue is served in
the order of ranks and no session passes the head, so small reservations cannot starve a large one.  With V the latest
round from which a session was admitted, a client's first waiting session gets round V + 1, and each further one the
round after its client's last.  Hence

* of the first sessions of different clients the earlier one is always served first;
* if a session has k sessions of its own client ahead of it, in rounds V + 1 to V + k, any other client gets at most k
  sessions that came later ahead of it: they are in different rounds, and those of round V + k + 1 have later numbers
  (a round stays taken while its client has a later one, also if the session that had it is forgotten);
* no session starves: later sessions can pass it only in the k rounds before its own, and a round takes no new members
  once a member was admitted.

A session that leaves the queue keeps its rank for some minutes and rejoins with it.  Meanwhile its round counts as
taken by its client, so a client cannot collect early ranks by leaving and joining with other sessions.  A session that
was admitted and gave its room back unused (its lease on a chain was over) keeps its arrival number but gets its
client's next round, behind the rest of the round that is being served: a client that takes room again and again without
using it passes no session twice.

No I/O and no clock here.
"""

from __future__ import annotations

import bisect
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..swarm import PeerId
from ..timing import RANK_MEMORY_SECONDS

MAX_WAITING = 1024
MAX_WAITING_PER_CLIENT = 64
MAX_REMEMBERED = 4 * MAX_WAITING


@dataclass(frozen=True, order=True, slots=True)
class Ticket:
    """A session's rank on this peer; the smaller one is served first."""

    round: int
    arrival: int
    client: PeerId = field(compare=False)
    session_id: bytes = field(compare=False)


class AdmissionQueue:
    """The waiting sessions, and the ranks of those that may come again; both are bounded, in total and per client."""

    def __init__(self, max_waiting: int = MAX_WAITING, max_per_client: int = MAX_WAITING_PER_CLIENT) -> None:
        self._max_waiting = max_waiting
        self._max_per_client = max_per_client
        self._waiting: list[Ticket] = []
        self._waiting_of: Counter[PeerId] = Counter()
        self._remembered: OrderedDict[Ticket, float] = OrderedDict()
        """When each remembered rank is forgotten, the soonest first."""
        self._tickets_of: dict[PeerId, dict[bytes, Ticket]] = {}
        """Waiting and remembered tickets, by session."""
        self._round = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Ticket]:
        """The waiting sessions, in the order in which they will be served."""
        return iter(self._waiting)

    @property
    def head(self) -> Ticket:
        return self._waiting[0]

    def is_full_for(self, client: PeerId) -> bool:
        """Whether the queue has no place for another session of that client."""
        return len(self._waiting) >= self._max_waiting or self._waiting_of[client] >= self._max_per_client

    def num_ranks(self, client: PeerId | None = None) -> int:
        """The number of sessions, of one client or of all, that have a rank: the waiting and the remembered ones."""
        clients = self._tickets_of.values() if client is None else [self._tickets_of.get(client, {})]
        return sum(map(len, clients))

    def join(self, client: PeerId, session_id: bytes, now: float) -> Ticket:
        """Add a session to the queue, with its former rank if that is remembered. O(waiting)."""
        self._forget_until(now)
        own = self._tickets_of.setdefault(client, {})
        ticket = own.get(session_id)
        if ticket is None:
            self._arrivals += 1
            ticket = own[session_id] = Ticket(self._next_round(own), self._arrivals, client, session_id)
        else:
            del self._remembered[ticket]
        bisect.insort(self._waiting, ticket)
        self._waiting_of[client] += 1
        return ticket

    def admit_head(self) -> Ticket:
        """Remove the head from the queue, because it gets its room."""
        ticket = self.head
        self.admit(ticket)
        return ticket

    def admit(self, ticket: Ticket) -> None:
        """Remove a session from the queue, because it gets its room, perhaps before others that exceed a share."""
        self._remove(ticket)
        self._drop(ticket)
        self._round = max(self._round, ticket.round)

    def leave(self, ticket: Ticket, now: float) -> None:
        """Remove a session from the queue and remember its rank. O(waiting)."""
        self._remove(ticket)
        self._remember(ticket, now)

    def drop_rank(self, client: PeerId, session_id: bytes) -> None:
        """Forget the rank of a session that got room without waiting: it no longer counts as one of its client's."""
        ticket = self._tickets_of.get(client, {}).get(session_id)
        if ticket is not None:
            self._forget(ticket)

    def give_back(self, ticket: Ticket, now: float) -> None:
        """Remember a session that was admitted and left without using its room: it may come again."""
        own = self._tickets_of.setdefault(ticket.client, {})
        own[ticket.session_id] = replace(ticket, round=self._next_round(own))
        self._remember(own[ticket.session_id], now)

    def _next_round(self, own: Mapping[bytes, Ticket]) -> int:
        return max(self._round, max((ticket.round for ticket in own.values()), default=0)) + 1

    def _remember(self, ticket: Ticket, now: float) -> None:
        self._forget_until(now)
        self._remembered[ticket] = now + RANK_MEMORY_SECONDS
        own = self._tickets_of[ticket.client]
        if len(own) - self._waiting_of[ticket.client] > self._max_per_client:
            self._forget(next(ticket for ticket in own.values() if ticket in self._remembered))
        while len(self._remembered) > MAX_REMEMBERED:
            self._forget(next(iter(self._remembered)))

    def _forget_until(self, now: float) -> None:
        while self._remembered:
            ticket, until = next(iter(self._remembered.items()))
            if until > now:
                return
            self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        del self._remembered[ticket]
        self._drop(ticket)

    def _remove(self, ticket: Ticket) -> None:
        place = bisect.bisect_left(self._waiting, ticket)
        assert self._waiting[place] is ticket
        del self._waiting[place]
        self._waiting_of[ticket.client] -= 1
        if not self._waiting_of[ticket.client]:
            del self._waiting_of[ticket.client]

    def _drop(self, ticket: Ticket) -> None:
        own = self._tickets_of[ticket.client]
        del own[ticket.session_id]
        if not own:
            del self._tickets_of[ticket.client]
