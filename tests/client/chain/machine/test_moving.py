"""A cache moves to another peer while steps go on; the peers are played with rows of numbered tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest
from blockswarm.client.chain.machine import events as ev
from blockswarm.client.chain.machine.phases import Phase
from blockswarm.proto.errors import PeerBusy, PeerUnavailable
from blockswarm.proto.wire.frames import WireStep
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from hypothesis import given, settings
from hypothesis import strategies as st
from support.played_chain import THIRDS, TIMING, Chain, all_of, choice, last, lose, running

Rows = list[list[tuple[int, int]]]
"""By row, a name for each token: the step that computed it, and its number there."""


def apply(rows: Rows, step: WireStep) -> Rows:
    if step.plan.source_rows is not None:
        rows = [list(rows[source]) for source in step.plan.source_rows]
    number = 0
    for piece in step.plan.rows:
        if piece.row == len(rows):
            rows.append([])
        del rows[piece.row][piece.start :]
        rows[piece.row] += [(step.seq, number + index) for index in range(piece.count)]
        number += piece.count
    return rows


class Move:
    """A session whose peer b leaves for d; each step waits at b until it is applied, and then for its answer."""

    def __init__(self, tokens: int = 100, others: int = 0) -> None:
        self.chain = running()
        self.steps: deque[WireStep] = deque()
        self.applied: deque[WireStep] = deque()
        self.exports: deque[ev.Export] = deque()
        self.parts: deque[tuple[ev.Exported, Rows]] = deque()
        self.asked = 0
        self.rows: Rows = []
        for seq in (1, 2):
            self.rows = apply(self.rows, WireStep(1, seq, plan_of(RowSlice(0, seq - 1, 1, 1)), b"", 0, 1.0))
        self.b_seq = 2
        self.new: Rows | None = None
        self.replays: list[ev.Replay] = []
        self.unconfirmed = False
        """Whether the hops do not say that they took their new neighbours."""
        self.begin(RowSlice(0, 2, tokens, 1), *(RowSlice(row + 1, 0, 9, 1) for row in range(others)))
        self.finish()
        self.chain.facts.left = {"b"}

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.chain.table.lengths

    @property
    def phase(self) -> Phase:
        return self.chain.machine.phase

    def see(self, actions: Sequence[ev.Action]) -> None:
        for action in actions:
            if isinstance(action, ev.Send) and action.hop == self.chain.opened["a"]:
                self.steps.append(action.step)
            elif isinstance(action, ev.Export):
                self.exports.append(action)
                self.asked += 1
            elif isinstance(action, ev.Replay):
                self.replays.append(action)
            elif isinstance(action, ev.Choose) and "b" in action.excluded:
                self.see(self.chain.choose([action], choice("d", THIRDS[1])))
                self.see(self.chain.feed(ev.Opened(self.chain.opened["d"], 8)))
        if all_of(actions, ev.Reroute) and not self.unconfirmed:
            self.see(self.chain.confirm(actions, self.b_seq))

    def begin(self, *rows: RowSlice, source: tuple[int, ...] | None = None) -> None:
        self.see(self.chain.begin(*rows, source=source))

    def append(self) -> None:
        self.begin(RowSlice(0, self.lengths[0], 1, 1))

    def apply(self) -> None:
        """b applies the next step, or would have if d had not taken over."""
        step = self.steps.popleft()
        if step.seq > self.b_seq:
            self.rows, self.b_seq = apply(self.rows, step), step.seq
            if self.moved and self.new is not None:
                self.new = apply(self.new, step)
        self.applied.append(step)

    def answer(self) -> None:
        self.see(self.chain.answer("c", self.applied.popleft()))

    def finish(self) -> None:
        """All steps are applied and answered."""
        while self.steps or self.applied:
            if self.steps:
                self.apply()
            if self.applied:
                self.answer()

    def export(self, most: int = 1000) -> None:
        """b sends the part that is asked for, or a shorter one."""
        asked = self.exports.popleft()
        left, starts, lengths, content = min(most, asked.max_tokens), [], [], []
        for index, row in enumerate(self.rows):
            start = min(len(row), asked.starts[index] if index < len(asked.starts) else 0)
            piece = row[start : start + left]
            left -= len(piece)
            starts.append(start)
            lengths.append(start + len(piece))
            content.append(piece)
        event = ev.Exported(self.chain.opened["b"], asked.round, self.b_seq, tuple(starts), tuple(lengths))
        self.parts.append((event, content))
        self.see(self.chain.feed(event))

    def arrive(self) -> None:
        """d has the part."""
        event, content = self.parts.popleft()
        rows = self.new or []
        for row, start in enumerate(event.starts):
            assert start <= (len(rows[row]) if row < len(rows) else 0), "it could not be continued"
        self.new = [
            [*(rows[row][:start] if start else []), *piece]
            for row, (start, piece) in enumerate(zip(event.starts, content, strict=True))
        ]
        self.see(self.chain.feed(ev.Rebuilt(self.chain.opened["d"], 2)))

    def copy(self) -> None:
        """Parts go over as long as any is asked for."""
        while self.exports or self.parts:
            if self.exports:
                self.export()
            self.arrive()
            self.late_for_a_part()

    def late_for_a_part(self) -> None:
        """The pause after a part is over."""
        if self.chain.machine.wake_at < self.chain.now + 1:
            self.see(self.chain.late())

    @property
    def moved(self) -> bool:
        return "d" in dict(self.chain.machine.layout)

    def go_on_until_moved(self) -> None:
        for _ in range(100):
            self.append()
            self.copy()
            self.finish()
            self.late_for_a_part()
            if self.moved:
                return
        pytest.fail("the session never moved")


def plan_of(*rows: RowSlice) -> StepPlan:
    return StepPlan(rows)


def test_steps_go_on_while_the_cache_moves() -> None:
    move = Move()
    move.append()
    assert len(move.steps) == 1, "the step did not wait"
    move.finish()
    move.export()
    move.append()
    move.finish()
    move.arrive()
    move.late_for_a_part()
    assert move.asked == 2
    assert not move.moved
    move.go_on_until_moved()
    assert move.new == move.rows
    assert not move.replays
    assert all_of(move.chain.log, ev.Leave)[-1].hop == move.chain.opened["b"], "its memory is free"


def test_a_session_at_rest_moves_without_any_step() -> None:
    move = Move()
    move.chain.late()  # it looks now and then, and asks nobody
    assert last(move.chain.log, ev.Choose).excluded == {"b"}
    move.see(move.chain.choose(move.chain.log, choice("d", THIRDS[1])))
    move.see(move.chain.feed(ev.Opened(move.chain.opened["d"], 8)))
    move.copy()
    assert move.moved
    assert move.phase is Phase.RESTING
    assert all_of(move.chain.log, ev.Leave)[-1].hop == move.chain.opened["b"], "it may go"
    move.append()
    assert move.phase is Phase.RUNNING
    move.finish()
    assert move.new == move.rows
    assert not move.replays


def test_a_session_at_rest_wakes_up_seldom_and_only_where_peers_have_caches() -> None:
    unused = Chain()
    assert unused.machine.wake_at == float("inf")
    chain = running()
    for _ in range(10):
        before = chain.now
        assert not chain.late()
        assert chain.now >= before + TIMING.idle_look_seconds or before == 0
    lose(chain, "c")
    assert chain.machine.wake_at == float("inf"), "the next operation repairs it"


@pytest.mark.parametrize("dies", ["a", "d"])
def test_a_chain_that_breaks_while_a_session_at_rest_moves_is_repaired_by_the_next_operation(dies: str) -> None:
    """Then it is known which caches have to be rebuilt; at rest none would be."""
    move = Move()
    move.see(move.chain.late())
    while not all_of(move.chain.log, ev.Reroute):
        move.unconfirmed = True
        move.copy()
    assert move.phase is Phase.CONNECTING
    lose(move.chain, dies)
    assert move.phase is Phase.RESTING
    actions = move.chain.begin(RowSlice(0, move.lengths[0], 1, 1))
    assert last(actions, ev.Choose).kept
    chosen = move.chain.choose(actions, choice("e", THIRDS[0 if dies == "a" else 1]))
    move.chain.feed(ev.Opened(move.chain.opened["e"], 8))
    actions = move.chain.confirm([*actions, *chosen], move.b_seq)
    assert last(actions, ev.Replay).target == move.chain.opened["e"]


def test_a_step_waits_for_the_last_part_only() -> None:
    move = Move()
    move.append()
    move.finish()
    move.copy()  # while nothing is under way all of it goes over, and the chain changes
    assert move.new == move.rows
    assert move.moved
    move.append()
    assert move.phase is Phase.RUNNING, "nothing was left to copy"
    assert [step.seq for step in move.steps] == [move.chain.next_seq - 1]


@pytest.mark.parametrize(("tokens", "most_lacking"), [(1, 2), (30, 60)])
def test_a_step_waits_for_hardly_more_than_was_computed_since_the_last_part(tokens: int, most_lacking: int) -> None:
    """A part of 50 tokens takes the time that parts should; steps of 30 always leave more than little."""
    move = Move(tokens=1000)
    while True:
        move.begin(RowSlice(0, move.lengths[0], tokens, 1))
        if move.phase is Phase.MOVING:
            break
        assert move.chain.now < 10 * TIMING.settle_seconds
        if move.exports:
            move.export()
            move.chain.now += move.chain.facts.seconds + 0.001 * sum(map(len, move.parts[0][1]))
            move.arrive()
        move.finish()
        move.chain.now += TIMING.part_seconds
        move.late_for_a_part()
    has = sum(mine == other for mine, other in zip((move.new or [[]])[0], move.rows[0], strict=False))
    assert 0 < len(move.rows[0]) - has <= most_lacking
    move.copy()
    assert move.moved
    assert move.new == move.rows
    assert not move.replays


STEPS: dict[str, tuple[tuple[RowSlice, ...], tuple[int, ...] | None]] = {
    "rollback": ((RowSlice(0, 5, 1, 1),), None),
    "rollback of what is on its way": ((RowSlice(0, 12, 1, 1),), None),
    "exchange": ((RowSlice(0, 9, 1, 1),), (1, 0)),
    "fork": ((RowSlice(0, 102, 1, 1), RowSlice(1, 102, 1, 1)), (0, 0, 1)),
    "drop": ((RowSlice(0, 9, 1, 1),), (1,)),
    "drop of all but a new row": ((RowSlice(0, 0, 3, 1),), ()),
}


@pytest.mark.parametrize("applied", ["before the export", "after the export", "after the arrival"])
@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_drops_during_a_round_is_copied_again(name: str, applied: str) -> None:
    move = Move(others=1)
    move.append()
    move.finish()
    move.export()
    move.arrive()
    move.late_for_a_part()
    rows, source = STEPS[name]
    move.begin(*rows, source=source)
    moments = {"before the export": move.export, "after the export": move.arrive}
    for moment, work in moments.items():
        if applied == moment:
            move.finish()
        work()
    move.go_on_until_moved()
    assert move.new == move.rows
    assert not move.replays


def test_a_new_peer_that_dies_during_a_round_changes_nothing() -> None:
    move = Move()
    move.append()
    move.finish()
    move.export()
    actions = lose(move.chain, "d")
    assert [ban.peer for ban in all_of(actions, ev.Ban)] == ["d"]
    assert all_of(actions, ev.StopExport)
    move.append()
    assert len(move.steps) == 1
    move.finish()
    assert "b" in dict(move.chain.machine.layout)


@pytest.mark.parametrize("during_a_step", [False, True])
def test_where_the_old_peer_dies_during_a_round_the_new_one_is_rebuilt_by_a_replay(during_a_step: bool) -> None:
    move = Move()
    move.append()
    move.export()
    if not during_a_step:
        move.finish()
    move.see(lose(move.chain, "b"))
    move.parts.clear()
    if not during_a_step:
        move.append()
    assert move.moved
    assert not all_of(move.chain.log[-20:], ev.Choose)[1:], "nobody else is looked for"
    assert [replay.target for replay in move.replays] == [move.chain.opened["d"]]


@pytest.mark.parametrize("dies", [False, True])
def test_a_new_peer_with_an_old_copy_does_not_hold_the_text_before_it_is_rebuilt(dies: bool) -> None:
    """Asked to keep pages of its rows when the session ends just then, it would keep others under their name."""
    move = Move()
    move.append()
    move.export()
    move.arrive()
    move.begin(RowSlice(0, 4, 60, 1))
    move.finish()
    move.append()
    if dies:
        move.see(lose(move.chain, "b"))
    else:
        move.finish()
        move.chain.now += TIMING.handover_seconds
        move.append()
    assert move.moved
    assert move.new is not None
    assert move.new[0] != move.rows[0][: len(move.new[0])]
    machine = move.chain.machine
    assert not machine.is_whole
    move.see(move.chain.feed(ev.Rebuilt(move.chain.opened["d"], machine.epoch)))
    assert machine.is_whole


def test_the_old_peer_may_die_once_all_is_copied() -> None:
    """A peer that leaves ends sessions that rest for long."""
    move = Move()
    move.append()
    move.finish()
    move.copy()
    move.see(lose(move.chain, "b"))
    move.append()
    assert move.moved
    assert not move.replays
    assert move.new == move.rows


@pytest.mark.parametrize("silent", ["export", "last part"])
def test_what_does_not_come_is_replayed(silent: str) -> None:
    move = Move()
    move.append()
    move.finish()
    if silent == "export":
        move.chain.now += TIMING.handover_seconds
        move.append()
    else:
        while move.phase is not Phase.MOVING:
            move.export(most=40)
            move.arrive()
            move.append()
            move.finish()
            move.late_for_a_part()
        assert move.chain.machine.wake_at <= move.chain.now + TIMING.last_part_seconds
        move.see(move.chain.late())
    assert move.moved
    assert move.replays


@pytest.mark.parametrize("phase", [Phase.RESTING, Phase.RUNNING, Phase.MOVING])
def test_a_part_that_the_new_peer_does_not_take_is_replayed_at_once(phase: Phase) -> None:
    """It will never arrive, so nothing is gained by waiting for it."""
    move = Move()
    move.append()
    if phase is Phase.MOVING:
        while move.phase is not Phase.MOVING:
            move.export(most=40)
            move.arrive()
            move.append()
            move.finish()
            move.late_for_a_part()
    elif phase is Phase.RESTING:
        move.finish()
    assert move.phase is phase
    began = move.chain.now
    move.export(most=40)
    move.see(move.chain.feed(ev.PartDropped(move.chain.opened["b"])))
    if phase is Phase.RUNNING:
        move.finish()
    if phase is not Phase.MOVING:
        assert not move.moved, "there is a step to wait for, or none that would wait"
        move.append()
    assert move.moved
    assert move.replays
    assert move.chain.now == began
    assert ev.StopExport(move.chain.opened["b"]) in move.chain.log


def test_a_part_of_no_move_that_is_dropped_is_of_no_interest() -> None:
    move = Move()
    move.see(move.chain.feed(ev.PartDropped(move.chain.opened["b"])))
    move.append()
    move.finish()
    move.see(move.chain.feed(ev.PartDropped(move.chain.opened["a"])))
    move.go_on_until_moved()
    assert not move.replays


def test_an_old_peer_that_has_not_computed_more_is_not_asked_all_the_time() -> None:
    move = Move(tokens=10)
    move.begin(RowSlice(0, 12, 100, 1))
    for _ in range(10):
        if move.exports:
            move.export()
            move.arrive()
    assert move.asked <= 4
    move.late_for_a_part()
    assert move.chain.now >= TIMING.part_seconds
    assert move.asked <= 5


def slow_part(move: Move, seconds: float) -> None:
    """Four tokens arrive after this time; a step goes on beside them, and the pause after them passes."""
    move.export(most=4)
    move.chain.now += seconds
    move.arrive()
    move.append()
    move.finish()
    move.chain.now += seconds
    move.late_for_a_part()


def test_a_copy_that_would_not_end_in_time_is_given_up() -> None:
    """A token takes a second on the way: a hundred and more would take longer than a replay may wait."""
    move = Move()
    move.append()
    move.finish()
    while not move.replays:
        assert move.chain.now < TIMING.handover_seconds / 2
        slow_part(move, 4.0)
    assert move.moved


def test_one_part_that_is_slow_says_little() -> None:
    """The machine was busy with something else: the parts after it are as fast as ever."""
    move = Move()
    move.append()
    move.finish()
    for seconds in (4.0, 4.0, 0.0, 4.0, 4.0):
        slow_part(move, seconds)
    move.go_on_until_moved()
    assert not move.replays


def test_a_replacement_that_is_full_or_silent_is_left() -> None:
    for error in (PeerBusy(5.0, "full"), PeerUnavailable("gone"), None):
        move = Move()
        actions = move.chain.begin()
        chosen = move.chain.choose([last(actions, ev.Choose)], choice("d", THIRDS[1]))
        assert all_of(chosen, ev.Open)
        if error is not None:
            lose(move.chain, "d", error)
        else:
            move.chain.answer_sent(actions)
            move.chain.late()
        assert move.chain.opened["d"] in {leave.hop for leave in all_of(move.chain.log, ev.Leave)}
        assert not move.moved


def test_another_hop_that_dies_ends_the_move() -> None:
    move = Move()
    move.append()
    actions = lose(move.chain, "c")
    left = {leave.hop for leave in all_of(actions, ev.Leave)}
    assert left == {move.chain.opened["c"], move.chain.opened["d"]}


class Story:
    """Any order of a user's and the peers' doings."""

    def __init__(self, data: st.DataObject) -> None:
        self.move, self.data = Move(tokens=20, others=1), data

    def operate(self) -> None:
        lengths, data = list(self.move.lengths), self.data
        source = None
        if data.draw(st.booleans()):
            source = tuple(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=3)))
            lengths = [lengths[row] for row in source]
        if len(lengths) < 3 and (not lengths or data.draw(st.booleans())):
            lengths.append(0)
        pieces = []
        for row, length in enumerate(lengths):
            start = data.draw(st.integers(max(0, length - 8), length))
            pieces.append(RowSlice(row, start, data.draw(st.integers(1, 9)), 1))
        self.move.begin(*pieces, source=source)

    def go_on(self) -> None:
        move = self.move
        possible = {
            "operate": len(move.steps) + len(move.applied) < 4,
            "apply": bool(move.steps), "answer": bool(move.applied), "export": bool(move.exports),
            "arrive": bool(move.parts), "late_for_a_part": True,
        }  # fmt: skip
        name = self.data.draw(st.sampled_from([name for name, can in possible.items() if can]))
        if name == "operate":
            self.operate()
        elif name == "export":
            move.export(most=self.data.draw(st.integers(1, 30)))
        else:
            getattr(move, name)()


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_in_whatever_order_things_happen_the_new_peer_has_what_the_old_one_had(data: st.DataObject) -> None:
    story = Story(data)
    for _ in range(data.draw(st.integers(0, 60))):
        story.go_on()
        if story.move.moved:
            break
    move = story.move
    if not move.moved:
        move.finish()
        move.go_on_until_moved()
    assert not move.replays
    assert move.new is not None
    assert move.new == move.rows
