"""The module in the place of a model's blocks: it sends the hidden states to the peers and waits for the answer.

The cache that `generate` carries from forward to forward is a `SwarmCache`.  It holds no keys and values: the peers do.
It holds the session with them and the bookkeeping of `batch/steps.py`, and turns each forward into one step.

The network side is behind two protocols, `SessionFactory` and `StepRunner`; nothing here knows of it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from ...proto.errors import SessionLost, UsageError
from ...proto.model.cache import LayerlessCache
from ...proto.wire.steps import RowTable, StepPlan
from ...routing.swarm import BlockRange
from ..config import OnEvent, SessionEvent, heard_by
from ..quotes import Quoting
from ..report import ChainReport
from ..timing import ClientTiming
from .batch.history import History
from .batch.packing import ForwardInputs, bytes_of_rows, pack, unpack
from .batch.padding import common_beginnings
from .batch.steps import BatchRows, BatchStep
from .guess.forwards import GuessedForwards
from .guess.front import FrontCache
from .guess.guesser import TripRunner
from .refusals import NotCopied


class StepRunner(TripRunner, Protocol):
    """One session with a chain of peers. `run` and `begin` are called by one thread at a time, the rest by any."""

    def run(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        """(plan.tokens, H) packed in the order of `plan.rows` -> (plan.answers, H), packed likewise; blocks.

        Whatever a step raises (SwarmError, KeyboardInterrupt), the session is not used again.
        """

    @property
    def answered_steps(self) -> int:
        """The number of steps that were answered."""

    def report(self, since: int = 0) -> ChainReport:
        """Where the time of the last steps went, without the first `since` answers."""

    def abort(self, confirmed: Sequence[int]) -> None:
        """Make all steps under way and all later ones raise SessionLost, at once and without waiting. Idempotent.

        `confirmed` are the lengths of the rows: the tokens that peers hold behind these were only guessed.
        """

    def close(self, confirmed: Sequence[int]) -> None:
        """Free what the peers hold for the session; `confirmed` as for `abort`. Never raises; idempotent."""


class SessionFactory(Quoting, Protocol):
    """The swarm, as a model sees it."""

    timing: ClientTiming

    def check_open(self) -> None:
        """Raises UsageError if no session can be opened any more, or not in this process."""

    def close(self) -> None: ...

    def forget(self) -> None:
        """`close` without waiting."""

    def open_session(
        self, max_tokens: int, max_rows: int, on_event: OnEvent | None = None, blocks: BlockRange | None = None
    ) -> StepRunner:
        """A session of `max_rows` rows and `max_tokens` tokens over all, through `blocks` (None: all of them)."""


class SwarmCache(NotCopied, LayerlessCache):
    """The cache of a batch whose keys and values are at the peers.

    The session is opened by the first step, for `max_tokens` tokens over all rows and `max_rows` rows.  After an error
    in a step the cache is unusable (`usable`).  A cache that nobody refers to any more ends its session.
    """

    wanted = True
    """Whether it is a part of the result of a forward."""

    def __init__(self, factory: SessionFactory, max_tokens: int, max_rows: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self._factory = factory
        self._rows = BatchRows()
        self._inputs: ForwardInputs | None = None
        self._ids = History()
        self._histories = [self._ids]
        self.guesses: GuessedForwards | None = None
        """Guesses ahead for this cache, where there is any."""
        self._lock = threading.Lock()  # guards the two below: abort and close come from other threads
        self._runner: StepRunner | None = None
        self._gone: str | None = None
        self._on_event: Callable[[SessionEvent], None] = lambda event: None
        self._first_step = 0
        """Answers of the session before the present user began."""
        self._report = ChainReport()
        """The report of the session, once it has ended."""

    @property
    def usable(self) -> bool:
        return self._gone is None

    def check_usable(self) -> None:
        """Raises SessionLost if the session has ended, failed, or was cancelled."""
        if self._gone is not None:
            raise SessionLost(
                f"this cache cannot be used: its session is gone, {self._gone}",
                hint="Use `with model.session(...)` for a cache that outlives one call of generate.",
            )

    @property
    def columns(self) -> int:
        """Width of the batch so far, padding included."""
        return self._rows.columns

    @property
    def paddings(self) -> tuple[int, ...]:
        """Leading columns of each batch row that are padding."""
        return self._rows.paddings

    def input_ids(self) -> torch.Tensor:
        """(B, columns): the tokens computed so far, -1 where they were given as embeddings."""
        return self._ids.joined()

    def expect(self, inputs: ForwardInputs) -> None:
        """Announce the forward that is about to call `compute`."""
        self._inputs = inputs

    def compute(self, hidden: torch.Tensor) -> torch.Tensor:
        """The blocks: (B, T, H) -> (B, T, H), zeros where nothing was computed or nothing is needed.

        Raises UsageError for inputs that cannot be computed, and what the session raises.
        """
        inputs = self._expected()
        step = self._plan(inputs, hidden)
        if not self._fits(step.after.table):
            held = step.after.table
            raise UsageError(
                f"{held.tokens} tokens in {len(held.lengths)} rows do not fit into a session for {self.max_tokens} "
                f"tokens in {self.max_rows} rows",
                hint="Open the session with a larger max_length or max_rows.",
            )
        output = self._run(step, hidden, inputs) if step.plan is not None else torch.zeros_like(hidden)
        self._advance(step, inputs, hidden)
        return output

    def check_room(self, rows: int, longest: int) -> None:
        """Refuse now rather than in the middle of a text. Raises UsageError, and SessionLost if the session is gone."""
        self.check_usable()
        if rows * longest > self.max_tokens or rows > self.max_rows:
            raise UsageError(
                f"up to {longest} tokens in {rows} rows do not fit into a session for {self.max_tokens} tokens in "
                f"{self.max_rows} rows",
                hint="Open the session with a larger max_length or max_rows, or generate fewer tokens.",
            )

    def begin_use(self, on_event: Callable[[SessionEvent], None]) -> None:
        """From now on the session's events go to `on_event`, and `report` leaves out the steps so far."""
        self._on_event = on_event
        runner = self._runner
        self._first_step = runner.answered_steps if runner is not None else 0

    def report(self) -> ChainReport:
        """Where the time of the steps since `begin_use` went, per hop; from any thread."""
        runner = self._runner
        return runner.report(self._first_step) if runner is not None else self._report

    def abort(self) -> None:
        """Fail the pending step, from any thread. The session is lost."""
        with self._lock:
            self._gone = self._gone or "it was cancelled"
            runner = self._runner
        if runner is not None:
            runner.abort(self._rows.table.lengths)

    def close(self) -> None:
        """End the session. Idempotent."""
        with self._lock:
            self._gone = self._gone or "it has ended"
        self._end_session()

    def release(self) -> None:
        """End the session behind a call of `generate` that opened it. Idempotent."""
        self.close()

    def hear(self, event: SessionEvent) -> None:
        """Tell the present use of the cache of an event of its session."""
        self._on_event(event)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._end_session()

    def _end_session(self) -> None:
        """Free the room at the peers; whether another session may follow is another question."""
        with self._lock:
            runner, self._runner = self._runner, None
            if runner is not None:
                self._report = runner.report(self._first_step)
                self._first_step = 0
        if runner is not None:
            runner.close(self._rows.table.lengths)

    def _plan(self, inputs: ForwardInputs, hidden: torch.Tensor) -> BatchStep:
        batch, count = hidden.shape[:2]
        columns = self._rows.columns
        paddings = self._paddings(inputs.attention_mask, batch, count)
        _check_positions(inputs.position_ids, paddings, columns, count)
        ids = hidden if inputs.input_ids is None else inputs.input_ids
        return self._rows.step(paddings, count, inputs.answers or count, lambda: bytes_of_rows(ids))

    def _fits(self, held: RowTable) -> bool:
        return held.tokens <= self.max_tokens and len(held.lengths) <= self.max_rows

    def _expected(self) -> ForwardInputs:
        """The forward that was announced. Raises UsageError if none was."""
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            raise UsageError("the blocks were called without their model", hint="Call the model, not its forward.")
        return inputs

    def _advance(self, step: BatchStep, inputs: ForwardInputs, hidden: torch.Tensor) -> None:
        """Take over a step that was done."""
        self._rows = step.after
        self._ids.append(torch.full(hidden.shape[:2], -1) if inputs.input_ids is None else inputs.input_ids)

    def _paddings(self, mask: torch.Tensor | None, batch: int, count: int) -> Sequence[int]:
        width = self._rows.columns + count
        if mask is None:
            return (0,) * batch
        if mask.shape != (batch, width):
            raise UsageError(
                f"the attention mask has shape {tuple(mask.shape)}, {(batch, width)} is needed: all columns so far"
            )
        real = mask != 0
        tokens = real.sum(dim=1)
        # Of equal values argmax takes the first: the first column that is visible.
        leading = torch.where(tokens > 0, real.int().argmax(dim=1), width)
        if not torch.equal(tokens, width - leading):
            raise UsageError(
                "the attention mask hides columns behind the first token of a row",
                hint="Pad batches on the left (tokenizer.padding_side = 'left'); other masks are not possible.",
            )
        paddings: list[int] = leading.tolist()
        return paddings

    def _run(self, step: BatchStep, hidden: torch.Tensor, inputs: ForwardInputs) -> torch.Tensor:
        assert step.plan is not None
        packed = pack(hidden, step)
        try:
            if self.guesses is not None:
                room = self.max_tokens - step.after.table.tokens
                answers = self.guesses.compute(self._session(), step, packed, inputs, room)
            else:
                answers = self._session().run(step.plan, packed)
        except BaseException:
            # How far the peers came is unknown, so nothing can be built on their rows.
            with self._lock:
                self._gone = self._gone or "a step of it failed"
            self.close()
            raise
        return unpack(answers.to(hidden.device, hidden.dtype), step, hidden)

    def _session(self) -> StepRunner:
        runner = self._runner
        if runner is None and self._gone is None:
            runner = self._factory.open_session(self.max_tokens, self.max_rows, heard_by(self))
            with self._lock:
                if self._gone is None:
                    self._runner = runner
            if self._gone is not None:
                runner.close(())
        self.check_usable()
        assert runner is not None
        return runner

    def keep_beginning(self, ids: torch.Tensor, visible: torch.Tensor) -> None:
        """Become the cache of the columns with which the batch `ids` (B, S) begins, and of which the peers hold all.

        `visible` (B, S) is 0 in the leading columns that are padding, at least the last column is not. Rows may have
        other padding than before, what counts are their tokens; at least the last column is left to compute. Costs
        nothing: the next step carries it.
        """
        ids, paddings = ids.cpu(), (visible == 0).sum(dim=1).cpu()
        rows, shared = common_beginnings(
            self._ids.joined(), torch.tensor(self.paddings, dtype=torch.long), ids, paddings
        )
        columns = min(int((paddings + shared).min()), ids.shape[1] - 1)
        self._rows = self._rows.begun(columns, paddings.tolist(), rows.tolist())
        self._ids.replace(ids[:, : self._rows.columns])

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._rows.columns

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -`tokens_to_remove` columns. Costs nothing: the next step carries it."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, not {tokens_to_remove}")
        if tokens_to_remove:
            self._rows = self._rows.cropped(-tokens_to_remove)
            for history in self._histories:
                history.crop(self._rows.columns)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(len(self._rows.paddings)).repeat_interleave(repeats))

    def _select(self, batch_rows: torch.Tensor) -> None:
        if self._rows.columns:
            self._rows = self._rows.selected(batch_rows.tolist())
            for history in self._histories:
                history.select(batch_rows)

    def reset(self) -> None:
        self.crop(-self._rows.columns)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a client has no blocks that would cache anything")

    @property
    def batch_size(self) -> int:
        return len(self._rows.paddings) or -1

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_initialized(self) -> bool:
        return self._rows.columns > 0

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        state = "usable" if self.usable else f"gone: {self._gone}"
        return f"SwarmCache({len(self.paddings)} rows of {self.columns} columns, {state})"


class RemoteBlocks(nn.Module):
    """The one module in the place of all blocks. Stateless: everything is in the cache that comes with the call."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, T, H) -> (B, T, H). Families call their blocks' cache by different names, so it is found by its type."""
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise UsageError("gradients do not pass through the swarm", hint="Call the model under torch.no_grad().")
        for value in (*kwargs.values(), *args):
            if isinstance(value, (SwarmCache, FrontCache)):
                return value.compute(hidden_states)
        raise UsageError("the blocks were called without their model", hint="Call the model, not its forward.")


def _check_positions(position_ids: torch.Tensor | None, paddings: Sequence[int], columns: int, count: int) -> None:
    """The peers count positions themselves, so only the natural ones are possible. Raises UsageError for others."""
    if position_ids is None:
        return
    if position_ids.dim() == 2 and position_ids.shape[1] == count and position_ids.shape[0] in (1, len(paddings)):
        if count == 1:  # every decoded token comes here, and short lists are much faster than short tensors
            given: list[int] = position_ids.flatten().tolist()
            pairs = zip(given * (len(paddings) // len(given)), paddings, strict=True)
            natural = all(position == columns - padding or columns < padding for position, padding in pairs)
        else:
            expected = torch.arange(columns, columns + count) - torch.tensor(paddings)[:, None]
            natural = bool(((position_ids.cpu() == expected) | (expected < 0)).all())
        if natural:
            return
    raise UsageError(
        "position_ids other than 0, 1, 2, ... from the first token of each row on are not possible",
        hint="Leave position_ids out: they follow from the attention mask.",
    )
