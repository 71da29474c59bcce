"""Steps are applied once and in order, whatever order and how often they arrive."""

from __future__ import annotations

from dataclasses import replace

import pytest
from blockswarm.peer.session.work.gate import MOST_ARRIVALS, Arrivals, Compute, Repeat, StepGate
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.frames import WireStep
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from hypothesis import given
from hypothesis import strategies as st

CREDITS = 8
MAX_TOKENS = 1000


def step(seq: int, epoch: int = 1, acked: int = 0) -> WireStep:
    return WireStep(epoch, seq, StepPlan((RowSlice(0, seq - 1, 1, 1),)), b"", acked, 1.0)


def feed(gate: StepGate, arrived: WireStep) -> list[int]:
    """The seqs that are applied because this step arrived."""
    applied = []
    waiting: WireStep | None = arrived
    while waiting is not None:
        verdict = gate.offer(waiting)
        if isinstance(verdict, Compute):
            gate.applied(verdict.step)
            applied.append(verdict.step.seq)
        waiting = gate.ready()
    return applied


@given(st.permutations(range(1, CREDITS + 1)), st.data())
def test_any_order_of_arrival_is_applied_in_order(order: list[int], data: st.DataObject) -> None:
    gate = StepGate(epoch=1, credits=CREDITS, max_tokens=MAX_TOKENS)
    arrivals = [seq for seq in order for _ in range(data.draw(st.integers(1, 2)))]
    applied = [seq for arrived in arrivals for seq in feed(gate, step(arrived))]
    assert applied == list(range(1, CREDITS + 1))
    assert gate.applied_seq == CREDITS


def test_a_repeated_step_gets_its_old_output_until_it_is_acknowledged() -> None:
    gate = StepGate(1, CREDITS, MAX_TOKENS)
    feed(gate, step(1))
    assert gate.offer(step(1)) == Repeat(step(1))
    feed(gate, step(2, acked=1))
    assert gate.offer(step(1)) is None


def test_a_number_that_is_used_again_for_another_step_is_refused() -> None:
    """Else a client could have thousands of tokens sent for each that it sends, and nothing computed."""
    gate = StepGate(1, CREDITS, MAX_TOKENS)
    large = replace(step(1), plan=StepPlan((RowSlice(0, 0, 500, 500),)))
    feed(gate, large)
    assert gate.offer(replace(large, epoch=1)) == Repeat(large)
    with pytest.raises(RemoteProtocolError, match="another one"):
        gate.offer(step(1))


def test_other_epochs_are_dropped_and_an_epoch_never_goes_back() -> None:
    gate = StepGate(3, CREDITS, MAX_TOKENS)
    assert gate.offer(step(1, epoch=2)) is None
    assert gate.offer(step(1, epoch=4)) is None
    gate.reroute(4)
    assert isinstance(gate.offer(step(1, epoch=4)), Compute)
    for epoch in (3, 4):
        with pytest.raises(RemoteProtocolError):
            gate.reroute(epoch)


def test_steps_that_waited_in_an_old_epoch_are_forgotten() -> None:
    gate = StepGate(1, CREDITS, MAX_TOKENS)
    gate.offer(step(2))
    gate.reroute(2)
    assert feed(gate, step(1, epoch=2)) == [1]


def test_more_steps_than_credits_are_refused() -> None:
    gate = StepGate(1, credits=2, max_tokens=MAX_TOKENS)
    gate.offer(step(2))
    gate.offer(step(3))
    with pytest.raises(RemoteProtocolError, match="in flight"):
        gate.offer(step(4))


def test_a_step_that_acknowledges_itself_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        StepGate(1, CREDITS, MAX_TOKENS).offer(step(1, acked=1))


def test_after_a_rebuild_the_permutation_is_skipped_once() -> None:
    gate = StepGate(1, CREDITS, MAX_TOKENS)
    feed(gate, step(1))
    gate.rebuilt(next_seq=5, permuted=True)
    assert gate.offer(step(5, acked=4)) == Compute(step(5, acked=4), skip_permutation=True)
    gate.applied(step(5, acked=4))
    assert gate.offer(step(6, acked=4)) == Compute(step(6, acked=4), skip_permutation=False)
    with pytest.raises(RemoteProtocolError, match="gone"):
        StepGate.offer(_rebuilt(), step(3))


def _rebuilt() -> StepGate:
    gate = StepGate(1, CREDITS, MAX_TOKENS)
    gate.rebuilt(next_seq=5, permuted=False)
    return gate


def test_what_is_held_and_kept_is_bounded() -> None:
    """A client that acknowledges nothing, or sends nothing but the future, is refused."""
    gate = StepGate(1, CREDITS, max_tokens=5)
    for seq in range(1, 6):
        feed(gate, step(seq))
    assert gate.tokens == 5
    with pytest.raises(RemoteProtocolError, match="5 tokens"):
        gate.offer(step(6))
    feed(gate, step(6, acked=3))
    assert gate.tokens == 3

    gate = StepGate(1, CREDITS, max_tokens=5)
    for seq in range(2, 7):
        gate.offer(step(seq))
    with pytest.raises(RemoteProtocolError, match="5 tokens"):
        gate.offer(step(7))


@given(st.permutations(range(1, 9)))
def test_steps_have_arrived_up_to_the_first_one_that_is_missing(order: list[int]) -> None:
    arrivals, here = Arrivals(), set[int]()
    for seq in order:
        arrivals.note(seq)
        here.add(seq)
        for applied in range(9):
            missing = next(seq for seq in range(applied + 1, 11) if seq not in here)
            assert arrivals.until(applied) == missing - 1


def test_only_the_last_arrivals_are_remembered() -> None:
    arrivals = Arrivals()
    for seq in range(1, 2 * MOST_ARRIVALS):
        arrivals.note(seq)
    assert arrivals.until(0) == 0
    assert arrivals.until(MOST_ARRIVALS) == 2 * MOST_ARRIVALS - 1
