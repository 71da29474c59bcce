"""A session's chain as a state machine: events in, actions out; no I/O, no clock, no await.

`handle(event, now)` takes in an event and returns the actions to perform, in order.  The shell (session.py) performs
them, feeds the outcomes back as events, and calls with `Late` at `wake_at`.  Time never goes back.

The rules, in the order in which they are tried:

1. A step is answered by the last peer, in the present epoch, if that hop was not given up; other late messages are
   dropped.  An operation is done when all its steps were sent in the present epoch and are answered.
2. A late answer in itself blames no peer.  All peers are probed: those that are silent while others answer are given
   up, a link that swallowed the step is relayed, and a peer that answers probes but not the step is given up after
   `late_chances`.  If all are silent, other known nodes are pinged as well, over new connections: if none answers,
   this machine's network is down, and no peer is given up before it is back.
3. A chain with a failed hop is repaired: failed hops are left and banned, the router fills the gaps, the hops that stay
   are told their new neighbours in a new epoch, new hops get their caches (`facts.next_rebuild`), and the steps of all
   operations under way are sent again with the same seqs.  Peers that have applied them repeat their kept answers.
4. Errors caused by the input end the session and blame no peer: two different peers of a block say that the input
   cannot be computed, or fail in the same step; or one says so and no other peer can be asked.
5. A hop that leaves or is slow hands its cache over to another peer, part by part while steps go on.  Now and then so
   does the hop with the longest predicted time, if another peer makes the chain much faster.  Between operations, when
   little is left to copy, steps wait for the last part and the chain changes; at rest, once everything is copied.

Every change of phase is in the table of phases.py; the machine asserts that it makes no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

from ....proto.errors import LocalProtocolError
from ....proto.wire.frames import WireStep
from . import events as ev
from .facts import adoptable, merged
from .pace import AnsweredStep
from .phases import WHOLE_CHAIN, Phase
from .state import Ended, Progress
from .watching import Watching


class ChainMachine(Watching):
    """The chain of one session."""

    # --- what the shell sees ---

    @property
    def epoch(self) -> int:
        """The version of the chain; it rises with every change."""
        return self._roster.epoch

    @property
    def hop_ids(self) -> tuple[ev.HopId, ...]:
        """The streams of the chain, in order."""
        return tuple(hop.id for hop in self._roster.hops)

    @property
    def choices(self) -> tuple[ev.HopChoice, ...]:
        """The peers in use, in order, as the router chose them; safe to read from other threads."""
        return tuple(hop.choice for hop in self._roster.hops)

    @property
    def mixed(self) -> bool:
        """Whether the predecessors of a peer in use have changed their formats: its cache then has no page names."""
        return self._roster.mixed

    @property
    def wake_at(self) -> float:
        """When to call with `Late`; infinite if only events can change anything."""
        return min(self._deadline, self._move_wakes_at()) if self.phase is not Phase.ENDED else math.inf

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Take in an event and return the actions to perform, in order. O(hops + steps under way)."""
        self._now = max(self._now, now)
        self._actions = []
        if self.phase is Phase.ENDED and not isinstance(event, ev.Close):
            return []
        try:
            self._TAKE[type(event)](self, event)
            self._advance_move()
            while (decide := self._DECIDE.get(self.phase)) is not None and decide(self):
                pass
        except Ended as end:
            self._emit(ev.Fail(end.error))
            self._enter(Phase.ENDED)
        return self._actions

    # --- taking events in: most only record facts, and the phase decides afterwards ---

    def _take_prepare(self, event: ev.Prepare) -> None:
        self._preparing = event.rows

    def _take_begin(self, event: ev.Begin) -> None:
        self._progress.append(Progress(event.operation))
        self._last_begun = event.operation.stop_seq - 1, event.operation.after
        if self._move is not None and self._move.copy is not None:
            self._move.copy.note(event.operation)

    def _take_close(self, _event: ev.Close) -> None:
        self._roster.leave([*self._roster.hops, *self._roster.beside])
        self._enter(Phase.ENDED)

    def _take_chosen(self, event: ev.Chosen) -> None:
        if self._move is not None and event.number == self._move.question:
            self._begin_move(self._move, event.choices)
            return
        if self._choice is None or event.number != self._choice.number:
            return
        choice, self._choice = self._choice, None
        if self._roster.has_failed():  # while the router was choosing
            self._repair()
        else:
            self._take_chain(choice, merged(choice.kept, event.choices))

    def _take_not_chosen(self, event: ev.NotChosen) -> None:
        if self._move is not None and event.number == self._move.question:
            self._end_move()
            return
        if self._choice is None or event.number != self._choice.number:
            return
        choice, self._choice = self._choice, None
        if self._roster.has_failed():
            self._repair()
        elif choice.kept:
            self._ask_router([])
        elif choice.filled is not None and self._has_answers:
            self._reserve(choice.filled)
        else:
            if not self._has_answers:
                self._roster.leave(self._roster.hops)
            self._no_chain(event)

    def _take_looked(self, event: ev.Looked) -> None:
        if self.phase is not Phase.LOOKING:
            return
        trouble = self._in_trouble()
        trouble.looks += 1
        if event.error is not None:
            trouble.away = True
        elif trouble.away and trouble.banned:
            self._emit(ev.Pardon(frozenset(trouble.banned)))
            trouble.banned.clear()
        self._choose()

    def _take_opened(self, event: ev.Opened) -> None:
        if hop := self._roster.find(event.hop):
            hop.opened, hop.credits, hop.held_tokens = True, event.credits, event.held_tokens

    def _take_queued(self, event: ev.Queued) -> None:
        if hop := self._roster.find(event.hop):
            hop.queued = event.place, event.estimate_seconds

    def _take_rerouted(self, event: ev.Rerouted) -> None:
        if hop := self._roster.find(event.hop):
            hop.state = event

    def _take_rebuilt(self, event: ev.Rebuilt) -> None:
        if hop := self._roster.find(event.hop):
            hop.rebuilt_epoch = event.epoch
            self._take_part(hop)

    def _take_push_failed(self, event: ev.PushBroken) -> None:
        if hop := self._roster.find(event.hop):
            hop.push_failed_epoch = event.epoch

    def _take_answered(self, event: ev.Answered) -> None:
        hop, step = self._roster.find(event.hop), event.step
        hops = self._roster.hops
        if hop is None or not hop.alive or hop not in hops or step.epoch != self._roster.epoch:
            return
        if hop.blocks.stop < self._num_blocks:
            after = next((other for other in hops if other.blocks.start == hop.blocks.stop), None)
            if after is not None:  # while a gap is being filled there is no successor
                hop.passed_on_epoch = step.epoch
                self._emit(ev.Send(after.id, step))
            return
        if self.phase not in WHOLE_CHAIN:
            return
        progress = next((p for p in self._progress if p.operation.first_seq <= step.seq < p.operation.stop_seq), None)
        index = step.seq - progress.operation.first_seq if progress is not None else -1
        if step.rebuild is not None or progress is None or step.plan != progress.operation.steps[index]:
            hop.fail(LocalProtocolError(f"{hop.choice.address} answered a question that was not asked"))
        elif index < progress.sent and step.seq not in progress.answers:
            self._note_pace(progress, index, step)
            progress.answers[step.seq] = step.data
            self._has_answers = True
            self._trouble, self._late_times = None, 0
            if self.phase in (Phase.EXAMINING, Phase.AWAY):
                self._enter(Phase.RUNNING, self._allowed_seconds())
            elif self.phase is Phase.RUNNING:
                self._deadline = self._now + self._allowed_seconds()

    def _note_pace(self, progress: Progress, index: int, step: WireStep) -> None:
        hops, tokens = dict(self.layout), step.plan.tokens
        # The last peer may name any others, and as many new ones in every answer as a frame holds.
        timings = [timing for timing in step.timings if timing.peer in hops]
        offset_seconds = self._facts.clock_offset_seconds
        answered = AnsweredStep(progress.sent_at[index], self._now, timings, offset_seconds)
        if len(progress.operation.steps) > 1:
            self._pace.pass_over(answered)
            return
        self._pace.note(
            answered,
            self._facts.predict_seconds(self.layout, tokens),
            lambda peer: self._facts.predict_seconds([(peer, hops[peer])], tokens),
        )

    # --- resting and running ---

    def _decide_resting(self) -> bool:
        if not self._has_work:
            return self._decide_idle()
        if not self._roster.hops or self._roster.is_broken():
            return self._repair()
        self._look_for_move()
        return self._finish_move() if self._move_is_due() else self._enter(Phase.RUNNING, self._allowed_seconds())

    def _decide_running(self) -> bool:
        if self._roster.is_broken():
            return self._repair()
        if self._preparing is not None and all(hop.opened for hop in self._roster.hops):
            hops = () if self._roster.mixed else self._roster.hops  # held pages are only valid behind equal formats
            self._emit(ev.Ready(adoptable(hops, self._preparing)))
            self._preparing = None
        self._finish_operations()
        if not self._has_work:
            return self._enter(Phase.RESTING)
        if any(not progress.sent_at for progress in self._progress):
            self._look_for_move()
        is_due = self._move_is_due()
        if is_due and all(progress.sent == 0 for progress in self._progress):
            return self._finish_move()
        self._send_steps(only_begun=is_due)
        if self._finish_operations():
            return True
        if self._is_late:
            return self._examine()
        return False

    def _finish_operations(self) -> bool:
        """Report the operations that are done, in order; return whether there were any."""
        count = len(self._progress)
        while self._progress and self._progress[0].is_done:
            done = self._progress.pop(0)
            answers = tuple(done.answers[seq] for seq in sorted(done.answers))
            self._emit(ev.Done(done.operation, answers))
        return len(self._progress) < count

    def _send_steps(self, *, only_begun: bool) -> None:
        hops = self._roster.hops
        in_flight = sum(progress.in_flight for progress in self._progress)
        for progress in self._progress:
            if only_begun and progress.sent == 0:
                return
            operation = progress.operation
            while progress.sent < len(operation.steps) and in_flight < hops[0].credits:
                allowed_seconds = self._allowed_seconds()
                if in_flight == 0:
                    self._deadline = self._now + allowed_seconds
                index = progress.sent
                step = WireStep(
                    epoch=self._roster.epoch,
                    seq=operation.first_seq + index,
                    plan=operation.steps[index],
                    data=operation.data[index],
                    acked_seq=self._progress[0].operation.first_seq - 1,
                    timeout_seconds=self._timing.deadline_factor * allowed_seconds,
                )
                progress.sent_at[index] = self._now
                progress.sent += 1
                in_flight += step.seq not in progress.answers
                self._emit(ev.Send(hops[0].id, step))

    _TAKE: ClassVar[Mapping[type, Callable[..., object]]] = {
        ev.Prepare: _take_prepare,
        ev.Begin: _take_begin,
        ev.Finish: Watching._take_finish,
        ev.Close: _take_close,
        ev.Chosen: _take_chosen,
        ev.NotChosen: _take_not_chosen,
        ev.Looked: _take_looked,
        ev.NetworkBack: Watching._take_network_back,
        ev.NetworkAway: Watching._take_network_away,
        ev.Opened: _take_opened,
        ev.Queued: _take_queued,
        ev.Rerouted: _take_rerouted,
        ev.Rebuilt: _take_rebuilt,
        ev.Exported: Watching._take_exported,
        ev.Answered: _take_answered,
        ev.PartDropped: Watching._take_part_dropped,
        ev.Probed: Watching._take_probed,
        ev.PushBroken: _take_push_failed,
        ev.Lost: Watching._take_lost,
        ev.Late: lambda machine, late: None,  # `handle` has taken in the time; the phase decides
    }
    _DECIDE: ClassVar[Mapping[Phase, Callable[..., bool]]] = {
        Phase.RESTING: _decide_resting,
        Phase.PAUSING: Watching._decide_pausing,
        Phase.RESERVING: Watching._decide_reserving,
        Phase.CONNECTING: Watching._decide_connecting,
        Phase.REBUILDING: Watching._decide_rebuilding,
        Phase.RUNNING: _decide_running,
        Phase.EXAMINING: Watching._decide_examining,
        Phase.AWAY: Watching._decide_away,
        Phase.MOVING: Watching._decide_moving,
    }
