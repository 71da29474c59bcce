"""A guesser: its steps, its hits and its counts. Tokens are numbers, and the answer to each is the sum up to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from blockswarm.client.model.guess.drafter import Drafter
from blockswarm.client.model.guess.guesser import (
    LOOK_AGAIN_TRIPS,
    MOST_STEPS_ON_END,
    MOST_WINDOWS,
    MOST_WINDOWS_IN_ALL,
    Feed,
    FrontPart,
    Guesser,
    checked_setting,
)
from blockswarm.client.report import DraftReport, Trip
from blockswarm.proto.errors import UsageError
from blockswarm.proto.wire.frames import CREDITS
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from support.drafters import KnowingDrafter, SlowDrafter
from support.pending import Late

AWAY = Trip(1, 0.1, 0.001, 0.01, 0.0003)
HERE = Trip(1, 0.011, 0.0005, 0.01, 0.0003)


@dataclass
class Peers:
    row: list[float] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)
    trip: Trip | None = None
    looks: int = 0
    patience: int = 1
    """A step is asked about this many times before it is answered; then those before it are."""
    under_way: list[Late] = field(default_factory=list)
    lost: frozenset[int] = frozenset()
    """Tokens that cannot be computed where they are guessed: these guesses, and all behind them, are lost."""

    def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> Late:
        self.plans.append(plan)
        (piece,) = plan.rows
        assert piece.start <= len(self.row)
        assert bool(hidden.isfinite().all()), "peers refuse such a step"
        tokens = hidden[:, 0].tolist()
        first_guess = plan.tokens - plan.guessed
        sound = next((at for at in range(first_guess, plan.tokens) if tokens[at] in self.lost), plan.tokens)
        self.row[piece.start :] = tokens[:sound] + [0.0] * (plan.tokens - sound)
        sums = torch.tensor(self.row).cumsum(0)[:, None]
        sums[piece.start + sound :] = math.nan
        answers = sums[len(sums) - piece.answers :]
        self.under_way.append(Late(lambda: answers, self.patience))
        return self.under_way[-1]

    def last_trip(self) -> Trip | None:
        self.looks += 1
        return self.trip


def front(tokens: Any, behind: int) -> torch.Tensor:
    return torch.tensor(tokens).float()[:, None]


@dataclass
class Text:
    """Feeds one token after the other, and checks the answers."""

    guesser: Guesser
    peers: Peers = field(default_factory=Peers)
    fed: list[int] = field(default_factory=lambda: [])
    room: int = 100
    front: FrontPart = front

    def feed(self, *tokens: int, crop: int = 0) -> None:
        start = len(self.fed) - crop
        self.fed[start:] = tokens
        plan = StepPlan((RowSlice(0, start, len(tokens), 1),))
        feed = Feed(tokens, lambda: self.fed[:start], self.room, 1000, self.front)
        hidden = torch.tensor(tokens).float()[:, None]
        answers = self.guesser.compute(self.peers, plan, hidden, feed, first=start == 0)
        assert answers.tolist() == [[sum(self.fed)]]

    @property
    def trips(self) -> int:
        return self.guesser.report().trips


def text_with(*drafters: Drafter, setting: str | int = 3, trip: Trip | None = None) -> Text:
    return Text(Guesser(setting, drafters), Peers(trip=trip))


def test_right_guesses_cost_no_trip():
    text = text_with(KnowingDrafter(list(range(20))))
    for token in range(9):
        text.feed(token)
    assert text.trips == 2
    assert [plan.rows[0] for plan in text.peers.plans] == [
        RowSlice(0, 0, 1, 1),
        RowSlice(0, 1, 4, 4),  # 1, and 2, 3, 4 are guessed
        RowSlice(0, 5, 2, 2),  # 5 and 6, when 4 only is ahead
        RowSlice(0, 7, 2, 2),
        RowSlice(0, 9, 2, 2),
    ]
    report = text.guesser.report()
    assert report.guess_steps == 3
    assert report.drafts == (DraftReport("knowing", 9, 7),)


def test_a_wrong_guess_is_dropped_by_the_next_step():
    text = text_with(KnowingDrafter(list(range(20)), wrong_at=lambda position: position == 3))
    for token in range(6):
        text.feed(token)
    assert [plan.rows[0] for plan in text.peers.plans] == [
        RowSlice(0, 0, 1, 1),
        RowSlice(0, 1, 4, 4),  # 1, and 2, 2, 4 are guessed
        RowSlice(0, 3, 4, 4),
        RowSlice(0, 7, 2, 2),
    ]
    assert text.guesser.report().drafts == (DraftReport("knowing", 8, 3),)


def test_a_cut_drops_what_was_guessed_and_says_nothing_of_the_guesses():
    text = text_with(KnowingDrafter(list(range(20))))
    for token in range(3):
        text.feed(token)
    text.feed(9, 9, crop=2)
    text.feed(3)
    assert text.trips == 3
    assert text.peers.row[:4] == [0, 9, 9, 3]


def test_guesses_that_are_left_count_for_the_next_use():
    text = text_with(KnowingDrafter(list(range(5))))
    for token in range(3):
        text.feed(token)
    text.guesser.begin_use()
    text.feed(3)
    text.feed(4)
    report = text.guesser.report()
    assert (report.trips, report.forwards, report.tokens) == (0, 2, 2)
    assert report.drafts == (DraftReport("knowing", 2, 2),)


@pytest.mark.parametrize("patience", [3, 50])
def test_guesses_of_a_slow_drafter_follow_the_step_that_did_not_wait_for_them(patience: int):
    text = text_with(SlowDrafter(list(range(40))), setting=12, trip=AWAY)
    text.peers.patience = patience
    for token in range(30):
        text.feed(token)
    report = text.guesser.report()
    assert all(plan.tokens == 1 for plan in text.peers.plans[:2]), "there was no guess when they left"
    assert report.trips < 30
    assert report.guess_steps > 0
    assert report.drafts[0].right == 30 - report.trips


def test_no_step_of_the_text_waits_for_steps_of_guesses():
    """A peer takes `CREDITS` steps that are under way; a step of the text finds room among those of guesses."""
    text = text_with(SlowDrafter(list(range(900)), lambda position: position % 5 == 0, 1), setting=64, trip=AWAY)
    text.peers.patience = 10**9
    most = 0

    class Watched(Peers):
        def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> Late:
            nonlocal most
            step = super().begin(plan, hidden, guessed=guessed)
            most = max(most, sum(not other.answered for other in self.under_way))
            return step

    text.peers = Watched(patience=20)
    for token in range(300):
        text.feed(token)
    assert MOST_WINDOWS < most <= 1 + MOST_WINDOWS_IN_ALL < CREDITS


def test_now_and_then_nothing_is_under_way():
    """A chain is mended, and hops are replaced, when a step begins alone."""
    text, alone = text_with(KnowingDrafter(list(range(3000))), setting=4), 0

    class Watched(Peers):
        def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> Late:
            nonlocal alone
            alone += all(other.answered for other in self.under_way)
            return super().begin(plan, hidden, guessed=guessed)

    text.peers, text.room = Watched(patience=3), 10**6
    for token in range(1000):
        text.feed(token)
    steps = len(text.peers.plans)
    assert steps // (2 * MOST_STEPS_ON_END) < alone


def test_auto_learns_that_guesses_are_wrong():
    text = text_with(KnowingDrafter(list(range(300)), wrong_at=lambda position: True), setting="auto", trip=AWAY)
    for token in range(200):
        text.feed(token)
    first, last = text.peers.plans[2:22], text.peers.plans[-20:]
    assert sum(plan.tokens for plan in first) > 2 * len(first)
    assert sum(plan.tokens for plan in last) < 1.5 * len(last)


def test_the_next_text_begins_with_what_the_last_one_taught():
    known: Any = {}
    sent = []
    for _ in range(2):
        drafter = KnowingDrafter(list(range(300)), wrong_at=lambda position: True)
        text = Text(Guesser("auto", [drafter], known=known), Peers(trip=AWAY))
        for token in range(60):
            text.feed(token)
        sent.append(sum(plan.tokens for plan in text.peers.plans[2:12]))
    assert sent[1] < sent[0]


def test_auto_looks_at_the_times_now_and_then_where_nothing_is_guessed():
    text = text_with(KnowingDrafter(list(range(300))), setting="auto", trip=HERE)
    for token in range(101):
        text.feed(token)
    assert len(text.peers.plans) == 101
    assert text.peers.looks <= 1 + 101 / LOOK_AGAIN_TRIPS
    text.peers.trip = AWAY
    for token in range(101, 200):
        text.feed(token)
    assert text.trips < 200 - 20


def test_a_prompt_whose_steps_have_waited_for_each_other_does_not_look_like_busy_peers():
    text = text_with(KnowingDrafter(list(range(300))), setting="auto", trip=Trip(65, 0.3, 0.15, 0.04, 0.0003))
    text.feed(*range(193))
    text.feed(193)
    assert text.peers.plans[-1].tokens > 1


def test_a_token_that_feeds_no_numbers_is_no_guess():
    """Peers refuse the step, and the text with it, though it would never have come to such a token."""

    def odd(tokens: Any, behind: int) -> torch.Tensor:
        return torch.tensor([math.nan if token == 4 else token for token in tokens])[:, None]

    text = text_with(KnowingDrafter(list(range(20)), wrong_at=lambda position: position == 5))  # by a 4
    text.front = odd
    for token in (0, 1, 2, 3, 17, 5, 6, 7, 8):
        text.feed(token)
    assert text.guesser.report().guessed > 0


def test_no_room_is_no_guess():
    text = text_with(KnowingDrafter(list(range(20))))
    text.room = 1
    text.feed(0)
    text.feed(1)
    assert text.peers.plans[-1].tokens == 2
    text.room = 0
    text.feed(2)
    text.feed(3)
    assert text.peers.plans[-1].tokens == 1


@pytest.mark.parametrize("setting", ["auto", 3])
def test_a_crowded_peer_gets_no_guesses_until_it_has_time(setting: str | int):
    text = text_with(KnowingDrafter(list(range(100))), setting=setting, trip=replace(AWAY, crowded=True))
    for token in range(20):
        text.feed(token)
    plain = text.peers.plans[1:]
    assert text.trips == 20
    assert sum(plan.guessed for plan in plain[1:]) == 0, "the first trip tells"
    text.peers.trip = AWAY
    for token in range(20, 50):
        text.feed(token)
    assert text.trips < 35


def test_settings():
    meant = {"auto": "auto", "off": "off", 0: "off", "0": "off", "7": 7, 7: 7}
    assert {given: checked_setting(given) for given in meant} == meant


@pytest.mark.parametrize("setting", ["", "on", -1, 65, "65", "1000000000", "٣", 2.5, None, True])
def test_other_settings_are_refused(setting: Any):
    with pytest.raises(UsageError, match="auto, off"):
        checked_setting(setting)


def test_a_batch_forgets_what_was_ahead():
    """A row of a batch that stands where guesses stood was never computed there."""
    text = text_with(KnowingDrafter(list(range(20))))
    text.feed(0)
    text.feed(1)
    (row,) = [RowSlice(0, 1, 1, 1)]

    class Two(Peers):
        def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> Late:
            return Late(lambda: hidden, 0)

    two = StepPlan((row, RowSlice(1, 0, 1, 1)), source_rows=(0, 0))
    assert text.guesser.compute(Two(), two, torch.tensor([[1.0], [2.0]]), None, first=False).tolist() == [[1.0], [2.0]]
    trips = text.trips
    text.feed(2)
    assert text.trips == trips + 1


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_a_lost_guess_is_a_miss_and_so_are_those_behind_it(patience: int):
    """It may be known before the text comes to it, or while that waits for its answer."""
    text = text_with(KnowingDrafter(list(range(40))), setting=6)
    text.peers.patience = patience
    text.peers.lost = frozenset({3, 8, 9, 15, 21})
    for token in range(30):
        text.feed(token)
    report = text.guesser.report()
    assert report.forwards > text.trips > 5, "every one of the lost costs a trip, and others do not"
    assert sum(draft.right for draft in report.drafts) >= 15


@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("lost", [{4}, {5}, {6}, {4, 6}, set()])
def test_a_lost_guess_among_several_tokens_is_sent_again_with_those_behind_it(patience: int, lost: set[int]):
    """No token of the text is computed after one that no peer has."""
    text = text_with(SlowDrafter(list(range(40)), at_a_time=2), setting=6)
    text.peers.patience = patience
    text.peers.lost = frozenset(lost)
    for tokens in ((0,), (1,), (2,), (3, 4), (5, 6, 7, 8, 9), (10,), (11, 12, 13)):
        before = text.trips
        text.feed(*tokens)
        assert text.trips <= before + 1


def test_a_peer_that_loses_every_guess_gets_fewer_of_them():
    text = text_with(KnowingDrafter(list(range(400))), setting="auto", trip=AWAY)
    text.peers.lost = frozenset(range(400))
    for token in range(200):
        text.feed(token)
    assert text.trips == 200
    assert sum(draft.guessed for draft in text.guesser.report().drafts) < 200
