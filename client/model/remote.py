"""The module in the place of a model's blocks: it sends the hidden states to the peers and waits for the answer.

The cache that `generate` carries from forward to forward is a `SwarmCache`.  It holds no keys and values: the peers do.
It holds the session with them and the bookkeeping of `cache.py`, and turns each forward into one step.

The network side is behind two protocols, `SessionFactory` and `StepRunner`; nothing here knows of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ...proto.errors import SessionLost, UsageError
from ...proto.model.cache import LayerlessCache
from ...proto.wire.steps import StepPlan
from ..config import SessionEvent
from ..report import ChainReport
from ..timing import ClientTiming
from .cache import BatchRows, BatchStep


class StepRunner(Protocol):
    """One session with a chain of peers. `run` is called by one thread at a time, the rest by any."""

    def run(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        """(plan.tokens, H) packed in the order of `plan.rows` -> (plan.answers, H), packed likewise; blocks.

        Whatever a step raises (SwarmError, KeyboardInterrupt), the session is not used again.
        """

    @property
    def answered_steps(self) -> int:
        """The number of steps that were answered."""

    def report(self, since: int = 0) -> ChainReport:
        """Where the time of the last steps went, without the first `since` answers."""

    def abort(self) -> None:
        """Make the pending `run` and all later ones raise SessionLost, at once and without waiting. Idempotent."""

    def close(self) -> None:
        """Free what the peers hold for the session. Never raises; idempotent."""


class SessionFactory(Protocol):
    """The swarm, as a model sees it."""

    timing: ClientTiming

    def open_session(
        self, max_tokens: int, max_rows: int, on_event: Callable[[SessionEvent], None] | None = None
    ) -> StepRunner:
        """A session for at most `max_tokens` tokens over all rows and at most `max_rows` rows. Raises SwarmError.

        `on_event` hears, in any thread, how the session finds and repairs its chain.
        """


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """The arguments of a forward, beside the hidden states that reach the blocks."""

    input_ids: torch.Tensor | None
    """(B, T)"""
    attention_mask: torch.Tensor | None
    """(B, columns so far + T), None: no padding"""
    position_ids: torch.Tensor | None
    """(B or 1, T)"""
    answers: int
    """How many of the last columns are needed behind the blocks; 0: all."""


class SwarmCache(LayerlessCache):
    """The cache of a batch whose keys and values are at the peers.

    The session is opened by the first step, for `max_tokens` tokens over all rows and `max_rows` rows.  With
    `single_use` it is closed by the same step.  After an error in a step the cache is unusable (`usable`).
    """

    def __init__(self, factory: SessionFactory, max_tokens: int, max_rows: int, *, single_use: bool = False) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self._factory = factory
        self._single_use = single_use
        self._rows = BatchRows()
        self._inputs: ForwardInputs | None = None
        self._ids = _TokenHistory()
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
        inputs, self._inputs = self._inputs, None
        if inputs is None:
            raise UsageError("the blocks were called without their model", hint="Call the model, not its forward.")
        step = self._plan(inputs, hidden)
        output = self._run(step, hidden) if step.plan is not None else torch.zeros_like(hidden)
        self._rows = step.after
        if not self._single_use:
            self._ids.append(inputs.input_ids, hidden)
        return output

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
            runner.abort()

    def close(self) -> None:
        """End the session. Idempotent."""
        with self._lock:
            self._gone = self._gone or "it has ended"
            runner = self._runner
            if runner is not None:
                self._report = runner.report(self._first_step)
                self._runner = None
        if runner is not None:
            runner.close()

    def _plan(self, inputs: ForwardInputs, hidden: torch.Tensor) -> BatchStep:
        batch, count = hidden.shape[:2]
        columns = self._rows.columns
        paddings = self._paddings(inputs.attention_mask, batch, count)
        _check_positions(inputs.position_ids, paddings, columns, count)
        ids = hidden if inputs.input_ids is None else inputs.input_ids
        step = self._rows.step(paddings, count, inputs.answers or count, lambda: _bytes_of_rows(ids))
        held = step.after.table
        if held.tokens > self.max_tokens or len(held.lengths) > self.max_rows:
            raise UsageError(
                f"{held.tokens} tokens in {len(held.lengths)} rows do not fit into a session for {self.max_tokens} "
                f"tokens in {self.max_rows} rows",
                hint="Open the session with a larger max_length or max_rows.",
            )
        return step

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

    def _run(self, step: BatchStep, hidden: torch.Tensor) -> torch.Tensor:
        assert step.plan is not None
        packed = _pack(hidden, step)
        try:
            answers = self._session().run(step.plan, packed)
        except BaseException:
            # How far the peers came is unknown, so nothing can be built on their rows.
            with self._lock:
                self._gone = self._gone or "a step of it failed"
            self.close()
            raise
        if self._single_use:
            self.close()
        return _unpack(answers.to(hidden.device, hidden.dtype), step, hidden)

    def _session(self) -> StepRunner:
        runner = self._runner
        if runner is None and self._gone is None:
            runner = self._factory.open_session(self.max_tokens, self.max_rows, lambda event: self._on_event(event))
            with self._lock:
                if self._gone is None:
                    self._runner = runner
            if self._gone is not None:
                runner.close()
        self.check_usable()
        assert runner is not None
        return runner

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._rows.columns

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -`tokens_to_remove` columns. Costs nothing: the next step carries it."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, not {tokens_to_remove}")
        if tokens_to_remove:
            self._rows = self._rows.cropped(-tokens_to_remove)
            self._ids.crop(self._rows.columns)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(len(self._rows.paddings)).repeat_interleave(repeats))

    def _select(self, batch_rows: torch.Tensor) -> None:
        if self._rows.columns:
            self._rows = self._rows.selected(batch_rows.tolist())
            self._ids.select(batch_rows)

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
            if isinstance(value, SwarmCache):
                return value.compute(hidden_states)
        raise UsageError("the blocks were called without their model", hint="Call the model, not its forward.")


class _TokenHistory:
    """The token ids that were computed, appended per forward and joined only when somebody looks."""

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []

    def append(self, input_ids: torch.Tensor | None, hidden: torch.Tensor) -> None:
        self._parts.append(torch.full(hidden.shape[:2], -1) if input_ids is None else input_ids)

    def joined(self) -> torch.Tensor:
        if len(self._parts) > 1:
            self._parts = [torch.cat([part.cpu() for part in self._parts], dim=1)]
        return self._parts[0] if self._parts else torch.empty((0, 0), dtype=torch.long)

    def crop(self, columns: int) -> None:
        self._parts = [self.joined()[:, :columns]] if columns else []

    def select(self, batch_rows: torch.Tensor) -> None:
        self._parts = [self.joined()[batch_rows.cpu()]]


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


def _bytes_of_rows(tensor: torch.Tensor) -> list[bytes]:
    """Each row's content, comparable; as bytes, because numpy has no bfloat16."""
    rows = tensor.detach().cpu().contiguous().view(len(tensor), -1).view(torch.uint8).numpy()
    return [row.tobytes() for row in rows]


def _pack(hidden: torch.Tensor, step: BatchStep) -> torch.Tensor:
    """(B, T, H) -> (plan.tokens, H): the tokens of each sender, which are in its last columns."""
    assert step.plan is not None
    batch, count, size = hidden.shape
    hidden = hidden.detach()
    if step.plan.tokens == len(step.senders) * count:  # nothing of it is padding
        every = len(step.senders) == batch
        return (hidden if every else hidden[list(step.senders)]).reshape(-1, size)
    rows = zip(step.senders, step.plan.rows, strict=True)
    return torch.cat([hidden[sender, count - piece.count :] for sender, piece in rows])


def _unpack(answers: torch.Tensor, step: BatchStep, hidden: torch.Tensor) -> torch.Tensor:
    """(plan.answers, H) -> (B, T, H): each batch row gets its row's answers in its last columns."""
    assert step.plan is not None
    batch, count, size = hidden.shape
    rows = len(step.senders)
    assert answers.shape == (step.plan.answers, size), (answers.shape, step.plan.answers)
    if step.plan.answers == rows * count:  # everything is wanted
        answers = answers.view(rows, count, size)
        return answers if rows == batch else answers[list(step.receivers)]
    parts = answers.split([piece.answers for piece in step.plan.rows])
    output = torch.zeros_like(hidden)
    for row, receiver in enumerate(step.receivers):
        part = parts[receiver]
        output[row, count - part.shape[0] :] = part
    return output
