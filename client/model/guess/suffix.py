"""A suffix-matching drafter: it guesses what followed the last time that the text ended like this.

It searches the prompt, the answer so far and the earlier texts of the session for the longest match of the text's end,
and guesses the tokens that followed the match.  It finds copies, edits and repetitions, but not new text.  Memory is
bounded: when there are too many tokens, the oldest half is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .drafter import Guess

LEAST_MATCH = 3
"""Shorter matches occur everywhere and predict nothing."""
LONGEST_MATCH = 64
MOST_TOKENS = 1 << 15
"""About 6 MB."""
_PLACES = 16
"""How many candidate matches are compared, the latest first."""
_CORRECTION = 16
"""A crop of at most this many tokens removes what was never text (guesses by `generate` itself), so it is forgotten;
after a longer one the removed tokens stay as an earlier text."""
_BREAK = -1
_KINDS = ((32, 0.97), (16, 0.9), (8, 0.75), (5, 0.5), (LEAST_MATCH, 0.3))
"""Kinds of guesses by least match length, with their prior probability of being right.

The match of a guess counts the guesses before it as matched, too.
"""


class SuffixDrafter:
    """Guesses that what followed once will follow again."""

    name = "suffix"
    thinking = False

    def __init__(self, most_tokens: int = MOST_TOKENS) -> None:
        self._most_tokens = most_tokens
        self._log: list[int] = []
        """All texts, one after the other, with a break between two."""
        self._before: list[int] = []
        """For each token, the end of the previous occurrence of the LEAST_MATCH tokens up to it; -1: none."""
        self._latest: dict[tuple[int, ...], int] = {}
        """For each run of LEAST_MATCH tokens, where its latest occurrence ends."""
        self._offset = 0
        """Position p of the present text is token `_offset + p` of the log..."""
        self._begin = 0
        """...from this token of the log on."""

    @property
    def tokens(self) -> int:
        """The number of tokens that are remembered, breaks included."""
        return len(self._log)

    def note(self, start: int, tokens: Sequence[int]) -> None:
        """Record that the text from position `start` on is `tokens`. O(tokens), occasionally O(all tokens)."""
        at = self._offset + start
        if at > len(self._log) or (at <= self._begin and at < len(self._log)):
            self._begin_text(start, ())
        elif at < len(self._log):
            if len(self._log) - at <= _CORRECTION:
                self._drop(at)
            else:
                self._begin_text(start, self._log[max(self._begin, at - LONGEST_MATCH) : at])
        for token in tokens:
            self._append(token if token >= 0 else _BREAK)
        if len(self._log) > self._most_tokens:
            self._forget(len(self._log) - self._most_tokens // 2)

    def draft(self, most: int, behind: Sequence[int] = ()) -> list[Guess]:
        """Return the tokens after the longest match, the latest of equally long ones. O(behind + places x match)."""
        end = len(self._log)
        for token in behind:
            self._append(token)
        try:
            return self._draft(most)
        finally:
            self._drop(end)

    def call_when_ready(self, wake: Callable[[], object]) -> None:
        """Do nothing: it is always ready."""

    def _draft(self, most: int) -> list[Guess]:
        log = self._log
        if most < 1 or len(log) < LEAST_MATCH or self._latest.get(tuple(log[-LEAST_MATCH:])) != len(log) - 1:
            return []
        place, best, length = self._before[-1], -1, LEAST_MATCH - 1
        for _ in range(_PLACES):
            if place < 0:
                break
            common = self._common(place)
            if common > length:
                best, length = place, common
            place = self._before[place]
        if best < 0:
            return []
        guesses: list[Guess] = []
        for at in range(best + 1, best + 1 + most):
            token = log[at] if at < len(log) else guesses[at - len(log)].token  # a repetition keeps repeating
            if token < 0:
                break
            guesses.append(Guess(token, *_kind_of(length + len(guesses))))
        return guesses

    def _common(self, place: int) -> int:
        """Return how many tokens up to `place` equal the end of the log; at most LONGEST_MATCH."""
        log, end = self._log, len(self._log) - 1
        count = 0
        while count < LONGEST_MATCH and count <= place and log[place - count] == log[end - count] != _BREAK:
            count += 1
        return count

    def _append(self, token: int) -> None:
        self._log.append(token)
        key = tuple(self._log[-LEAST_MATCH:])
        if len(key) < LEAST_MATCH or min(key) < 0:
            self._before.append(-1)
            return
        self._before.append(self._latest.get(key, -1))
        self._latest[key] = len(self._log) - 1

    def _drop(self, stop: int) -> None:
        """Remove the tokens of the log from index `stop` on."""
        while len(self._log) > stop:
            key = tuple(self._log[-LEAST_MATCH:])
            before = self._before.pop()
            if self._latest.get(key) == len(self._log) - 1:
                if before < 0:
                    del self._latest[key]
                else:
                    self._latest[key] = before
            self._log.pop()

    def _begin_text(self, start: int, context: Sequence[int]) -> None:
        """Begin a new text, and keep the last one as an earlier text; `context` are the tokens before `start`."""
        if self._log:
            self._append(_BREAK)
        self._begin = len(self._log)
        for token in context:
            self._append(token)
        self._offset = len(self._log) - start

    def _forget(self, count: int) -> None:
        kept = self._log[count:]
        self._log, self._before, self._latest = [], [], {}
        self._offset -= count
        self._begin = max(0, self._begin - count)
        for token in kept:
            self._append(token)


def _kind_of(match: int) -> tuple[str, float]:
    least, chance = next(kind for kind in _KINDS if match >= kind[0])
    return f"{least}+", chance
