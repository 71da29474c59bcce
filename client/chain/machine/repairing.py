"""Brings up a chain: leaves failed hops, fills the gaps, waits for room, and has the caches of new hops rebuilt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ....proto.errors import (
    DeadlineExceeded,
    GiveUp,
    PeerBusy,
    PeerUnavailable,
    SwarmError,
    UsageError,
)
from ....proto.wire.frames import Rebuild
from ....routing.swarm import PeerId
from ...config import SessionEvent
from ...peer_errors import is_silence
from . import events as ev
from .facts import HopFacts, Prospect, layout_of, next_rebuild, only_full, prospect_of, wait_seconds
from .pace import StepPace
from .phases import Phase
from .reserve import NotAdmitted, OrderedReservation
from .roster import describe
from .state import ChainState, Choice, Ended

MAX_REPAIRS = 12
"""Fail the operation after this many repairs without a new answer."""
MAX_REFUSALS = 2
"""Queue for room after this many chains that seemed to have room and had none."""


class Repairing(ChainState):
    """The decisions of a repair; the first chain is brought up in the same way."""

    def _repair(self) -> bool:
        """Leave the hops that failed and bring up a chain without them."""
        roster, trouble = self._roster, self._in_trouble()
        if roster.hops and not trouble.back and all(_is_silent(hop) for hop in roster.hops):
            self._drop_move()
            self._statuses = {}
            return self._ask_anybody()
        stand_in = self._stand_in()
        if not roster.has_failed() and roster.hops:  # only a link must be relayed
            return self._connect(roster.hops)
        if only_full(roster.hops):
            trouble.refusals += 1
        elif roster.hops:
            trouble.repairs += 1
            trouble.give_up_at = self._now + self._timing.patience_seconds
        trouble.error = self._drop_failed(roster.hops) or trouble.error
        if trouble.repairs > MAX_REPAIRS:
            raise Ended(trouble.error or PeerUnavailable("the chain of peers does not hold"))
        if stand_in is not None:
            return self._connect(stand_in)
        self._drop_move()
        return self._choose()

    def _stand_in(self) -> list[HopFacts | ev.HopChoice] | None:
        """Return the chain with a hand-over's opened replacement, if only the hop that it replaces has failed."""
        move, hops = self._move, self._roster.hops
        failed = [hop for hop in hops if not hop.alive]
        if move is None or move.is_decided or move.new is None or failed != [move.old]:
            return None
        if not move.new.alive or not move.new.opened:
            return None
        move.is_decided = True
        rests = not self._progress or self._progress[0].sent == 0
        move.new.built = rests and move.copy is not None and move.copy.is_complete(*self._boundary())
        return self._roster.replaced(move.old, [move.new])

    def _drop_failed(self, hops: Sequence[HopFacts]) -> SwarmError | None:
        trouble = self._in_trouble()
        if not trouble.away:
            trouble.banned |= {hop.peer for hop in hops if not hop.alive and hop.to_blame}
        trouble.blaming_input |= {hop.peer for hop in hops if isinstance(hop.error, UsageError)}
        return self._roster.drop_failed(hops, ban=not trouble.away)

    def _ask_anybody(self) -> bool:
        """Find out whether this machine's network is down, because all peers of the chain are silent."""
        self._emit(ev.AskAnybody())
        return self.phase is Phase.AWAY or self._enter(Phase.AWAY)

    # --- choosing ---

    def _choose(self) -> bool:
        """Ask for peers in the gaps between the hops that work; if that is not possible at once, for a whole new chain.

        If a session that has no answers yet must wait for any peer, it leaves all its hops: it would hold room
        meanwhile, and all sessions must take room in the order of the peers' ids.
        """
        return self._ask_router(self._roster.hops)

    def _ask_router(
        self,
        kept: Sequence[HopFacts],
        filled: list[HopFacts | ev.HopChoice] | None = None,
    ) -> bool:
        self._choice = Choice(self._pose(kept), list(kept), filled)
        return self.phase is Phase.CHOOSING or self._enter(Phase.CHOOSING)

    def _pose(self, kept: Sequence[HopFacts], excluded: frozenset[PeerId] = frozenset()) -> int:
        """Ask the router to fill the gaps between `kept`, without peers in `excluded`; return the question's number."""
        self._choices_made += 1
        check = self._trouble is not None and self._trouble.repairs > 0
        self._emit(ev.Choose(self._choices_made, layout_of(kept), excluded, check))
        return self._choices_made

    def _take_chain(self, choice: Choice, chain: list[HopFacts | ev.HopChoice]) -> bool:
        must_wait = self._in_trouble().refusals >= MAX_REFUSALS or wait_seconds(chain) > 0
        if choice.kept:
            return self._ask_router([], filled=chain) if must_wait else self._connect(chain)
        if must_wait and not self._has_answers:
            self._roster.leave(self._roster.hops)
        elif must_wait and choice.filled is not None:
            chain = choice.filled
        else:
            kept = {(hop.peer, hop.blocks): hop for hop in self._roster.hops}
            chain = [kept.get((hop.peer, hop.blocks), hop) for hop in chain]
        return self._reserve(chain) if must_wait else self._connect(chain)

    def _no_chain(self, event: ev.NotChosen) -> bool:
        """Handle that no peers fill the gaps now: look again while there is a prospect, until the patience ends."""
        trouble, error = self._in_trouble(), event.error
        if isinstance(trouble.error, UsageError):  # no other peer can be asked, so this one is believed
            self._emit(ev.Pardon(frozenset(trouble.blaming_input)))
        if isinstance(trouble.error, GiveUp | UsageError):
            raise Ended(trouble.error)
        prospect = prospect_of(
            error, had_chain=self._roster.epoch > 0, seen_whole=event.seen_whole, looks=trouble.looks
        )
        if prospect is Prospect.HOPELESS or self._now >= trouble.give_up_at:
            raise Ended(error)
        if not trouble.told and prospect is Prospect.MAY_COME:
            trouble.told = True
            seconds = trouble.give_up_at - self._now
            self._emit(ev.Tell(SessionEvent("waiting", None, f"{error}; waiting up to {seconds:.0f} s for others")))
        if trouble.looks == 0:
            return self._look()
        trouble.look_next = True
        return self._enter(Phase.PAUSING, self._timing.no_chain_pause_seconds)

    def _look(self) -> bool:
        self._emit(ev.Look())
        return self._enter(Phase.LOOKING)

    def _decide_pausing(self) -> bool:
        if not self._is_late:
            return False
        trouble = self._in_trouble()
        if trouble.look_next:
            trouble.look_next = False
            return self._look()
        return self._choose()

    # --- waiting for room ---

    def _reserve(self, chain: Sequence[HopFacts | ev.HopChoice], wait_seconds: float | None = None) -> bool:
        """Open the new hops of a chain beside the present one, one by one, queueing at each that has no room."""
        if wait_seconds is None:
            left = self._in_trouble().give_up_at - self._now
            wait_seconds = max(self._timing.no_chain_pause_seconds, left)
        self._roster.next_epoch()
        hops = self._roster.hops_of(chain)
        new = [hop for hop in hops if hop not in self._roster.hops]
        self._reservation = OrderedReservation.of(hops, new, self._now, wait_seconds, self._timing)
        return self._enter(Phase.RESERVING)

    def _decide_reserving(self) -> bool:
        reservation = self._reservation
        assert reservation is not None
        if self._roster.has_failed():
            self._give_back(reservation)
            return self._repair()
        outcome = reservation.next_hop(self._now)
        if news := reservation.news(self._now):
            hop, place, estimate = news
            self._emit(ev.Tell(SessionEvent("queued", hop.peer, f"place {place}, about {estimate:.0f} s")))
        self._deadline = reservation.deadline
        if isinstance(outcome, NotAdmitted):
            self._give_back(reservation)
            return self._not_admitted(outcome)
        if outcome is not None:
            self._roster.open_beside(outcome, reservation.chain, reservation.until - self._now)
            return True
        return reservation.is_complete and self._connect(reservation.chain)

    def _give_back(self, reservation: OrderedReservation) -> None:
        self._reservation = None
        self._drop_failed(reservation.taken)
        self._roster.leave([hop for hop in reservation.taken if hop.alive])

    def _not_admitted(self, refusal: NotAdmitted) -> bool:
        if self._move is not None:
            self._end_move()
            return True
        trouble, error = self._in_trouble(), refusal.error
        trouble.error = error
        if isinstance(error, PeerBusy):
            if self._now >= trouble.give_up_at:
                raise Ended(error)
        else:
            trouble.repairs += 1
            if trouble.repairs > MAX_REPAIRS:
                raise Ended(error)
        if refusal.waited:
            return self._choose()
        timing = self._timing
        pause = error.retry_after_seconds if isinstance(error, PeerBusy) else timing.no_chain_pause_seconds
        pause = min(max(pause, timing.no_chain_pause_seconds), timing.max_busy_pause_seconds)
        return self._enter(Phase.PAUSING, max(0.0, min(pause, trouble.give_up_at - self._now)))

    # --- connecting and rebuilding ---

    def _connect(self, chain: Sequence[HopFacts | ev.HopChoice]) -> bool:
        """Make `chain` the chain; once it is connected and rebuilt, the steps under way are sent again."""
        self._reservation = None
        if self._move is not None and not self._move.is_decided:
            self._drop_move()
        self._confirming = self._roster.connect(list(chain))
        self._pace = StepPace(self._timing, self._slow_hops_left)
        self._statuses = {}
        for progress in self._progress:
            progress.sent = 0
        return self._enter(Phase.CONNECTING, self._leniency * self._timing.reroute_seconds)

    def _decide_connecting(self) -> bool:
        if self._roster.is_broken():
            return self._repair_or_rest()
        behind = [hop for hop in self._confirming if not hop.is_at(self._roster.epoch)]
        if not behind:
            return self._rebuild_next()
        if not self._is_late:
            return False
        for hop in behind:
            hop.fail(DeadlineExceeded(f"{hop.choice.address} does not take its new neighbours"))
        return self._repair_or_rest()

    def _repair_or_rest(self) -> bool:
        """Repair the chain if there is work, else leave that to the next operation, which knows what to rebuild."""
        return self._repair() if self._has_work else self._enter(Phase.RESTING)

    def _rebuild_next(self) -> bool:
        """Begin the next rebuild; if none is left, the chain is ready."""
        hops, operations = self._roster.hops, [progress.operation for progress in self._progress]
        if not operations or operations[0].starts_empty:
            for hop in hops:
                hop.built = True
        plan = next_rebuild(hops, operations)
        if plan is None:
            return self._stand()
        run, operation = hops[plan.first : plan.stop], operations[0]
        for hop in run:
            hop.built = False
        lengths = operation.permuted if plan.after_permutation else operation.kept
        tokens = max(1, sum(lengths))
        predicted = self._facts.predict_seconds(layout_of(run), tokens)
        seconds = self._timing.rebuild_seconds + self._timing.rebuild_factor * predicted
        source = hops[plan.first - 1] if plan.first else None
        mark = Rebuild(run[-1].peer, operation.first_seq, plan.after_permutation)
        recomputed = f", {plan.recomputed} peers recomputed" if plan.recomputed else ""
        text = f"{tokens} tokens to {run[-1].peer}{recomputed}"
        self._emit(ev.Tell(SessionEvent("replay", source.peer if source else None, text)))
        self._emit(ev.Replay(source.id if source else None, run[0].id, self._roster.epoch, lengths, mark, seconds))
        self._rebuild, self._rebuild_ends = plan, self._now + seconds
        return self._enter(Phase.REBUILDING, min(seconds, self._leniency * self._timing.open_seconds))

    def _decide_rebuilding(self) -> bool:
        if self._roster.is_broken():
            return self._repair()
        plan = self._rebuild
        assert plan is not None
        run = self._roster.hops[plan.first : plan.stop]
        if run[-1].rebuilt_epoch == self._roster.epoch:
            for hop in run:
                hop.built = True
            self._emit(ev.Tell(SessionEvent("rebuilt", run[-1].peer)))
            return self._rebuild_next()
        if not self._is_late:
            return False
        overdue = [hop for hop in run if not hop.opened or self._now >= self._rebuild_ends]
        if not overdue:
            self._deadline = self._rebuild_ends
            return False
        fed = self._roster.hops[max(0, plan.first - 1) : plan.stop]
        # A link may have swallowed the replay, so at first blame the links and relay them all.
        if all(hop.opened for hop in run) and sum(self._roster.relay(*link) for link in itertools.pairwise(fed)):
            return self._connect(self._roster.hops)
        # All links are relayed now, so this client sees which peer passes nothing on; its successor is not to blame.
        quiet = next((hop for hop in fed[:-1] if hop.passed_on_epoch != self._roster.epoch), None)
        if quiet is not None and all(hop.opened for hop in run):
            quiet.fail(DeadlineExceeded(f"{quiet.choice.address} does not pass on what its successor is rebuilt from"))
            return self._repair()
        for hop in overdue:
            hop.fail(DeadlineExceeded(f"{hop.choice.address} was not rebuilt in time"))
        return self._repair()

    def _stand(self) -> bool:
        """Finish bringing up the chain, which is ready for steps."""
        self._rebuild = None
        if self._move is not None:
            self._emit(ev.Tell(SessionEvent("handed-over", self._move.old.peer, describe(self.layout))))
            self._move = None
        return self._enter(Phase.RESTING)

    def _end_move(self) -> None:
        """Give up a hand-over: the old hop stays in the chain, whose hops were told of no newer epoch."""
        self._next_move_at = self._now + self._timing.handover_pause_seconds
        self._drop_move()
        if self.phase in (Phase.MOVING, Phase.RESERVING):
            self._enter(Phase.RESTING)

    def _drop_move(self) -> None:
        """Forget a hand-over, and leave its replacement unless that is part of the chain already."""
        move, self._move = self._move, None
        if move is None:
            return
        if move.copy is not None and move.copy.under_way and move.old in self._roster.hops:
            self._emit(ev.StopExport(move.old.id))
        self._roster.leave([hop for hop in self._roster.beside if hop is move.new])


def _is_silent(hop: HopFacts) -> bool:
    """Return whether a failure of this machine's own network could explain that a hop was lost."""
    return hop.to_blame and hop.error is not None and is_silence(hop.error)
