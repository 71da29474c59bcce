"""The drafter that remembers finds what a search through all texts finds, in bounded memory."""

from __future__ import annotations

import random
from collections.abc import Sequence

from blockswarm.client.model.guess.suffix import LEAST_MATCH, LONGEST_MATCH, SuffixDrafter
from hypothesis import given
from hypothesis import strategies as st


def drafted(*texts: list[int], most: int = 4) -> tuple[int, ...]:
    """After texts that each begin anew."""
    drafter = SuffixDrafter()
    for text in texts:
        drafter.note(0, text)
    return guessed(drafter, most)


def guessed(drafter: SuffixDrafter, most: int, behind: Sequence[int] = ()) -> tuple[int, ...]:
    return tuple(guess.token for guess in drafter.draft(most, behind))


def searched(text: list[int], most: int) -> tuple[int, ...]:
    """By looking at every place: behind the longest match, the latest of equal ones."""
    best, length = -1, LEAST_MATCH - 1
    for end in range(len(text) - 1):
        common = 0
        while common <= end and common < LONGEST_MATCH and text[end - common] == text[len(text) - 1 - common]:
            common += 1
        if common >= length and common >= LEAST_MATCH:
            best, length = end, common
    if best < 0:
        return ()
    grown = list(text)
    for index in range(most):
        grown.append(grown[best + 1 + index])
    return tuple(grown[len(text) :])


@given(st.lists(st.integers(0, 2), max_size=18))
def test_it_guesses_what_followed_the_longest_match(text: list[int]):
    assert drafted(text) == searched(text, 4)


@given(st.lists(st.tuples(st.integers(0, 12), st.lists(st.integers(0, 1), max_size=6)), max_size=8))
def test_a_text_that_is_cut_a_little_is_the_text_that_is_left(changes: list[tuple[int, list[int]]]):
    """A cut takes back what `generate` only tried; nothing of it is remembered."""
    drafter, text = SuffixDrafter(), list[int]()
    for cut, new in changes:
        start = max(1 if text else 0, len(text) - cut)
        text = text[:start] + new
        drafter.note(start, new)
    assert guessed(drafter, 3) == searched(text, 3)


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=6))
def test_behind_guesses_it_guesses_as_if_they_had_come(text: list[int], behind: list[int]):
    drafter = SuffixDrafter()
    drafter.note(0, text)
    assert guessed(drafter, 4, behind) == searched(text + behind, 4)
    assert guessed(drafter, 4) == searched(text, 4), "they are not remembered"


def test_a_match_grows_with_the_guesses_that_are_right():
    text = random.Random(1).sample(range(1000), 40)
    drafter = SuffixDrafter()
    drafter.note(0, [*text, -1, *text[:3]])
    assert [guess.kind for guess in drafter.draft(6)] == ["3+", "3+", "5+", "5+", "5+", "8+"]


def test_texts_before_are_remembered_and_not_joined():
    first, second = [1, 2, 3, 4, 5, 6], [9, 2, 3, 4]
    assert drafted(first, second) == (5, 6)
    assert drafted([1, 2], [3, 4, 5], [1, 2, 3]) == ()


def test_what_a_rewind_forgets_is_remembered():
    """An answer that is asked for again may come again."""
    drafter = SuffixDrafter()
    drafter.note(0, list(range(100)))
    drafter.note(50, [50, 51])
    assert guessed(drafter, 3) == (52, 53, 54)


def test_unknown_tokens_match_nothing():
    assert drafted([-1, -1, -1, -1, -1, -1]) == ()
    assert drafted([1, -1, 2, 3, 7, 1, -1, 2, 3]) == ()


def test_longer_matches_are_counted_apart_and_promise_more():
    text = random.Random(1).sample(range(1000), 40)
    chances = {}
    for length in (3, 5, 8, 16, 36):
        drafter = SuffixDrafter()
        drafter.note(0, [*text, -1, *text[:length]])
        (guess,) = drafter.draft(1)
        chances[guess.kind] = guess.chance
    assert list(chances) == ["3+", "5+", "8+", "16+", "32+"]
    assert sorted(chances.values()) == list(chances.values())


def test_memory_is_bounded_and_the_newest_is_kept():
    drafter, numbers = SuffixDrafter(most_tokens=200), random.Random(2)
    position = 0
    for _ in range(100):
        new = [numbers.randrange(50) for _ in range(7)]
        drafter.note(position, new)
        position += len(new)
        assert drafter.tokens <= 200
    drafter.note(position, [71, 72, 73, 74, 75, 71, 72, 73])
    assert guessed(drafter, 2) == (74, 75)
    drafter.note(position + 3, [80])  # a cut still finds its place
    drafter.note(position + 4, [71, 72, 73])
    assert guessed(drafter, 1) == (80,)
