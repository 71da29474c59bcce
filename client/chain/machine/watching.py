"""Finds what is at fault when an answer is late or a hop fails: a hop, a link, the input, or this machine's network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....proto.errors import (
    BadActivations,
    DeadlineExceeded,
    GiveUp,
    PeerUnavailable,
    RetryElsewhere,
    SessionLost,
    SwarmError,
    UsageError,
)
from ...config import SessionEvent
from . import events as ev
from .facts import HopFacts, Status, stuck_hop, swallowing_link
from .moving import Moving
from .phases import Phase
from .state import Ended

_NETWORK_HINT = "Check this machine's network, and that the initial peers run."
_INPUT_HINT = "The input is the reason, not the peers: see the message."


class Watching(Moving):
    """The decisions about a chain that is late, or has failed."""

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

    def _take_network_back(self, _event: ev.NetworkBack) -> None:
        if self.phase is not Phase.AWAY:
            return
        trouble = self._in_trouble()
        trouble.back = True
        if trouble.away:
            self._emit(ev.Pardon(frozenset(hop.peer for hop in self._roster.hops)))
        if trouble.away and self._roster.has_failed():
            # Streams that broke while this machine's network was down are not the peers' fault.
            trouble.error = self._drop_failed(self._roster.hops) or trouble.error
            self._look()
        elif trouble.away:
            self._examine(again=True)
        else:
            for hop in self._roster.hops:
                hop.fail(DeadlineExceeded(f"{hop.choice.address} does not answer"))
            self._repair()

    def _take_network_away(self, _event: ev.NetworkAway) -> None:
        if self.phase is not Phase.AWAY:
            return
        trouble = self._in_trouble()
        trouble.away = True
        if self._now >= trouble.give_up_at:
            raise Ended(PeerUnavailable("no node of the swarm answers any more", hint=_NETWORK_HINT))
        self._deadline = self._now + self._timing.away_pause_seconds

    # --- a hop that failed: itself, its predecessor or the input is to blame ---

    def _take_lost(self, event: ev.Lost) -> None:
        hop, error = self._roster.find(event.hop), event.error
        if hop is None or not hop.alive:
            return
        if hop not in self._roster.hops:
            hop.fail(error)
            return
        index = self._roster.hops.index(hop)
        if isinstance(error, BadActivations):
            if index == 0:
                error = _not_finite(error)
            elif self._accuses(hop, self._roster.hops[index - 1], error):
                return
        if self._progress and (
            type(error) in (RetryElsewhere, BadActivations) or (isinstance(error, UsageError) and hop.opened)
        ):
            self._note_failed_step(hop, error)
        hop.fail(error)

    def _accuses(self, hop: HopFacts, before: HopFacts, error: BadActivations) -> bool:
        """Take in that a peer accuses its predecessor of sending values that are not finite; return if it is believed.

        A peer that accuses a second predecessor is not believed: the common cause is then the peer itself.
        """
        accused = self._accused_by.setdefault(hop.peer, before.peer)
        if accused != before.peer:
            self._emit(ev.Pardon(frozenset({accused})))
            return False
        before.fail(error)
        hop.fail(SessionLost(f"{hop.choice.address}: {error}"), to_blame=False)
        return True

    def _note_failed_step(self, hop: HopFacts, error: SwarmError) -> None:
        """Record a failed step. If two peers of a block fail in the same step, the input is the cause: raise Ended."""
        seq = self._progress[0].unanswered or self._progress[0].operation.first_seq
        self._failed_in = {peer: (at, blocks) for peer, (at, blocks) in self._failed_in.items() if at == seq}
        others = [
            peer for peer, (_, blocks) in self._failed_in.items() if peer != hop.peer and set(hop.blocks) & set(blocks)
        ]
        self._failed_in[hop.peer] = seq, hop.blocks
        if others:
            self._emit(ev.Pardon(frozenset({hop.peer, *others})))
            if isinstance(error, UsageError):
                raise Ended(error)
            if isinstance(error, BadActivations):
                raise Ended(_not_finite(error))
            raise Ended(GiveUp(f"two peers cannot compute this input: {error}", hint=_INPUT_HINT))


def _not_finite(error: BadActivations) -> UsageError:
    """Return the error for values that are not finite and came from no peer: they follow from the user's input."""
    return UsageError(f"the input of the model is not finite: {error}", hint=_INPUT_HINT)
