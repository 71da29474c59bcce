"""Counts of what guessing brought, over one call and over several."""

from __future__ import annotations

from blockswarm.client.report import DraftReport, GuessReport

FIRST = GuessReport("auto", 2, 30, 10, (DraftReport("suffix", 6, 3),), guess_steps=1)
SECOND = GuessReport("off", 5, 7, 5, (DraftReport("draft", 4, 4), DraftReport("suffix", 2, 0)))


def test_the_calls_of_a_request_are_counted_together() -> None:
    both = FIRST.plus(SECOND)
    assert (both.trips, both.tokens, both.forwards, both.guess_steps) == (7, 37, 15, 1)
    assert both.drafts == (DraftReport("suffix", 8, 3), DraftReport("draft", 4, 4))
    assert (both.guessed, both.right) == (12, 7)
    assert GuessReport().plus(FIRST) == FIRST


def test_nothing_guessed_and_no_trip_divide_by_nothing() -> None:
    nothing = GuessReport("off", drafts=(DraftReport("suffix", 0, 0),))
    told = nothing.as_json(5)
    assert (told["tokens_per_trip"], told["drafters"][0]["acceptance"]) == (0.0, 0.0)
