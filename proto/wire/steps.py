"""The step contract: the work that one step requests from every peer of a chain, and the row table it acts on.

A session holds rows; a row is one sequence with its own length (padding never leaves the client).  A step carries its
own rollback: first `source_rows` permutes, forks or drops rows, then every row named is truncated to `start`, then
`count` new tokens are computed for it.  The first step may begin with rows that the peers hold from earlier sessions
(`adopted`).  There are no messages for crop or reorder: pushed and direct messages have no common order, so the
rollback must travel along the chain with the tokens that it prepares.

Peers, the client and the replay buffers apply the same `RowTable`, so they cannot disagree on what a step means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import RemoteProtocolError

MAX_ROWS = 1024
MAX_POSITIONS = 1 << 24


@dataclass(frozen=True, slots=True)
class RowSlice:
    """`count` new tokens of row `row` at positions from `start` on; the tokens that the row has there are dropped."""

    row: int
    start: int
    count: int
    answers: int
    """The number of last tokens whose outputs the client wants back, 0 to `count`."""

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step without its tensors: the part that is the same on every hop."""

    rows: tuple[RowSlice, ...]
    """Ascending by row; the step's tokens are packed in this order."""
    source_rows: tuple[int, ...] | None = None
    """Row i of the new table is row `source_rows[i]` of the old one; None keeps the table as it is."""
    adopted: tuple[int, ...] = ()
    """Row i begins with the first `adopted[i]` tokens of its held prefix. Only allowed while there are no rows."""
    guessed: int = 0
    """The number of the last row's last tokens that are only guessed: they come after the tokens of other sessions.

    A guess that a peer cannot compute is lost, with those behind it: it travels on as NaN.
    """

    @property
    def tokens(self) -> int:
        return sum(piece.count for piece in self.rows)

    @property
    def answers(self) -> int:
        """Tokens whose outputs return to the client; packed in the order of `rows`."""
        return sum(piece.answers for piece in self.rows)

    @property
    def answered_guesses(self) -> int:
        """The number of guesses whose outputs return to the client; they come last."""
        return min(self.guessed, self.rows[-1].answers) if self.guessed else 0


def validate_plan(plan: StepPlan, rebuilds: bool = False) -> None:
    """Check a plan that came over the network, before anything acts on it. Raises RemoteProtocolError.

    A plan that `rebuilds` a cache may leave it empty, and computes every token.
    """
    ids = [piece.row for piece in plan.rows]
    if (not ids and not rebuilds) or len(ids) > MAX_ROWS or ids != sorted(set(ids)):
        raise RemoteProtocolError("a step names its rows once each, in ascending order")
    for piece in plan.rows:
        if piece.start < 0 or piece.count < 0 or piece.row < 0 or piece.stop > MAX_POSITIONS:
            raise RemoteProtocolError(f"row {piece.row} of a step has impossible positions")
        if not 0 <= piece.answers <= piece.count:
            raise RemoteProtocolError(f"row {piece.row} of a step wants {piece.answers} of {piece.count} tokens back")
    if plan.tokens < 1 and not rebuilds:
        raise RemoteProtocolError("a step computes at least one token")
    if rebuilds and plan.adopted:
        raise RemoteProtocolError("a rebuild computes every token")
    if plan.source_rows is not None and len(plan.source_rows) > MAX_ROWS:
        raise RemoteProtocolError(f"a step keeps at most {MAX_ROWS} rows")
    if plan.guessed and (not plan.rows or not 0 < plan.guessed <= plan.rows[-1].count):
        raise RemoteProtocolError("more tokens are guessed than the last row of a step has")
    if len(plan.adopted) > MAX_ROWS or any(not 0 <= tokens <= MAX_POSITIONS for tokens in plan.adopted):
        raise RemoteProtocolError("a step begins with impossible rows")


@dataclass(frozen=True, slots=True)
class RowTable:
    """The lengths of a session's rows, in tokens."""

    lengths: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def begun(self, adopted: Sequence[int]) -> RowTable:
        """The table after rows begin with held prefixes. Raises RemoteProtocolError if there are rows already."""
        if not adopted:
            return self
        if self.lengths:
            raise RemoteProtocolError("only the first step of a session begins with held prefixes")
        return RowTable(tuple(adopted))

    def permuted(self, source_rows: Sequence[int] | None) -> RowTable:
        """The table after the row permutation, fork or drop of a step. Raises RemoteProtocolError."""
        if source_rows is None:
            return self
        if any(not 0 <= source < len(self.lengths) for source in source_rows):
            raise RemoteProtocolError(f"a step takes rows from {list(source_rows)}, but there are {len(self.lengths)}")
        return RowTable(tuple(self.lengths[source] for source in source_rows))

    def truncated(self, rows: Sequence[RowSlice]) -> RowTable:
        """The table after truncation to the starts of `rows`; a row with the next free index begins empty."""
        lengths = list(self.lengths)
        for piece in rows:
            if piece.row == len(lengths):
                lengths.append(0)
            if piece.row > len(lengths) or piece.start > lengths[piece.row]:
                have = lengths[piece.row] if piece.row < len(lengths) else "no such row"
                raise RemoteProtocolError(f"row {piece.row} cannot start at {piece.start}: it has {have} tokens")
            lengths[piece.row] = piece.start
        return RowTable(tuple(lengths))

    def extended(self, rows: Sequence[RowSlice]) -> RowTable:
        """The table after the tokens of `rows` are computed; the rows must be truncated already."""
        lengths = list(self.lengths)
        for piece in rows:
            lengths[piece.row] = piece.stop
        return RowTable(tuple(lengths))

    def after(self, plan: StepPlan) -> RowTable:
        """The table after the whole step: held prefixes, permutation, truncation, new tokens. O(rows)."""
        return self.begun(plan.adopted).permuted(plan.source_rows).truncated(plan.rows).extended(plan.rows)


def split_plan(plan: StepPlan, max_tokens: int) -> tuple[StepPlan, ...]:
    """Cut a plan into steps of at most `max_tokens` tokens that follow each other down the chain.

    Only the first step adopts, permutes and truncates (it names every row); the others only append, so several may be
    in flight.  Tokens keep their packed order: the steps' tokens joined are the plan's tokens, and so are their
    answers.
    """
    if plan.tokens <= max_tokens:  # every decoded token
        return (plan,)
    parts: list[list[RowSlice]] = [[]]
    room = max_tokens
    for piece in plan.rows:
        start = piece.start
        while piece.stop - start > room:
            if room:
                parts[-1].append(_part_of(piece, start, start + room))
            start += room
            parts.append([])
            room = max_tokens
        parts[-1].append(_part_of(piece, start, piece.stop))
        room -= piece.stop - start
    named = {piece.row for piece in parts[0]}
    parts[0] += [RowSlice(piece.row, piece.start, 0, answers=0) for piece in plan.rows if piece.row not in named]
    plans = [StepPlan(tuple(rows)) for rows in parts]
    plans[0] = replace(plans[0], source_rows=plan.source_rows, adopted=plan.adopted)
    left = plan.guessed
    for index in reversed(range(len(plans))):
        here = min(left, plans[index].tokens)
        plans[index] = replace(plans[index], guessed=here)
        left -= here
    return tuple(plans)


def _part_of(piece: RowSlice, start: int, stop: int) -> RowSlice:
    wanted_from = piece.stop - piece.answers
    return RowSlice(piece.row, start, stop - start, answers=max(0, stop - max(start, wanted_from)))


def answers_in(plan: StepPlan, data: bytes, token_bytes: int) -> bytes:
    """The packed outputs that the client wants back, out of those of all tokens of the step."""
    if plan.answers == plan.tokens:
        return data
    parts = []
    offset = 0
    for piece in plan.rows:
        offset += piece.count * token_bytes
        parts.append(data[offset - piece.answers * token_bytes : offset])
    return b"".join(parts)
