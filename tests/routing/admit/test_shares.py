"""Shares: turns go round however much one taker wants, and a place is given up only to one that has fewer."""

from __future__ import annotations

from collections import Counter

from blockswarm.routing.admit.shares import Turns, givers, next_in_turn, surplus
from hypothesis import given
from hypothesis import strategies as st

TAKERS = st.sampled_from("abc")


def drained(turns: Turns[str, int]) -> list[int]:
    items = []
    while (item := turns.next()) is not None:
        items.append(item)
    return items


def test_the_first_in_line_is_next_but_never_twice_while_another_waits() -> None:
    assert next_in_turn([], "a") is None
    assert next_in_turn(["a"], "a") == "a"
    assert next_in_turn(["a", "b", "c"], "a") == "b"
    assert next_in_turn(["b", "a"], "a") == "b"


def test_those_with_most_give_unless_the_taker_would_then_have_more() -> None:
    assert givers({}, "a") == frozenset()
    assert givers({"a": 5}, "a") == frozenset()
    assert givers({"a": 2, "b": 1}, "b") == frozenset(), "they would only change places"
    assert givers({"a": 3, "b": 1, "c": 3}, "b") == {"a", "c"}
    assert givers({"a": 2, "b": 1}, "c") == {"a"}


def test_the_first_one_of_those_with_most_is_given_up() -> None:
    def given(held: str, taker: str) -> int | None:
        return surplus(range(len(held)), taker, held.__getitem__)

    assert given("baabaa", "b") == given("baabaa", "c") == 1
    assert given("aabaab"[::-1], "c") == 1, "the youngest, where the youngest come first"
    assert given("baabaa", "a") is None, "one that has most gets no more"
    assert given("aab", "b") is None, "they would only change places"
    assert given("abc", "d") is None
    assert given("", "a") is None


def test_one_that_wants_much_delays_another_by_one_turn() -> None:
    turns: Turns[str, int] = Turns()
    for item in range(64):
        turns.join("stranger", item)
    turns.join("ann", 100)
    assert (turns.next(), turns.next(), turns.next()) == (0, 100, 1)


def test_one_that_was_served_without_waiting_lets_others_go_first() -> None:
    turns: Turns[str, int] = Turns()
    turns.served("a")
    turns.join("a", 1)
    turns.join("b", 2)
    assert drained(turns) == [2, 1]


def test_room_is_made_by_the_youngest_of_the_one_with_most() -> None:
    turns: Turns[str, int] = Turns()
    for item in range(4):
        turns.join("stranger", item)
    assert turns.make_room("stranger") is None
    assert turns.make_room("ann") == 3
    turns.join("ann", 100)
    assert turns.make_room("ann") == 2
    turns.join("ann", 101)
    assert turns.make_room("ann") is None
    assert drained(turns) == [0, 100, 1, 101]


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "next"]), TAKERS, st.integers(0, 5))))
def test_none_is_lost_and_each_waits_at_most_one_turn_of_every_other(
    operations: list[tuple[str, str, int]],
) -> None:
    turns: Turns[str, int] = Turns()
    lines: dict[str, list[int]] = {taker: [] for taker in "abc"}
    passed: dict[str, Counter[str]] = {taker: Counter() for taker in "abc"}
    for number, (operation, taker, index) in enumerate(operations):
        line = lines[taker]
        if operation == "join":
            turns.join(taker, number)
            line.append(number)
        elif operation == "leave":
            turns.leave(taker, line.pop(index) if index < len(line) else -1)
        elif (item := turns.next()) is not None:
            (served,) = (other for other in lines if item in lines[other])
            assert item == lines[served].pop(0)
            passed[served].clear()
            for other in "abc":
                if other != served and lines[other]:
                    passed[other][served] += 1
                    assert passed[other][served] <= 1
        else:
            assert not any(lines.values())
        for other in lines:
            if not lines[other]:
                passed[other].clear()
        assert len(turns) == sum(map(len, lines.values()))
