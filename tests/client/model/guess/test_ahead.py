"""Guessed tokens are used where the real tokens are the guessed ones, and nowhere else."""

from __future__ import annotations

from blockswarm.client.model.guess.ahead import Ahead, Remainder, guesses_only, with_guesses
from blockswarm.proto.wire.steps import RowSlice, RowTable, StepPlan
from hypothesis import given
from hypothesis import strategies as st


def plan(start: int, count: int, answers: int, row: int = 0) -> StepPlan:
    return StepPlan((RowSlice(row, start, count, answers),))


def fed(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


HELD: Ahead[str] = Ahead(0, 5, tuple(fed("abc")), ("A", "B", "C"))


def remainder(step: StepPlan, text: str, ahead: Ahead[str] = HELD) -> Remainder[str]:
    return ahead.remainder_of(step, lambda: fed(text))


def test_a_hit_is_answered_from_here_and_the_rest_stays_ahead():
    left = remainder(plan(5, 1, 1), "a")
    assert (left.plan, left.hits, left.held) == (None, 1, ("A",))
    assert left.ahead == Ahead(0, 6, tuple(fed("bc")), ("B", "C"))
    assert remainder(plan(5, 3, 1), "abc").held == ("C",)
    assert remainder(plan(5, 3, 0), "abc").held == ()


def test_a_miss_sends_the_step_as_it_is():
    for step, text in [(plan(5, 1, 1), "b"), (plan(6, 1, 1), "b"), (plan(4, 1, 1), "a"), (plan(5, 1, 1, row=1), "a")]:
        left = remainder(step, text)
        assert (left.plan, left.hits, left.held, left.ahead) == (step, 0, (), Ahead())


def test_a_step_that_was_guessed_in_part_sends_the_rest():
    """Prompt look-up feeds several tokens at once."""
    left = remainder(plan(5, 4, 3), "abxy")
    assert left.plan == plan(7, 2, 2)
    assert left.held == ("B",)
    assert left.ahead == Ahead()


def test_a_hit_that_cannot_be_used_is_sent():
    left = HELD.remainder_of(plan(5, 3, 2), lambda: fed("abc"), most_hits=2)
    assert (left.plan, left.hits, left.held, left.ahead) == (plan(7, 1, 1), 2, ("B",), Ahead())
    assert HELD.remainder_of(plan(5, 3, 2), lambda: fed("abc"), most_hits=0).plan == plan(5, 3, 2)


def test_rows_that_are_moved_or_many_are_never_hits():
    moved = StepPlan((RowSlice(0, 5, 1, 1),), source_rows=(0,))
    two = StepPlan((RowSlice(0, 5, 1, 1), RowSlice(1, 5, 1, 1)))
    for step in (moved, two):
        assert remainder(step, "ab").plan == step


USES = st.tuples(
    st.integers(0, 4),
    st.text("ab", min_size=1, max_size=4),
    st.integers(0, 4),
    st.text("ab", max_size=5),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
)


@given(st.lists(USES, max_size=12))
def test_any_use_gives_the_answers_of_one_row(uses: list[tuple[int, str, int, str, list[str]]]):
    """Appends after crops, with guesses behind each and in steps of their own.

    The answer to a token is all that came up to it.
    """
    text, peers, table = "", "", RowTable()
    ahead: Ahead[str] = Ahead()
    for crop, new, answers, guess, later in uses:
        start = max(0, len(text) - crop)
        text = text[:start] + new
        wanted = min(answers, len(new))
        expected = [text[: start + index + 1] for index in range(len(new) - wanted, len(new))]
        left = ahead.remainder_of(plan(start, len(new), wanted), lambda new=new: fed(new))
        answered, ahead = list(left.held), left.ahead
        if left.plan is not None:
            sent = with_guesses(left.plan, len(guess))
            table = table.after(sent)
            (piece,) = sent.rows
            peers = peers[: piece.start] + new[left.hits :] + guess
            assert len(peers) == piece.stop == table.lengths[0]
            outputs = [peers[: index + 1] for index in range(piece.stop - piece.answers, piece.stop)]
            answered += outputs[: len(outputs) - len(guess)]
            ahead = Ahead(0, len(text), tuple(fed(guess)), tuple(outputs[len(outputs) - len(guess) :]))
        for more in later:
            table = table.after(guesses_only(ahead, len(more)))
            peers = peers[: ahead.stop] + more
            assert len(peers) == table.lengths[0]
            ahead = ahead.extended(fed(more), [peers[: ahead.stop + index + 1] for index in range(len(more))])
        assert answered == expected
        assert table.lengths[0] >= len(text)
