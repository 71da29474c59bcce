"""The sentence of a model says no more than was seen: it is never "works" without a measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest
from blockswarm.client.dashboard.board.model import model_board
from blockswarm.client.dashboard.board.now import ModelCard, StaleAfter, Standing
from blockswarm.client.dashboard.history.entries import Availability
from blockswarm.client.dashboard.probe.messages import ProbeOutcome
from blockswarm.client.dashboard.watch.sighting import Failure, LastProbe, ModelState
from blockswarm.client.dashboard.written.words import percent_words
from blockswarm.routing.swarm import PeerState
from support.sightings import FACTS, NOW, known, seen


def card_of(state: ModelState, now: float = NOW + 3) -> ModelCard:
    return model_board(state).card(now, StaleAfter(60.0, 180.0))


def test_before_the_first_look_nothing_is_known() -> None:
    card = card_of(ModelState(FACTS))
    assert (card.standing, card.seen_at, card.weakest_block) == (Standing.UNSEEN, None, None)
    assert "first look" in card.sentence


def test_a_first_look_that_fails_says_why_without_the_errors_own_text() -> None:
    card = card_of(ModelState(FACTS, failure=Failure("peer-unavailable", NOW)))
    assert card.sentence == "not seen: no peer answers"
    assert card_of(ModelState(FACTS, failure=Failure("a-new-code", NOW))).sentence == "not seen: it failed (a-new-code)"


def test_a_complete_swarm_is_unproven() -> None:
    card = card_of(seen(known("0:4"), known("4:8"), known("0:8", state=PeerState.JOINING), silent=[known("0:2")]))
    assert card.standing is Standing.UNPROVEN
    assert (card.peers_serving, card.peers_other, card.peers_silent) == (2, 1, 1)
    assert card.age_seconds == 3


def test_missing_blocks_are_named() -> None:
    card = card_of(seen(known("0:3"), known("5:8")))
    assert card.standing is Standing.INCOMPLETE
    assert card.sentence == "does not work: no peer serves blocks 3:5 of 8"
    assert card_of(seen()).sentence == "does not work: no peer serves any block"


@pytest.mark.parametrize(("code", "words"), [("deadline-exceeded", "did not answer in time"), (None, "no look")])
def test_old_sightings_are_no_knowledge(code: str | None, words: str) -> None:
    """A page that shows yesterday's peers as today's lies."""
    state = seen(known("0:8"))
    state = replace(state, failure=Failure(code, NOW + 200) if code else None)
    card = card_of(state, NOW + 300)
    assert card.standing is Standing.UNSEEN
    assert card.sentence.startswith("last seen 5 min ago: ")
    assert words in card.sentence


COUNTS = (
    "peers_serving", "peers_other", "peers_silent", "missing_blocks", "weakest_block", "weakest_servers",
    "free_sessions",
)  # fmt: skip


@pytest.mark.parametrize(
    ("state", "later"),
    [
        (ModelState(FACTS), 3),
        (seen(known("0:8")), 61),
        (replace(seen(known("0:8")), failure=Failure("peer-unavailable", NOW + 1)), 2),
        (replace(seen(known("0:4")), failure=Failure("peer-unavailable", NOW + 1)), 300),
    ],
    ids=["never seen", "old", "just failed", "long failed"],
)
def test_where_nothing_is_known_of_now_no_count_is_told(state: ModelState, later: float) -> None:
    """After a whole swarm has died the counts of before would stand beside the sentence that nobody answers."""
    card = card_of(state, NOW + later)
    assert (card.current, card.standing) == (False, Standing.UNSEEN)
    assert {getattr(card, name) for name in COUNTS} == {None}
    now = card_of(seen(known("0:8")), NOW + 60)
    assert now.current
    assert None not in {getattr(now, name) for name in COUNTS}


def test_a_look_that_has_just_failed_is_told_at_once() -> None:
    state = replace(seen(known("0:8")), failure=Failure("peer-unavailable", NOW + 20))
    assert card_of(state, NOW + 21).sentence == "last seen 21 s ago: no peer answers"


def test_a_probe_that_worked_is_told_where_the_look_after_it_has_failed() -> None:
    state = replace(probed(seen(known("0:8")), NOW), failure=Failure("peer-unavailable", NOW + 20))
    card = card_of(state, NOW + 21)
    assert (card.standing, card.current) == (Standing.WORKS, False)


def test_without_the_models_files_completeness_is_not_claimed() -> None:
    card = card_of(seen(known("0:8"), facts=replace(FACTS, counted=False)))
    assert "that peers announce" in card.sentence
    assert "not known" in card.sentence


def probed(state: ModelState, at: float, code: str = "", good: int | None = 1438) -> ModelState:
    availability = Availability(good, 1440, at - 86400) if good is not None else None
    outcome = ProbeOutcome(code, 2.0, None if code else 0.5, None if code else 7.31)
    return replace(state, probe=LastProbe(at, outcome, availability))


def test_a_probe_that_worked_is_told_with_its_age_and_the_last_day() -> None:
    card = card_of(probed(seen(known("0:8")), NOW - 40), NOW)
    assert card.standing is Standing.WORKS
    assert card.sentence == "works: 7.3 tokens/s, measured 40 s ago; 99.9 % of 1,440 probes in the last 24 h worked"
    assert card_of(probed(seen(known("0:8")), NOW, good=None), NOW).sentence == "works: 7.3 tokens/s, measured 0 s ago"


def test_a_probe_that_failed_outweighs_a_swarm_that_looks_complete() -> None:
    card = card_of(probed(seen(known("0:8")), NOW - 5, "deadline-exceeded"), NOW)
    assert card.standing is Standing.FAILS
    assert card.sentence.startswith("does not work: the peers did not answer in time, tried 5 s ago")


def test_blocks_that_went_missing_since_outweigh_a_probe_that_worked() -> None:
    assert card_of(probed(seen(known("0:3")), NOW - 5), NOW).standing is Standing.INCOMPLETE
    assert card_of(probed(seen(known("0:3")), NOW + 5), NOW + 6).standing is Standing.WORKS


def test_an_old_probe_says_nothing_of_now() -> None:
    card = card_of(probed(seen(known("0:8"), at=NOW), NOW - 600), NOW)
    assert card.standing is Standing.UNPROVEN
    assert card.sentence.endswith("; the last probe ended 10 min ago")


@pytest.mark.parametrize(
    ("good", "count", "text"),
    [(1440, 1440, "100 %"), (1439, 1440, "99.9 %"), (99_999, 100_000, "99.9 %"), (0, 9, "0 %"), (1, 10_000, "0.1 %")],
)
def test_shares_are_whole_only_where_they_are(good: int, count: int, text: str) -> None:
    assert percent_words(good, count) == text
