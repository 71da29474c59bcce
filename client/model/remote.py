"""The module that replaces a model's blocks: it sends the hidden states to the peers and waits for the answers.

The cache that `generate` carries from forward to forward is a `SwarmCache`.  The keys and values are at the peers; the
cache holds the session with them and the bookkeeping of `batch/steps.py`, and turns each forward into one step.

The network is behind two protocols, `SessionFactory` and `StepRunner`; this module knows nothing else of it.
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
        """Compute a step and wait for it: (plan.tokens, H) -> (plan.answers, H), packed in the order of `plan.rows`.

        After any error (SwarmError, KeyboardInterrupt) the session must not be used again.
        """

    @property
    def answered_steps(self) -> int:
        """The number of steps that were answered."""

    def report(self, since: int = 0) -> ChainReport:
        """Report where the time of the latest steps went, without the first `since` answers."""

    def abort(self, confirmed: Sequence[int]) -> None:
        """Make pending and later steps raise SessionLost, without waiting for anything. Idempotent.

        `confirmed`: the length of each row; tokens that peers hold beyond it were only guessed.
        """

    def close(self, confirmed: Sequence[int]) -> None:
        """Free what the peers hold for the session; `confirmed` as for `abort`. Never raises; idempotent."""


class SessionFactory(Quoting, Protocol):
    """The swarm, as a model sees it."""

    timing: ClientTiming

    def check_open(self) -> None:
        """Raise UsageError if the connection is closed, or belongs to another process."""

    def close(self) -> None: ...

    def forget(self) -> None:
        """Close without waiting."""

    def open_session(
        self, max_tokens: int, max_rows: int, on_event: OnEvent | None = None, blocks: BlockRange | None = None
    ) -> StepRunner:
        """Return a session of `max_rows` rows, `max_tokens` tokens over all rows, through `blocks` (None: all)."""


class SwarmCache(NotCopied, LayerlessCache):
    """The cache of a batch whose keys and values are at the peers.

    The first step opens the session, for `max_rows` rows and `max_tokens` tokens over all rows.  After an error in a
    step the cache is not `usable` any more.  A cache that is garbage-collected ends its session.
    """

    wanted = True
    """Whether the cache is part of the result of a forward."""

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
        """Guesses ahead for this cache; None: it does not guess."""
        self._lock = threading.Lock()  # guards the two below: abort and close come from other threads
        self._runner: StepRunner | None = None
        self._gone: str | None = None
        self._on_event: Callable[[SessionEvent], None] = lambda event: None
        self._first_step = 0
        """The number of the session's answers before the present call began."""
        self._report = ChainReport()
        """The report of the session, once it has ended."""

    @property
    def usable(self) -> bool:
        return self._gone is None

    def check_usable(self) -> None:
        """Raise SessionLost if the session has ended, failed, or was cancelled."""
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
        """The number of leading padding columns of each batch row."""
        return self._rows.paddings

    def input_ids(self) -> torch.Tensor:
        """(B, columns): the tokens computed so far, -1 where they were given as embeddings."""
        return self._ids.joined()

    def expect(self, inputs: ForwardInputs) -> None:
        """Announce the forward that is about to call `compute`."""
        self._inputs = inputs

    def compute(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute the blocks: (B, T, H) -> (B, T, H), with zeros for padding and for answers that are not needed.

        Returns on the device and in the dtype of `hidden`. Raises UsageError for inputs that cannot be computed, and
        what the session raises.
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
        """Check that `rows` rows of `longest` tokens fit, before a text begins. Raises UsageError, SessionLost."""
        self.check_usable()
        if rows * longest > self.max_tokens or rows > self.max_rows:
            raise UsageError(
                f"up to {longest} tokens in {rows} rows do not fit into a session for {self.max_tokens} tokens in "
                f"{self.max_rows} rows",
                hint="Open the session with a larger max_length or max_rows, or generate fewer tokens.",
            )

    def begin_use(self, on_event: Callable[[SessionEvent], None]) -> None:
        """Send the session's events to `on_event` from now on, and leave the steps so far out of `report`."""
        self._on_event = on_event
        runner = self._runner
        self._first_step = runner.answered_steps if runner is not None else 0

    def report(self) -> ChainReport:
        """Report where the time of the steps since `begin_use` went, per hop; from any thread."""
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
        """End the session after the call of `generate` that opened it. Idempotent."""
        self.close()

    def hear(self, event: SessionEvent) -> None:
        """Pass an event of the session to the call that uses the cache."""
        self._on_event(event)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._end_session()

    def _end_session(self) -> None:
        """Free the room at the peers. Does not make the cache unusable: a subclass may begin another session."""
        with self._lock:
            runner, self._runner = self._runner, None
            if runner is not None:
                self._report = runner.report(self._first_step)
                self._first_step = 0
        if runner is not None:
            runner.close(self._rows.table.lengths)
        if self.guesses is not None:
            self.guesses.guesser.stop()

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
        """Return the inputs of the announced forward. Raises UsageError if none was announced."""
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            raise UsageError("the blocks were called without their model", hint="Call the model, not its forward.")
        return inputs

    def _advance(self, step: BatchStep, inputs: ForwardInputs, hidden: torch.Tensor) -> None:
        """Move the bookkeeping past a step that was computed."""
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
        # argmax returns the first of equal values: the first visible column.
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
                answers = self.guesses.compute(self._session(), step, packed, inputs, room, self._ids.joined)
            else:
                answers = self._session().run(step.plan, packed)
        except BaseException:
            # It is unknown how far the peers got, so their rows cannot be continued.
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
        """Keep the longest prefix of the batch `ids` (B, S) that the peers hold already for all rows; drop the rest.

        `visible` (B, S) is 0 in the leading padding columns and 1 at least in the last one. Rows may be padded
        differently than before: only their tokens are compared. At least the last column is left to compute. Sends
        nothing: the next step carries the change.
        """
        ids, paddings = ids.cpu(), (visible == 0).sum(dim=1).cpu()
        rows, shared = common_beginnings(
            self._ids.joined(), torch.tensor(self.paddings, dtype=torch.long), ids, paddings
        )
        columns = min(int((paddings + shared).min()), ids.shape[1] - 1)
        self._rows = self._rows.begun(columns, paddings.tolist(), rows.tolist())
        self._ids.replace(ids[:, : self._rows.columns])

    # The methods that transformers calls on a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._rows.columns

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -`tokens_to_remove` columns (it is <= 0). Sends nothing: the next step carries the change."""
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
    """The one module in place of all blocks. Stateless: all state is in the cache that is passed to each call."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, T, H) -> (B, T, H). The cache's parameter has different names in families, so it is found by type."""
        if hidden_states.requires_grad and torch.is_grad_enabled():
            raise UsageError("gradients do not pass through the swarm", hint="Call the model under torch.no_grad().")
        for value in (*kwargs.values(), *args):
            if isinstance(value, (SwarmCache, FrontCache)):
                return value.compute(hidden_states)
        raise UsageError("the blocks were called without their model", hint="Call the model, not its forward.")


def _check_positions(position_ids: torch.Tensor | None, paddings: Sequence[int], columns: int, count: int) -> None:
    """Raise UsageError unless positions count up from 0: the peers count them themselves."""
    if position_ids is None:
        return
    if position_ids.dim() == 2 and position_ids.shape[1] == count and position_ids.shape[0] in (1, len(paddings)):
        if count == 1:  # every decode step comes here, and short lists are much faster than short tensors
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
