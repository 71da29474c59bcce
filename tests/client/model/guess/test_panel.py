"""The drafters of a text: the best is followed, nonsense is cut, failures are not repeated, kinds are counted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from blockswarm.client.model.guess.drafter import Guess
from blockswarm.client.model.guess.panel import MOST_KINDS, DraftPanel, Offer
from blockswarm.client.report import DraftReport
from support.drafters import NONSENSE, KnowingDrafter, NonsenseDrafter, TestDrafter

VOCABULARY = 100


class Saying(TestDrafter):
    """Always says the same."""

    def __init__(self, name: str, *guesses: Guess, thinking: bool = False) -> None:
        self.name = name
        self.thinking = thinking
        self._guesses = guesses

    def draft(self, most: int, behind: Sequence[int]) -> Any:
        return self._guesses[:most]


def panel_of(*drafters: Any, known: Any = None) -> DraftPanel:
    return DraftPanel(drafters, {} if known is None else known, lambda: None)


def offer_of(panel: DraftPanel, worth: Any = len) -> Offer:
    return panel.offer(8, [], VOCABULARY, worth)


def tokens_of(offer: Offer) -> list[int]:
    return [guess.token for guess in offer.guesses]


def test_the_guesses_that_promise_most_are_offered():
    sure, doubtful = Saying("sure", *[Guess(7, chance=0.9)] * 3), Saying("doubtful", *[Guess(9, chance=0.3)] * 8)
    offer = offer_of(panel_of(doubtful, sure))
    assert tokens_of(offer) == [7, 7, 7]
    assert offer.value == pytest.approx(0.9 + 0.81 + 0.729)


def test_a_drafter_that_is_wrong_is_no_longer_followed():
    panel = panel_of(Saying("a", Guess(7, chance=0.9)), Saying("b", Guess(9, chance=0.4)))
    while tokens_of(offer := offer_of(panel)) == [7]:
        panel.note_sent(offer)
        panel.note_outcome(offer.guesses[0], right=False)
    assert tokens_of(offer) == [9]


def test_only_what_is_worth_it_is_offered():
    panel = panel_of(Saying("a", *[Guess(7, chance=0.9)] * 8))
    assert len(offer_of(panel, worth=lambda chances: 2).guesses) == 2
    assert offer_of(panel, worth=lambda chances: 0) == Offer()


@pytest.mark.parametrize("answer", NONSENSE, ids=repr)
def test_nonsense_is_cut_at_the_first_token_that_is_none(answer: Any):
    offer = offer_of(panel_of(NonsenseDrafter(answer)))
    assert all(type(guess.token) in (int, bool) and 0 <= guess.token < VOCABULARY for guess in offer.guesses)
    assert offer.guesses == () or isinstance(answer, list)


class Everything(list[Guess]):
    """Returns all that it has, whatever part of it is asked for."""

    def __getitem__(self, index: Any) -> Any:
        return self if isinstance(index, slice) else super().__getitem__(index)


@pytest.mark.parametrize(
    "answer", [itertools.repeat(Guess(7)), Everything([Guess(7)] * 99), (Guess(np.int64(7)) for _ in range(99))]
)
def test_no_more_is_taken_of_what_a_drafter_says_than_was_asked_for(answer: Any):
    """Peers refuse a step that goes beyond the room, and the text with it."""
    offer = offer_of(panel_of(NonsenseDrafter(answer)))
    assert tokens_of(offer) == [7] * 8
    assert {type(token) for token in tokens_of(offer)} == {int}


def test_a_chance_may_be_any_number():
    known: dict[Any, Any] = {}
    guess = Guess(7, chance=Decimal("0.25"))  # type: ignore[arg-type]
    assert offer_of(panel_of(Saying("a", guess), known=known)).value == 0.25
    assert [type(each.chance) for each in known.values()] == [float], "the next text begins with it"


def test_a_drafter_that_fails_is_not_asked_again():
    broken = NonsenseDrafter(ValueError("broken"))
    panel = panel_of(broken, KnowingDrafter(list(range(20))))
    assert [tokens_of(offer_of(panel)) for _ in range(3)] == [list(range(8))] * 3
    assert broken.asked == 1


@pytest.mark.parametrize("thinks_of", [0, 1, 2])
def test_an_offer_waits_for_a_drafter_that_usually_brings_more(thinks_of: int):
    """One that thinks may have something better soon; how much it usually brings is learnt."""
    thinker = Saying("thinker", *[Guess(5, chance=0.9)] * 8, thinking=True)
    ready = Saying("ready", *[Guess(7, chance=0.9)] * 2)
    panel = panel_of(thinker, ready)
    first = offer_of(panel)
    assert (tokens_of(first), first.waits) == ([5] * 8, True)
    assert not offer_of(panel, worth=lambda chances: min(len(chances), 4)).waits, "more is not wanted"
    for _ in range(20):
        panel.note_sent(first)
    thinker._guesses = thinker._guesses[:thinks_of]
    offer = offer_of(panel)
    assert (tokens_of(offer)[0], offer.waits) == (7 if thinks_of < 2 else 5, True)
    thinker.thinking = False
    assert not offer_of(panel).waits


def test_what_earlier_texts_taught_is_where_a_text_begins():
    known: Any = {}
    panel = panel_of(Saying("a", Guess(7, chance=0.5)), known=known)
    for _ in range(30):
        panel.note_outcome(offer_of(panel).guesses[0], right=True)
    later = panel_of(Saying("a", Guess(7, chance=0.5)), known=known)
    assert offer_of(later).value > 0.9


def test_kinds_without_end_are_counted_as_one():
    """Whatever a drafter says, the memory for it is bounded, and its guesses are followed."""
    known: Any = {}
    for text in range(3):
        panel = panel_of(*(Saying("a", Guess(7, f"{text} {index}")) for index in range(2 * MOST_KINDS)), known=known)
        for _ in range(3):
            offer = offer_of(panel)
            panel.note_outcome(offer.guesses[0], right=False)
        panel.note_trip()
    assert len(known) <= MOST_KINDS


def test_reports_are_of_the_present_use():
    panel = panel_of(Saying("a", Guess(7), Guess(8)), Saying("silent"))
    offer = offer_of(panel)
    panel.note_sent(offer)
    panel.note_outcome(offer.guesses[0], right=True)
    assert panel.reports() == (DraftReport("a", 2, 1),)
    panel.begin_use(offer.guesses[1:])
    assert panel.reports() == (DraftReport("a", 1, 0),)
