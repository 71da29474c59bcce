"""Handing over: a hop that leaves, or is slow, is replaced while it works, and its attention cache moves."""

from __future__ import annotations

from collections.abc import Sequence

from ....proto.errors import DeadlineExceeded
from . import events as ev
from .facts import HopFacts, wait_seconds
from .phases import Phase
from .repairing import Repairing
from .state import Handover


class Moving(Repairing):
    """The decisions of a hand-over."""

    def _start_move(self) -> bool:
        """Before an operation: replace a hop that leaves, or that makes the chain slow; whether one is replaced.

        A peer that nobody can replace stays until it is gone.
        """
        if self._untouched or any(progress.sent_at for progress in self._progress):
            return False
        if self._now >= self._next_move_at:
            self._tried = set()
        hops = [hop for hop in self._roster.hops if hop.peer not in self._tried]
        slow = self._pace.slow_peer
        old = next((hop for hop in hops if self._facts.leaving(hop.peer, hop.blocks)), None)
        old = old or next((hop for hop in hops if hop.peer == slow), None)
        if old is None:
            return False
        self._tried.add(old.peer)
        self._next_move_at = self._now + self._timing.handover_pause_seconds
        self._move = Handover(old, self._roster.epoch, slow=not self._facts.leaving(old.peer, old.blocks))
        others = [hop for hop in self._roster.hops if hop is not old]
        return self._ask_router(others, excluded=frozenset({old.peer}))

    def _begin_move(self, move: Handover, choices: Sequence[ev.HopChoice]) -> bool:
        chain = self._roster.replaced(move.old, choices)
        wait, timing = wait_seconds(chain), self._timing
        if wait > timing.handover_wait_seconds or (move.slow and not self._is_faster(chain)):
            return self._end_move()
        move.waits = wait > 0
        if len(choices) > 1 or choices[0].stream_format != move.old.choice.stream_format:  # caches have that dtype too
            return self._reserve(chain, timing.handover_wait_seconds) if move.waits else self._connect(chain)
        self._roster.next_epoch()
        hops = self._roster.hops_of(chain)
        move.new = next(hop for hop in hops if hop not in self._roster.hops)
        self._roster.open_beside(move.new, hops, timing.handover_wait_seconds if move.waits else 0.0)
        return self._enter(Phase.MOVING, timing.handover_seconds)

    def _is_faster(self, chain: Sequence[HopFacts | ev.HopChoice]) -> bool:
        """Whether the chain promises to be faster than the present one is; if not, it is asked later."""
        predicted = self._facts.predict_seconds([(hop.peer, hop.blocks) for hop in chain], 1)
        faster = predicted <= self._timing.slow_gain * self._pace.step_seconds
        if not faster:
            self._pace.forgive()
        return faster

    def _decide_moving(self) -> bool:
        move, roster = self._move, self._roster
        assert move is not None
        assert move.new is not None
        if any(not hop.alive for hop in roster.hops if hop is not move.old):
            self._emit(ev.StopExport(move.old.id))
            roster.leave([move.new])
            return self._repair()
        if move.new.alive and self._is_late and not move.new.opened:
            move.new.fail(DeadlineExceeded(f"{move.new.choice.address} does not answer"))
        if not move.new.alive:
            self._emit(ev.StopExport(move.old.id))
            self._drop_failed([move.new])
            return self._end_move()
        move.new.built = move.new.rebuilt_epoch == roster.epoch
        if move.new.built or self._is_late or not move.old.alive:
            self._emit(ev.StopExport(move.old.id))
            # The old peer's cache in a peer that computes otherwise: there is no name for it.
            roster.mixed |= move.new.built and move.new.choice.arithmetic != move.old.choice.arithmetic
            return self._connect(roster.replaced(move.old, [move.new]))
        if not move.exporting and (move.new.opened or not move.waits):
            move.exporting = True
            operation = self._progress[0].operation
            self._emit(
                ev.Export(
                    move.old.id,
                    move.new.id,
                    operation.first_seq - 1,
                    operation.before,
                    self._timing.handover_seconds,
                )
            )
        return False
