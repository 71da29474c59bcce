"""Slow hops are found in the same number of steps, whether steps are alone on their way or follow each other closely.

Time is a number: each hop computes one step after the other, and links carry any number at once.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from blockswarm.client.chain.machine import events as ev
from blockswarm.client.timing import ChainTiming
from blockswarm.proto.wire.frames import CREDITS, HopTiming, WireStep
from blockswarm.proto.wire.steps import RowSlice
from blockswarm.routing.swarm import PeerId
from support.played_chain import THIRDS, all_of, choice, last, running

TIMING = ChainTiming()
LINK, COMPUTE = 0.01, 0.01
ANNOUNCED = {frozenset("abc"): 4 * LINK + 3 * COMPUTE} | {frozenset(peer): 2 * LINK + COMPUTE for peer in "abc"}
SLOW = 0.1
TOGETHER = [1, 2, 4, CREDITS]
"""Steps on their way at any time."""
Timings = tuple[HopTiming, ...]


class Pipeline:
    """A chain a, b, c that has several steps on their way at any time, as a client that guesses has."""

    def __init__(self, together: int, say: Callable[[int, Timings], Timings] = lambda seq, timings: timings) -> None:
        """`say` changes the clock readings that are told of a step."""
        self.chain = running()
        self.chain.facts.of_chains = dict(ANNOUNCED)
        self.seconds = dict.fromkeys("abc", COMPUTE)
        self.offset = 1000.0
        """How far b's clock is ahead."""
        self.chain.facts.clock_offset_seconds = self._offset  # type: ignore[method-assign]
        self.stalls_until = 0.0
        """Until then no answer comes."""
        self.answered = 0
        self._together, self._say = together, say
        self._free_at = dict.fromkeys("abc", 0.0)
        self._order = itertools.count()
        self._on_way: list[tuple[float, int, WireStep]] = []
        self._began = 0

    def _offset(self, peer: PeerId) -> float:
        return self.offset if peer == "b" else 0.0

    def until_a_choice(self, most: int = 10 * TIMING.slow_steps) -> list[ev.Action]:
        """Go on until the machine looks for another peer; empty if it does not within `most` answers."""
        stop = self.answered + most
        while self.answered < stop:
            while self._began - self.answered < self._together:
                actions = self._begin()
                if all_of(actions, ev.Choose):
                    return actions
            self._answer()
        return []

    def _begin(self, *rows: RowSlice) -> list[ev.Action]:
        self._began += 1
        actions = self.chain.begin(*rows)
        for sent in all_of(actions, ev.Send):
            self._send(sent.step)
        return actions

    def _send(self, step: WireStep) -> None:
        now, timings = self.chain.now, []
        for peer in "abc":
            received_at = now + LINK
            started_at = max(received_at, self._free_at[peer])
            now = self._free_at[peer] = started_at + self.seconds[peer]
            readings = (moment + self._offset(PeerId(peer)) for moment in (received_at, started_at, now))
            timings.append(HopTiming(PeerId(peer), *readings))
        answered_at = max(now + LINK, self.stalls_until)
        told = replace(step, timings=self._say(step.seq, tuple(timings)))
        heapq.heappush(self._on_way, (answered_at, next(self._order), told))

    def _answer(self) -> None:
        self.chain.now, _, step = heapq.heappop(self._on_way)
        assert all_of(self.chain.answer("c", step), ev.Done)
        self.answered += 1


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("peer", "abc")
def test_a_slow_hop_is_left_after_as_many_steps_when_others_are_under_way(together: int, peer: str) -> None:
    pipeline = Pipeline(together)
    assert not pipeline.until_a_choice()
    pipeline.seconds[peer] = SLOW
    before = pipeline.answered
    actions = pipeline.until_a_choice()
    assert last(actions, ev.Choose).excluded == {peer}
    # Those that were on their way when it became slow are not slow yet.
    assert TIMING.slow_steps <= pipeline.answered - before <= TIMING.slow_steps + together
    pipeline.chain.facts.of_chains[frozenset("abc".replace(peer, "d"))] = ANNOUNCED[frozenset("abc")]
    replacement = choice("d", THIRDS["abc".index(peer)])
    assert all_of(pipeline.chain.choose(actions, replacement), ev.Open), "the new chain is much faster than a step is"


@pytest.mark.parametrize("together", TOGETHER)
def test_steps_that_wait_for_each_other_make_no_hop_slow(together: int) -> None:
    """Every hop takes a little less than twice what it announced, and most of a step's time is waiting."""
    pipeline = Pipeline(together)
    pipeline.seconds = dict.fromkeys("abc", ANNOUNCED[frozenset("b")])
    assert not pipeline.until_a_choice()


@pytest.mark.parametrize("together", TOGETHER)
def test_a_moment_in_which_nothing_moves_is_lost_once(together: int) -> None:
    pipeline = Pipeline(together)
    for _ in range(10):
        assert not pipeline.until_a_choice(TIMING.slow_steps)
        pipeline.stalls_until = pipeline.chain.now + 0.3 * TIMING.slow_loss_seconds
    assert not pipeline.until_a_choice()


def steps_lost(together: int, say: Callable[[int, Timings], Timings]) -> int:
    """The number of steps in which b can be slow while `say` changes the clock readings."""
    pipeline = Pipeline(together, say)
    pipeline.until_a_choice(CREDITS)
    pipeline.seconds["b"] = 1.0
    before = pipeline.answered
    assert pipeline.until_a_choice()
    return pipeline.answered - before


def told_by_b(received: float = 0.0, finished: float = 0.0, every: int = 1) -> Callable[[int, Timings], Timings]:
    """Errors in the readings of b, of every step or of some."""

    def say(seq: int, timings: Timings) -> Timings:
        a, b, c = timings
        if seq % every:
            return timings
        b = replace(b, received_at=b.received_at + received, finished_at=b.finished_at + finished)
        return a, b, c

    return say


def told_by_c(by: float, every: int) -> Callable[[int, Timings], Timings]:
    """The last peer passes on all readings, and can change them: some steps seem to be over before they began."""

    def say(seq: int, timings: Timings) -> Timings:
        if seq % every:
            return timings
        return tuple(
            replace(hop, received_at=hop.received_at - by, finished_at=hop.finished_at - by) for hop in timings
        )

    return say


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("far", [1.0, 1e9])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_peer_hides_no_lost_time_by_what_it_says_of_its_waits(together: int, far: float, every: int) -> None:
    """This machine's clock says how much time passes from answer to answer."""
    honest = steps_lost(1, told_by_b())
    for say in (
        told_by_b(received=-far, every=every),
        told_by_b(finished=far, every=every),
        told_by_c(far, every),
    ):
        assert steps_lost(together, say) <= honest + together + 1


def test_a_hop_that_is_slow_now_and_then_is_found_among_peers_that_are_not_of_the_chain() -> None:
    """The last peer says how long all others took, and names new ones in every answer."""
    names = itertools.count()

    def say(_seq: int, timings: Timings) -> Timings:
        strangers = (HopTiming(PeerId(f"stranger {next(names)}"), 0.0, 0.0, 1e12) for _ in range(100))
        return (*timings, *strangers)

    pipeline = Pipeline(1, say)
    for turn in range(10 * TIMING.slow_steps):
        pipeline.seconds["b"] = TIMING.slow_loss_seconds / 4 if turn % 2 else COMPUTE
        if actions := pipeline.until_a_choice(1):
            assert last(actions, ev.Choose).excluded == {"b"}
            return
    pytest.fail("the chain stayed slow")
