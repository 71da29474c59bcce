"""The rows of one session on this peer, and a step of the session that is computed chunk by chunk.

Everything here runs in the engine's thread.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....proto.errors import BadActivations, RemoteProtocolError, RetryElsewhere
from ....proto.wire.prefixes import PAGE_TOKENS, Digests
from ....proto.wire.steps import RowTable, StepPlan
from ....proto.wire.tensors import WireFormat, all_finite, finite_rows
from ....routing.swarm import BlockRange
from ..batch import Share, compute_shares
from ..blocks.rows import RowSpan
from ..blocks.view import StageView
from .memory import SessionMemory
from .part import CachePart, part_of_rows
from .row import BlockKV, RowKV
from .wire import decode_rows, encode_rows, largest_size


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The output of a step: all its tokens packed in wire format, and when it ran (Unix seconds)."""

    data: bytes
    started_at: float
    finished_at: float
    queue_seconds: float = 0.0
    """Its wait for the steps of other sessions before it ran."""
    crowded: bool = False
    """Whether the texts of other sessions leave no time for guesses."""
    lost_guesses: int = 0
    """The number of guesses, the step's last tokens, that could not be computed; their outputs are NaN."""


def text_tokens(plan: StepPlan) -> int:
    """Return the number of a step's tokens that must be computed; those behind them are only guessed.

    The first token of a row is never a guess here: it shows what the row's cache looks like.
    """
    return plan.tokens - (min(plan.guessed, plan.rows[-1].stop - 1) if plan.guessed else 0)


class StepProgress:
    """A step that has begun: its rows are permuted and truncated, and some of its tokens may be computed.

    Ends with `finish` or with `abandon`.

    A guess is *lost*, with all guesses behind it, if it arrived with values that are not finite or if computing it
    yields such values; the tokens of the text do not notice.  Lost tokens are zeros in the cache, because attention
    multiplies masked values by 0, and 0 times infinity is NaN.
    """

    def __init__(self, kv: SessionKv, plan: StepPlan, hidden: torch.Tensor, known_rows: int) -> None:
        """`hidden`: the tokens of the plan, (T, H), on the CPU, finite where they are not guessed.

        The first `known_rows` rows existed before the step.
        """
        self._kv = kv
        self._known_rows = known_rows
        self._hidden = hidden
        self._output = torch.empty_like(hidden)
        self._pieces = [piece for piece in plan.rows if piece.count]
        self._done = [0] * len(self._pieces)
        self._offsets: list[int] = []
        offset = 0
        for piece in self._pieces:
            self._offsets.append(offset)
            offset += piece.count
        self._first_guess = text_tokens(plan)
        self._sound = finite_rows(hidden) if self._first_guess < len(hidden) else len(hidden)
        """Tokens from here on are lost."""

    @property
    def lost_guesses(self) -> int:
        """The number of last tokens that are lost; known when the step is complete."""
        return len(self._hidden) - self._sound

    @property
    def guesses_left(self) -> int:
        """The number of guesses left to compute, the last ones of `remaining`."""
        done = self._offsets[-1] + self._done[-1]
        return max(0, self._sound - max(done, self._first_guess))

    @property
    def remaining(self) -> tuple[int, ...]:
        """The number of tokens left to compute, for every row that has tokens in this step."""
        counts = [piece.count - done for piece, done in zip(self._pieces, self._done, strict=True)]
        if self.lost_guesses:
            counts[-1] -= self.lost_guesses
        return tuple(counts)

    def share(self, takes: Sequence[tuple[int, int]]) -> Share:
        """Return the next tokens of some rows as a share; `takes` are (index in `remaining`, number of tokens)."""
        spans = []
        slices = []
        for row, count in takes:
            begin = self._offsets[row] + self._done[row]
            spans.append((begin, begin + count))
            piece = self._pieces[row]
            slices.append(RowSpan(self._kv.row(piece.row), piece.start + self._done[row], count))
        parts = [self._hidden[begin:end] for begin, end in spans]
        return Share(self._kv.view, parts[0] if len(parts) == 1 else torch.cat(parts), tuple(slices))

    def store(self, takes: Sequence[tuple[int, int]], output: torch.Tensor) -> None:
        """Keep the output for `share(takes)`, (T, H) on the CPU."""
        parts = output.split([count for _, count in takes])
        for (row, count), part in zip(takes, parts, strict=True):
            begin = self._offsets[row] + self._done[row]
            self._output[begin : begin + count] = part
            if begin + count > self._first_guess and not all_finite(part):
                count = self._keep_sound(begin, part)
            self._done[row] += count

    def _keep_sound(self, begin: int, part: torch.Tensor) -> int:
        """Take in that tokens with guesses, from `begin` on, are not all finite; return how many of them are kept."""
        text = max(0, self._first_guess - begin)
        if all_finite(part[:text]):
            self._sound = begin + finite_rows(part)
            return self._sound - begin
        # Guesses may harm tokens before them, although attention gives them a weight of 0: compute the text alone.
        self._sound = self._first_guess
        return 0

    def finish(self) -> bytes:
        """End the step; return all its tokens in wire format. Raises RetryElsewhere for values that are not finite."""
        assert not any(self.remaining)
        if not all_finite(self._output[: self._first_guess]):
            self.abandon()
            raise RetryElsewhere("the peer computed values that are not finite")
        if self.lost_guesses:
            row = self._kv.row(self._pieces[-1].row)
            row.truncate(self._pieces[-1].stop - self.lost_guesses)
            row.append_blanks(self.lost_guesses)
            self._output[self._sound :] = math.nan
        self._kv.end_step(self)
        return self._kv.wire_format.encode(self._output)

    def abandon(self) -> None:
        """End the step and undo it: every row gets the length that it began with, and new rows are dropped."""
        for piece in self._pieces:
            self._kv.row(piece.row).truncate(piece.start)
        self._kv.end_step(self)
        self._kv.keep_rows(self._known_rows)


class SessionKv:
    """The rows of one session on this peer."""

    def __init__(
        self,
        view: StageView,
        wire_format: WireFormat,
        kv_tokens: int,
        max_rows: int,
        memory: SessionMemory,
    ) -> None:
        self.wire_format = wire_format
        """The format of the outputs."""
        self.held_tokens = memory.held_tokens
        """For each row, from row 0 on, the number of tokens that it may begin with (`adopt`)."""
        self.view = view
        """The blocks that the session opened on; it keeps them in memory."""
        self._kv_tokens = kv_tokens
        self._max_rows = max_rows
        self._memory = memory
        self._rows: list[RowKV] = []
        self._step: StepProgress | None = None
        self._specimen: tuple[BlockKV, ...] | None = None

    @property
    def blocks(self) -> BlockRange:
        return self.view.blocks

    @property
    def table(self) -> RowTable:
        return RowTable(tuple(row.length for row in self._rows))

    def row(self, index: int) -> RowKV:
        return self._rows[index]

    def step(self, plan: StepPlan, data: bytes) -> StepOutput:
        """Compute a whole step at once, on its own. Raises as `begin` does, OutOfMemory, RetryElsewhere.

        After an error the rows have the lengths that they had before the step.
        """
        started_at = time.time()
        progress = self.begin(plan, data)
        while takes := [(row, count) for row, count in enumerate(progress.remaining) if count]:
            (output,) = compute_shares([progress.share(takes)])
            if isinstance(output, Exception):
                progress.abandon()
                raise output
            progress.store(takes, output)
        return StepOutput(progress.finish(), started_at, time.time(), lost_guesses=progress.lost_guesses)

    def begin(self, plan: StepPlan, data: bytes, input_format: WireFormat | None = None) -> StepProgress:
        """Begin a step: permute and truncate the rows. `input_format` is that of `data`; None: that of the outputs.

        Raises RemoteProtocolError for a plan that does not fit the rows or the reservation, or whose size differs from
        that of `data`, BadActivations for a text's values that are not finite, OutOfMemory. The rows are then as they
        were.
        """
        self._expect_no_step()
        self._check(plan)
        hidden = self._checked(plan, (input_format or self.wire_format).decode(data))
        self._memory.reserve()
        self._memory.unpin()
        if plan.source_rows is not None:
            self._permute(plan.source_rows)
        known_rows = len(self._rows)
        for piece in plan.rows:
            if piece.row == len(self._rows):
                self._rows.append(self._new_row())
            self._rows[piece.row].truncate(piece.start)
        self._step = StepProgress(self, plan, hidden, known_rows)
        return self._step

    def adopt(self, index: int, tokens: int) -> None:
        """Have a row begin with `tokens` of its held tokens, before the first step. O(new tokens).

        `index` is that of the next new row, or that of the last one, which then begins with more than before: a long
        prefix can be adopted in parts. Raises RemoteProtocolError if fewer tokens are held.
        """
        self._expect_no_step()
        self._memory.reserve()
        if index == len(self._rows):
            self._rows.append(self._new_row())
        self._memory.adopt(self._rows[index], index, tokens)

    def keep(self, index: int, digests: Digests) -> None:
        """Keep the first pages of a row for later sessions, as far as there is room. O(tokens that are not kept yet).

        Raises RemoteProtocolError if the row is shorter than these pages.
        """
        self._expect_no_step()
        self._memory.keep(self._rows[index], digests)

    @property
    def page_bytes(self) -> int:
        """The largest size of one page of a row."""
        return PAGE_TOKENS * len(self.blocks) * self.view.kv_bytes_per_token

    def end_step(self, step: StepProgress) -> None:
        assert self._step is step
        self._step = None

    def keep_rows(self, count: int) -> None:
        """Forget all rows but the first ones."""
        self._replace_rows(self._rows[:count])

    def reset(self) -> None:
        """Forget every row."""
        self._expect_no_step()
        self._memory.unpin()
        self.keep_rows(0)

    def close(self) -> None:
        """Free the rows and the reservation."""
        self._expect_no_step()
        self.keep_rows(0)
        self._memory.close()

    def export(self, starts: Sequence[int], max_tokens: int) -> CachePart:
        """Return the next tokens of every row from its start on, at most `max_tokens` of all rows together. O(tokens).

        The result is for `import_` on another peer with the same blocks. Rows that `starts` does not name begin at 0.
        """
        self._expect_no_step()
        begins, ends = part_of_rows(self.table.lengths, starts, max_tokens)
        spans = zip(self._rows, begins, ends, strict=True)
        pieces = [row.read(begin, end) if begin < end else () for row, begin, end in spans]
        return CachePart(tuple(begins), tuple(ends), encode_rows(pieces, self.blocks))

    def largest_import(self, starts: Sequence[int], lengths: Sequence[int]) -> int:
        """Return the most bytes of an import of these rows. Raises RemoteProtocolError for more than was reserved."""
        if len(lengths) > self._max_rows or sum(lengths) > self._kv_tokens:
            raise RemoteProtocolError("the imported cache is larger than what the session reserved")
        self._check_lengths(lengths)
        counts = tuple(map(operator.sub, lengths, starts))
        return largest_size(counts, self.blocks, self.view.kv_bytes_per_token)

    def import_(self, part: CachePart) -> None:
        """Truncate every row to its start and append the exported tokens; rows that the part does not name are dropped.

        Raises RemoteProtocolError, and changes nothing, if the part does not fit.
        """
        self._expect_no_step()
        if len(part.data) > self.largest_import(part.starts, part.lengths):
            raise RemoteProtocolError("the imported cache has more bytes than its rows can have")
        have = self.table.lengths
        for index, start in enumerate(part.starts):
            if start > (have[index] if index < len(have) else 0):
                raise RemoteProtocolError(f"row {index} of an imported cache begins at {start}, beyond what is here")
        rows = decode_rows(part.data, part.counts, self.blocks, self._specimen_of_a_token())
        self._memory.reserve()
        self._memory.unpin()
        taken = []
        for index, (start, content) in enumerate(zip(part.starts, rows, strict=True)):
            row = self._rows[index] if start else self._new_row()
            row.truncate(start)
            if content:
                row.append([dict(zip(self.blocks, content, strict=True))])
            taken.append(row)
        self._replace_rows(taken)

    def _specimen_of_a_token(self) -> tuple[BlockKV, ...]:
        """Return the cache of one token on this peer, block by block: its heads, sizes and dtype."""
        if self._specimen is None:
            scratch = self.view.new_row(max_tokens=1)
            nothing = torch.zeros(1, self.view.hidden_size, dtype=self.view.dtype)
            (output,) = compute_shares([Share(self.view, nothing, (RowSpan(scratch, 0, 1),))])
            if isinstance(output, Exception):
                raise output
            self._specimen = scratch.export()
        return self._specimen

    def _new_row(self) -> RowKV:
        return RowKV(self.blocks, self._kv_tokens, self._memory.usage)

    def _check(self, plan: StepPlan) -> None:
        assert not plan.adopted, "rows adopt before the step"
        table = self.table.after(plan)
        if len(table.lengths) > self._max_rows:
            raise RemoteProtocolError(
                f"the session reserved {self._max_rows} rows, this step needs {len(table.lengths)}"
            )
        if table.tokens > self._kv_tokens:
            raise RemoteProtocolError(f"the session reserved {self._kv_tokens} tokens, this step needs {table.tokens}")
        self._check_lengths(table.lengths)

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        """Raise if a row exceeds the model's positions, where its result, and those of rows beside it, could change."""
        limit = self.view.position_limit
        if limit is not None and max(lengths, default=0) > limit:
            raise RemoteProtocolError(f"the model has {limit} positions, a row of this step has {max(lengths)}")

    def _checked(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        """Return the plan's tokens, (T, H) in the stage's dtype, on the CPU; raise if they do not fit the plan."""
        if hidden.shape[0] != plan.tokens:
            raise RemoteProtocolError(f"a step of {plan.tokens} tokens came with {hidden.shape[0]}")
        hidden = hidden.to(self.view.dtype)
        if not all_finite(hidden[: text_tokens(plan)]):
            raise BadActivations("a step has activations that are not finite")
        return hidden

    def _permute(self, source_rows: Sequence[int]) -> None:
        """Permute the rows: a row is moved at its first use, and forked at every further one."""
        moved: set[int] = set()
        rows = []
        for source in source_rows:
            rows.append(self._rows[source].fork() if source in moved else self._rows[source])
            moved.add(source)
        self._replace_rows(rows)

    def _replace_rows(self, rows: list[RowKV]) -> None:
        kept = {id(row) for row in rows}
        for row in self._rows:
            if id(row) not in kept:
                row.release()
        self._rows = rows

    def _expect_no_step(self) -> None:
        if self._step is not None:
            raise RuntimeError("a session's step is under way; nothing else can happen to its rows")
