"""Watching: when an answer is late, finds the hop or the link at fault, or this machine's own network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....proto.errors import DeadlineExceeded
from ...config import SessionEvent
from . import events as ev
from .facts import Status, stuck_hop, swallowing_link
from .moving import Moving
from .phases import Phase


class Watching(Moving):
    """The decisions about a chain that is late."""

    def _examine(self, *, again: bool = False) -> bool:
        """Probe every peer; `again`: once more, after this machine's network was found to work."""
        if not again:
            seq = self._sought_seq()
            self._emit(ev.Tell(SessionEvent("stalled", None, f"step {seq}")))
        self._nonce += 1
        self._statuses = {}
        for hop in self._roster.hops:
            self._emit(ev.Probe(hop.id, self._nonce))
        return self._enter(Phase.EXAMINING, self._leniency * self._timing.probe_seconds)

    def _take_probed(self, event: ev.Probed) -> None:
        if event.nonce == self._nonce and self._roster.find(event.hop):
            self._statuses[event.hop] = Status(event.received_seq, event.applied_seq)

    def _decide_examining(self) -> bool:
        hops = self._roster.hops
        if self._roster.is_broken():
            return self._repair()
        silent = [hop for hop in hops if hop.id not in self._statuses]
        if not silent:
            return self._judge([self._statuses[hop.id] for hop in hops])
        if not self._is_late:
            return False
        trouble = self._in_trouble()
        if len(silent) == len(hops) and not trouble.back:
            return self._ask_anybody()
        for hop in silent:
            hop.fail(DeadlineExceeded(f"{hop.choice.address} does not answer"), to_blame=not trouble.away)
        return self._repair()

    def _judge(self, statuses: Sequence[Status]) -> bool:
        """Decide when all peers answer but the step is late: a link has swallowed it, or a peer is stuck in it."""
        hops, seq = self._roster.hops, self._sought_seq()
        link = swallowing_link(statuses, seq)
        self._late_times += 1
        if link is not None:
            # A link that is relayed already gets the step once more; after that the sender is to blame.
            if self._roster.relay(hops[link], hops[link + 1]) or self._late_times < 2:
                return self._connect(hops)
            hops[link].fail(DeadlineExceeded("the peer does not pass its outputs on"))
            return self._repair()
        if self._late_times < self._timing.late_chances:
            return self._enter(Phase.RUNNING, self._allowed_seconds())
        self._late_times = 0
        hops[stuck_hop(statuses, seq)].fail(DeadlineExceeded("the peer is stuck in a step"))
        return self._repair()

    def _decide_away(self) -> bool:
        if self._statuses:  # a late answer to the probes
            return self._examine(again=True)
        if self._is_late:
            self._deadline = math.inf
            self._ask_anybody()
        return False
