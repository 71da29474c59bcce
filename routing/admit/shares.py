"""Shares of what many want at once, so that a taker who wants much keeps nobody else out. No I/O and no clock.

Identities cost nothing and addresses in many networks do: on a port that is open to all, a taker is a network; where
keys are given out, it is a key.  Two rules: takers that wait are served in turn, and where no place is left, those that
have most give one back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def next_in_turn(line: Iterable[K], last: K | None) -> K | None:
    """Return the first taker in `line`; the one that had the `last` turn only if no other waits. None: nobody waits."""
    takers = iter(line)
    first = next(takers, None)
    return next(takers, first) if first == last else first


def givers(counts: Mapping[K, int], taker: K) -> frozenset[K]:
    """Return the takers that have most places, any of which gives one up to `taker`.

    Empty if it would keep fewer than `taker`, which wants one more, would have then.
    """
    most = max(counts.values(), default=0)
    if most <= counts.get(taker, 0) + 1:
        return frozenset()
    return frozenset(other for other, count in counts.items() if count == most)


def surplus(held: Sequence[T], taker: K, taker_of: Callable[[T], K]) -> T | None:
    """Return the first of `held` that belongs to a taker with most of them: it is given up to `taker`.

    The order of `held` decides whether that is the oldest or the youngest.  None as `givers` says.
    """
    most = givers(Counter(map(taker_of, held)), taker)
    return next((item for item in held if taker_of(item) in most), None)


class Turns(Generic[K, T]):
    """Items that wait for several takers: the takers take turns, and of each the oldest is next."""

    def __init__(self) -> None:
        self._lines: dict[K, deque[T]] = {}
        """Those of each taker, the oldest first; the taker whose turn is next comes first."""
        self._last: K | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def served(self, taker: K) -> None:
        """Note that a taker was served without waiting: the next turn is another's."""
        self._last = taker

    def join(self, taker: K, item: T) -> None:
        self._lines.setdefault(taker, deque()).append(item)
        self._size += 1

    def leave(self, taker: K, item: T) -> None:
        """Remove an item, if it is still there."""
        line = self._lines.get(taker, deque())
        if item in line:
            line.remove(item)
            self._removed_from(taker)

    def next(self) -> T | None:
        """Remove and return the item whose turn it is; its taker goes to the end of the line. None if none waits."""
        taker = next_in_turn(self._lines, self._last)
        if taker is None:
            return None
        line = self._lines[taker] = self._lines.pop(taker)
        item = line.popleft()
        self._removed_from(taker)
        self._last = taker
        return item

    def make_room(self, taker: K) -> T | None:
        """Remove and return the youngest item of a taker that has most, for one of `taker`; None: it gets no room."""
        most = givers({other: len(line) for other, line in self._lines.items()}, taker)
        if not most:
            return None
        giver = [other for other in self._lines if other in most][-1]
        item = self._lines[giver].pop()
        self._removed_from(giver)
        return item

    def _removed_from(self, taker: K) -> None:
        self._size -= 1
        if not self._lines[taker]:
            del self._lines[taker]
