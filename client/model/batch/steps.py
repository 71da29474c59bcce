"""Tracks which rows the peers hold for a batch of `generate`, and turns each forward into one step.

`generate` works on a batch: rows of equal width, padded on the left, cropped and reordered between forwards.  The peers
hold rows of different lengths without padding, and batch rows with equal tokens so far share one row there: a prompt
expanded for beams is sent once, and forked by the step in which its copies first differ.

    columns   width of the batch so far, padding included
    padding   number of leading padding columns of a batch row
    source    the peers' row that holds the tokens of a batch row so far

Cropping and reordering change only this bookkeeping. They reach the peers with the next step: as its source rows, and
as the position at which each of its rows starts.  Nothing here touches tensors or the network.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

from ....proto.errors import UsageError
from ....proto.wire.steps import MAX_ROWS, RowSlice, RowTable, StepPlan


@dataclass(frozen=True, slots=True)
class BatchStep:
    """One forward of a batch as a step of the peers."""

    plan: StepPlan | None
    """None if the new columns hold only padding."""
    senders: tuple[int, ...]
    """For each row of the plan, a batch row that has its tokens."""
    receivers: tuple[int, ...]
    """For each batch row, the row of the plan whose answers it gets."""
    after: BatchRows
    """The bookkeeping once the step is done."""


@dataclass(frozen=True, slots=True)
class BatchRows:
    """The rows of a batch between two forwards; immutable, so a forward that fails leaves it as it was."""

    columns: int = 0
    paddings: tuple[int, ...] = ()
    """Per batch row; empty while the batch size is not known."""
    sources: tuple[int, ...] | None = None
    """Per batch row, the peers' row; None while the peers hold nothing of this batch."""
    table: RowTable = field(default_factory=RowTable)
    """The rows that the peers hold."""

    def cropped(self, columns_to_remove: int) -> BatchRows:
        """Return the batch without its last columns; removing all of them, or more, empties it."""
        columns = self.columns - columns_to_remove
        if columns <= 0:
            return BatchRows(table=self.table)
        return replace(self, columns=columns, paddings=tuple(min(padding, columns) for padding in self.paddings))

    def selected(self, batch_rows: Sequence[int]) -> BatchRows:
        """Return a batch of the given rows of this one: reordered, selected, or repeated.

        An empty batch stays as it is: its size is not known yet. Raises IndexError for an unknown row.
        """
        if self.columns == 0:
            return self
        sources = None if self.sources is None else tuple(self.sources[row] for row in batch_rows)
        return replace(self, paddings=tuple(self.paddings[row] for row in batch_rows), sources=sources)

    def begun(self, columns: int, paddings: Sequence[int], batch_rows: Sequence[int]) -> BatchRows:
        """Return the first `columns` columns of another batch, taken from the rows that this one has at the peers.

        `paddings` are the other batch's numbers of leading padding columns. The tokens of its row i in these columns
        must be a prefix of those of row `batch_rows[i]` of this batch.
        """
        if columns <= 0:
            return BatchRows(table=self.table)
        sources = None if self.sources is None else tuple(self.sources[row] for row in batch_rows)
        return replace(self, columns=columns, paddings=tuple(min(p, columns) for p in paddings), sources=sources)

    def repeated(self, repeats: int) -> BatchRows:
        """Return the batch with every row repeated `repeats` times, copies next to each other."""
        return self.selected([row for row in range(len(self.paddings)) for _ in range(repeats)])

    def step(
        self, paddings: Sequence[int], count: int, answers: int, new_tokens: Callable[[], Sequence[Hashable]]
    ) -> BatchStep:
        """Return the step that computes `count` new columns and answers the last `answers` of them.

        `paddings` are the rows' numbers of leading padding columns, the new columns included.  `new_tokens` returns the
        new tokens of every batch row; it is called only if rows may be equal. O(batch rows). Raises UsageError for a
        batch of another size, or for padding that is not on the left.
        """
        self._check(paddings)
        keys = self._keys(paddings, new_tokens)
        index_of: dict[Hashable, int] = {}
        receivers = tuple(index_of.setdefault(key, len(index_of)) for key in keys)
        senders = list(range(len(index_of)))
        if len(index_of) < len(keys):
            senders = [receivers.index(index) for index in range(len(index_of))]
        if len(senders) > MAX_ROWS:
            raise UsageError(f"{len(senders)} rows in one batch, at most {MAX_ROWS} are possible")

        stop = self.columns + count
        rows = []
        for index, sender in enumerate(senders):
            start = max(0, self.columns - paddings[sender])
            tokens = max(0, stop - paddings[sender]) - start
            rows.append(RowSlice(index, start, tokens, min(answers, tokens)))
        plan = StepPlan(tuple(rows), self._source_rows(senders))
        after = BatchRows(stop, tuple(min(padding, stop) for padding in paddings), receivers)
        if plan.tokens == 0:
            unsent = replace(after, sources=self.sources, table=self.table)
            return BatchStep(None, tuple(senders), receivers, unsent)
        return BatchStep(plan, tuple(senders), receivers, replace(after, table=self.table.after(plan)))

    def _check(self, paddings: Sequence[int]) -> None:
        if self.columns == 0:
            return
        if len(paddings) != len(self.paddings):
            raise UsageError(f"a batch of {len(paddings)} rows cannot continue one of {len(self.paddings)}")
        for row, (known, given) in enumerate(zip(self.paddings, paddings, strict=True)):
            if given != known and (known < self.columns or given < self.columns):
                raise UsageError(
                    f"the attention mask hides {given} leading columns of row {row}, earlier it hid {known}",
                    hint="Pass the whole mask of the batch, and never change it for columns that were computed.",
                )

    def _keys(self, paddings: Sequence[int], new_tokens: Callable[[], Sequence[Hashable]]) -> Sequence[Hashable]:
        """Return a key for each batch row; rows with equal keys have equal tokens, the new ones included."""
        if len(paddings) == 1 or (self.sources is not None and len(set(self.sources)) == len(paddings)):
            return range(len(paddings))
        sources = self.sources or (-1,) * len(paddings)
        return list(zip(sources, paddings, new_tokens(), strict=True))

    def _source_rows(self, senders: Sequence[int]) -> tuple[int, ...] | None:
        if self.sources is None:
            return () if self.table.lengths else None
        source_rows = tuple(self.sources[sender] for sender in senders)
        return None if source_rows == tuple(range(len(self.table.lengths))) else source_rows
