"""The next part of rows of given lengths."""

from __future__ import annotations

from blockswarm.peer.engine.cache.part import CachePart, part_of_rows
from hypothesis import given
from hypothesis import strategies as st

lengths_of_rows = st.lists(st.integers(0, 20), max_size=5)


def test_the_first_rows_come_first() -> None:
    assert part_of_rows((10, 4, 6), (7, 0, 2), 5) == ([7, 0, 2], [10, 2, 2])
    assert CachePart((7, 0, 2), (10, 2, 2), b"").counts == (3, 2, 0)


def test_starts_may_be_of_rows_as_they_were() -> None:
    assert part_of_rows((3, 5), (8, 5, 9), 10) == ([3, 5], [3, 5])
    assert part_of_rows((3, 5), (), 10) == ([0, 0], [3, 5])


@given(lengths=lengths_of_rows, starts=lengths_of_rows, most=st.integers(1, 30))
def test_part_after_part_all_rows_become_complete(lengths: list[int], starts: list[int], most: int) -> None:
    for _ in range(sum(lengths) + 1):
        begins, ends = part_of_rows(lengths, starts, most)
        assert all(begin <= end <= length for begin, end, length in zip(begins, ends, lengths, strict=True))
        assert sum(ends) - sum(begins) <= most
        if ends == lengths:
            return
        assert ends != begins
        starts = ends
    raise AssertionError("it never ends")
