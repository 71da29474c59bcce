"""Hand-over: replaces a hop that leaves, is slow, or has a much faster rival while it works; its cache moves along.

The replacement is chosen, opened, and given the cache part by part while steps go on.  Between two operations, when
little is left, steps wait for the last part (`MOVING`); then the chain is rerouted.  A session at rest has no steps on
which it would notice anything, so it checks from time to time whether one of its peers is leaving.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....proto.errors import DeadlineExceeded
from ...config import SessionEvent
from ..copying import CacheCopy
from . import events as ev
from .facts import HopFacts, wait_seconds
from .phases import Phase
from .repairing import Repairing
from .state import Handover, Why

_COPYING = frozenset({Phase.RESTING, Phase.RUNNING, Phase.MOVING})
"""The phases in which parts are requested."""


class Moving(Repairing):
    """The decisions of a hand-over."""

    # --- choosing the hop and its replacement ---

    def _look_for_move(self) -> None:
        """Before an operation, seek a replacement for a hop that leaves, is slow, or may have a much faster rival.

        A peer that no other can replace stays until it is gone.
        """
        if self._move is not None or not self._has_answers:
            return
        hops = self._replaceable()
        slow = self._pace.slow_peer
        old, why = self._leaving_hop(hops), Why.LEAVES
        if old is None:
            old, why = next((hop for hop in hops if hop.peer == slow), None), Why.SLOW
        if old is None:
            old, why = self._longest_hop(hops), Why.BETTER
        if old is not None:
            self._ask_for_replacement(old, why)

    def _replaceable(self) -> list[HopFacts]:
        """Return the hops for which no replacement was sought recently."""
        if self._now >= self._next_move_at:
            self._tried = set()
        return [hop for hop in self._roster.hops if hop.peer not in self._tried]

    def _leaving_hop(self, hops: Sequence[HopFacts]) -> HopFacts | None:
        return next((hop for hop in hops if self._facts.leaving(hop.peer, hop.blocks)), None)

    def _ask_for_replacement(self, old: HopFacts, why: Why) -> None:
        self._tried.add(old.peer)
        self._next_move_at = self._now + self._timing.handover_pause_seconds
        others = [hop for hop in self._roster.hops if hop is not old]
        self._move = Handover(old, why, self._pose(others, frozenset({old.peer})))

    def _longest_hop(self, hops: Sequence[HopFacts]) -> HopFacts | None:
        """Return the hop with the longest predicted time, every `better_seconds`; None in between."""
        due = self._next_better_at is not None and self._now >= self._next_better_at
        if due or self._next_better_at is None:
            self._next_better_at = self._now + self._timing.better_seconds
        if not due:
            return None
        return max(hops, key=lambda hop: self._facts.predict_seconds([(hop.peer, hop.blocks)], 1), default=None)

    def _begin_move(self, move: Handover, choices: Sequence[ev.HopChoice]) -> None:
        chain = self._roster.replaced(move.old, choices)
        wait, timing = wait_seconds(chain), self._timing
        if wait > timing.handover_wait_seconds or not self._is_worth_it(move, chain, wait):
            self._end_move()
            return
        move.waits = wait > 0
        if len(choices) > 1 or choices[0].stream_format != move.old.choice.stream_format:  # the dtype of caches, too
            move.chain = chain
            return
        self._roster.next_epoch()
        hops = self._roster.hops_of(chain)
        move.new = next(hop for hop in hops if hop not in self._roster.hops)
        patience = timing.handover_wait_seconds if move.waits else 0.0
        move.open_until = self._now + patience + timing.answer_seconds
        self._roster.open_beside(move.new, hops, patience)

    def _is_worth_it(self, move: Handover, chain: Sequence[HopFacts | ev.HopChoice], wait: float) -> bool:
        """Return whether the new chain is predicted to be enough faster; a hop that leaves is always replaced."""
        predicted = self._facts.predict_seconds([(hop.peer, hop.blocks) for hop in chain], 1)
        if move.why is Why.BETTER:
            return wait == 0 and predicted <= self._timing.slow_gain * self._facts.predict_seconds(self.layout, 1)
        worth_it = move.why is Why.LEAVES or predicted <= self._timing.slow_gain * self._pace.step_seconds
        if not worth_it:
            self._pace.forgive()
        elif move.why is Why.SLOW:
            self._slow_hops_left += 1
        return worth_it

    # --- at rest ---

    @property
    def _is_idle(self) -> bool:
        """Whether the chain is whole, at rest, and has computed something."""
        rests = self.phase is Phase.RESTING and not self._has_work and self._last_begun[0] > 0
        return rests and bool(self._roster.hops) and not self._roster.is_broken()

    def _decide_idle(self) -> bool:
        """At rest, replace only hops that leave, and only with a complete copy of the cache.

        Anything that must be recomputed can wait for the next operation, which may never come.
        """
        move = self._move
        if not self._is_idle:
            return False
        if move is None:
            if self._now >= self._next_idle_look_at:
                self._next_idle_look_at = self._now + self._timing.idle_look_seconds
                leaving = self._leaving_hop(self._replaceable())
                if leaving is not None:
                    self._ask_for_replacement(leaving, Why.LEAVES)
            return False
        if move.new is None or move.copy is None or not move.copy.is_complete(*self._boundary()):
            return False
        move.new.built = True
        return self._hand_over(move)

    # --- copying, while steps go on ---

    def _advance_move(self) -> None:
        """Do what can be done for the hand-over now, while steps go on."""
        move = self._move
        if move is None or move.new is None or move.is_decided:
            return
        if move.old not in self._roster.hops:
            self._end_move()
            return
        if not move.new.opened and self._now >= move.open_until:
            move.new.fail(DeadlineExceeded(f"{move.new.choice.address} does not answer"))
        if not move.new.alive:
            self._drop_failed([move.new])
            self._end_move()
            return
        if not move.new.opened or not move.old.alive:
            return
        if move.copy is None:
            move.copy = CacheCopy()
            for progress in self._progress:
                move.copy.note(progress.operation)
            move.copy_until = self._now + self._timing.handover_seconds
        if self._now >= move.copy_until and not move.copy.is_complete(*self._boundary()):
            move.replays = True
        elif self.phase in _COPYING and self._next_part_at() <= self._now:
            self._ask_for_part(move, move.copy)

    def _next_part_at(self) -> float:
        """Return when to request the next part; infinite: no part is wanted now."""
        move = self._move
        if move is None or move.copy is None or move.copy.under_way or move.replays:
            return float("inf")
        if self.phase is Phase.MOVING or (self.phase is Phase.RESTING and not self._has_work):
            wants = not move.copy.is_complete(*self._boundary())
        else:
            # A small part is worth requesting only if the old peer has certainly applied more steps meanwhile.
            enough = move.copy.little_tokens if move.copy.seq < self._applied_seq() else move.copy.part_tokens
            wants = move.copy.missing_after(*self._boundary()) > enough
        if not wants:
            return float("inf")
        return self._now if self.phase is Phase.MOVING and not move.is_starved else move.next_part_at

    def _applied_seq(self) -> int:
        """Return the last seq up to which all steps are answered, and so applied by every peer."""
        return self._sought_seq() - 1 if self._sought_seq() else self._last_begun[0]

    def _ask_for_part(self, move: Handover, copy: CacheCopy) -> None:
        assert move.new is not None
        copy.ask()
        starts, left = copy.held_after(self._boundary()[0]), max(0.001, move.copy_until - self._now)
        self._emit(ev.Export(move.old.id, move.new.id, copy.round, starts, copy.part_tokens, left))

    def _take_exported(self, event: ev.Exported) -> None:
        move = self._move
        if move is not None and move.copy is not None and (event.hop, event.round) == (move.old.id, move.copy.round):
            move.copy.head, move.copy.head_at = event, self._now

    def _take_part_dropped(self, event: ev.PartDropped) -> None:
        """Replay as soon as possible: the part under way will never arrive."""
        move = self._move
        if move is not None and event.hop == move.old.id and move.copy is not None and move.copy.under_way:
            move.replays = True

    def _take_part(self, hop: HopFacts) -> None:
        """Take in that a part of a cache has arrived; if at the replacement, schedule the next part or a replay."""
        move, timing = self._move, self._timing
        if move is None or hop is not move.new or move.copy is None or move.copy.head is None or move.is_decided:
            return
        copy, seconds = move.copy, self._now - move.copy.head_at
        tokens = copy.arrived()
        way = self._facts.predict_seconds([(hop.peer, hop.blocks)], 1)
        copy.fit_parts(tokens, seconds - way, timing.part_seconds)
        move.is_starved = tokens == 0  # the old peer had nothing new to send
        pause = timing.part_seconds if move.is_starved else seconds * (1 / timing.link_share - 1)
        move.next_part_at = self._now + pause
        seq, lengths = self._boundary()
        missing = copy.missing_after(seq, lengths)
        is_near = missing <= copy.part_tokens
        if is_near and move.near_at is None:
            move.near_at = self._now
            self._emit(ev.Tell(SessionEvent("copied", move.old.peer, f"{sum(lengths) - missing} tokens")))
        if copy.grows or not tokens or is_near:
            move.doubts = 0
            return
        left_seconds = missing * seconds / tokens / timing.link_share
        replay_seconds = self._facts.predict_seconds([(hop.peer, hop.blocks)], sum(lengths))
        doubtful = self._now + left_seconds > move.copy_until or replay_seconds + timing.noticed_seconds < seconds
        move.doubts = move.doubts + 1 if doubtful else 0
        move.replays = move.doubts >= timing.doubtful_parts

    def _move_wakes_at(self) -> float:
        """Return when to look at the hand-over again if no event comes."""
        move = self._move
        if move is None and self._is_idle:
            return self._next_idle_look_at
        if move is None or move.new is None or move.is_decided or move.replays or not move.old.alive:
            return float("inf")
        if move.copy is None:
            return move.open_until
        if move.copy.under_way:
            return move.copy_until
        return self._next_part_at() if self.phase in _COPYING else float("inf")

    # --- changing the chain, between two operations ---

    def _move_is_due(self) -> bool:
        """Return whether the chain should change before the next unsent operation.

        The best moment is when hardly anything is left to copy and the next part may be requested at once, because the
        operation waits for it.
        """
        move = self._move
        if move is None or move.is_decided or not self._progress:
            return False
        if move.new is None:
            return move.chain is not None
        if move.copy is None or move.replays:
            return move.replays
        copy, missing = move.copy, move.copy.missing_after(*self._boundary())
        if missing > (2 if copy.under_way else 1) * copy.part_tokens:
            return False
        if move.near_at is not None and self._now >= move.near_at + self._timing.settle_seconds:
            return True
        return missing <= copy.little_tokens and self._now >= move.next_part_at

    def _finish_move(self) -> bool:
        move = self._move
        assert move is not None
        if move.chain is not None:
            move.is_decided = True
            return (
                self._reserve(move.chain, self._timing.handover_wait_seconds)
                if move.waits
                else self._connect(move.chain)
            )
        if move.replays:
            return self._hand_over(move)
        move.is_starved = False  # by now the old peer has applied everything
        self._enter(Phase.MOVING, self._timing.last_part_seconds)
        self._advance_move()
        return True

    def _decide_moving(self) -> bool:
        move = self._move
        if self._roster.has_failed():
            return self._repair()
        assert move is not None
        assert move.new is not None
        assert move.copy is not None
        move.new.built = move.copy.is_complete(*self._boundary())
        if move.new.built or move.replays or self._is_late:
            return self._hand_over(move)
        return False

    def _hand_over(self, move: Handover) -> bool:
        """Put the replacement into the chain; if its cache is not complete, it is rebuilt by a replay."""
        assert move.new is not None
        move.is_decided = True
        if move.copy is not None and move.copy.under_way:
            self._emit(ev.StopExport(move.old.id))
        # The old peer's cache in a peer with another arithmetic: no page name describes it.
        self._roster.mixed |= move.new.built and move.new.choice.arithmetic != move.old.choice.arithmetic
        return self._connect(self._roster.replaced(move.old, [move.new]))
