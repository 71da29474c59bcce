"""The replay buffer: what a node sent to the next hop, by row and position.

When a peer dies, its replacement needs the inputs that the dead peer was given.  The hop before it kept them here, and
the client keeps the inputs of block 0 in the same structure, so the client is simply the predecessor of the first
hop.  This is not a log of messages: it holds tokens by row and position under the same permutation and truncation as
the attention cache, so replaying it is one prefill, whatever happened before (beams, rewinds, retries).

Tokens are opaque records of `token_bytes` bytes in wire format.  Segments are immutable and shared between forked
rows; a fork copies references only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .steps import RowSlice, RowTable, StepPlan

REBUILD_STEP_TOKENS = 256
"""Tokens of one step of a replay: enough to compute efficiently, few enough that hops work at the same time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Segment:
    data: memoryview
    tokens: int
    owner: bytes
    """The buffer that `data` is a view of; it stays in memory as long as any view does."""


class ReplayBuffer:
    """The tokens of every row of one session. Not thread-safe."""

    def __init__(self, token_bytes: int) -> None:
        if token_bytes < 1:
            raise ValueError("a token has at least one byte")
        self.token_bytes = token_bytes
        self._rows: list[list[_Segment]] = []
        self._table = RowTable()

    @property
    def lengths(self) -> tuple[int, ...]:
        return self._table.lengths

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the buffer keeps alive; shared segments count once. O(segments)."""
        owners = {id(segment.owner): len(segment.owner) for row in self._rows for segment in row}
        return sum(owners.values())

    def holds(self, lengths: Sequence[int]) -> bool:
        """Whether the buffer has exactly these rows, each at least that long."""
        have = self.lengths
        return len(lengths) == len(have) and all(want <= has for want, has in zip(lengths, have, strict=True))

    def apply(self, plan: StepPlan, data: bytes, lost: int = 0) -> None:
        """Permute, truncate and append as the step does; `data` holds `plan.tokens` packed tokens.

        The last `lost` tokens are kept as zeros (in every wire format), which a peer that is rebuilt can compute with.
        Raises ValueError if the size is wrong, and RemoteProtocolError if the plan does not fit the rows; the buffer is
        then unchanged.
        """
        if len(data) != plan.tokens * self.token_bytes:
            raise ValueError(f"{len(data)} bytes for {plan.tokens} tokens of {self.token_bytes} bytes")
        self.rewind(plan)
        if lost:
            size = lost * self.token_bytes
            data = data[:-size] + bytes(size)
        view = memoryview(data)
        offset = 0
        for piece in plan.rows:
            if piece.count:
                size = piece.count * self.token_bytes
                self._rows[piece.row].append(_Segment(view[offset : offset + size], piece.count, data))
                offset += size
        self._table = self._table.extended(plan.rows)

    def rewind(self, plan: StepPlan) -> None:
        """Permute and truncate as the step does, without its new tokens. Raises RemoteProtocolError."""
        permuted = self._table.permuted(plan.source_rows)
        truncated = permuted.truncated(plan.rows)
        if plan.source_rows is not None:
            self._rows = [list(self._rows[source]) for source in plan.source_rows]
        self._rows.extend([] for _ in range(len(truncated.lengths) - len(self._rows)))
        for segments, have, keep in zip(self._rows, permuted.lengths, truncated.lengths, strict=False):
            self._drop_last(segments, have - keep)
        self._table = truncated

    def _drop_last(self, segments: list[_Segment], tokens: int) -> None:
        while tokens > 0:
            last = segments.pop()
            keep = last.tokens - tokens
            if keep > 0:
                segments.append(_Segment(last.data[: keep * self.token_bytes], keep, last.owner))
            tokens -= last.tokens

    def read(self, pieces: Sequence[RowSlice]) -> bytes:
        """The packed tokens of these positions. Raises ValueError if the buffer does not have them."""
        parts: list[memoryview] = []
        for piece in pieces:
            if piece.row >= len(self._rows) or piece.stop > self._table.lengths[piece.row]:
                raise ValueError(f"the buffer does not hold row {piece.row} up to {piece.stop}")
            at = 0
            for segment in self._rows[piece.row]:
                first, last = max(piece.start, at), min(piece.stop, at + segment.tokens)
                if first < last:
                    parts.append(segment.data[(first - at) * self.token_bytes : (last - at) * self.token_bytes])
                at += segment.tokens
        return b"".join(parts)


def rebuild_plans(lengths: Sequence[int], max_tokens: int) -> Iterator[StepPlan]:
    """Steps that bring an empty session to `lengths`, in order, each of at most `max_tokens` tokens.

    They ask for no answers. Rows of length 0 are named too, so that the row table is complete.
    """
    pending: list[RowSlice] = []
    room = max_tokens
    for row, length in enumerate(lengths):
        start = 0
        while length - start > room:
            if room:
                pending.append(RowSlice(row, start, room, answers=0))
            start += room
            yield StepPlan(tuple(pending))
            pending, room = [], max_tokens
        pending.append(RowSlice(row, start, length - start, answers=0))
        room -= length - start
    if pending:
        yield StepPlan(tuple(pending))
