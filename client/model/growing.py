"""A cache that may be passed to the model again: it begins a new, larger session when it outgrows its own.

`generate` knows how long a text may become and reserves that.  A direct forward does not: it is a session of one step.
Loops that pass a returned cache back (guidance, an assistant that is the model itself, the caller's own) continue it.
So this cache keeps the inputs of the blocks for as long as it lives, and computes them again in a new session when the
previous one has ended or is full.  The room doubles each time, so the tokens computed again are at most about as many
as those of the text.
"""

from __future__ import annotations

import torch

from ...proto.wire.steps import RowTable
from .batch.history import History
from .batch.packing import ForwardInputs
from .batch.steps import BatchRows, BatchStep
from .remote import SessionFactory, SwarmCache


class GrowingCache(SwarmCache):
    """A cache whose first session has room for `max_tokens` tokens in `max_rows` rows; later ones have more.

    With `briefly` the first session ends after its first step. `later_tokens` is the least room of later sessions. The
    cache stays usable after `release`.
    """

    def __init__(
        self,
        factory: SessionFactory,
        max_tokens: int,
        max_rows: int,
        *,
        briefly: bool = False,
        later_tokens: int = 0,
        wanted: bool = True,
    ) -> None:
        """See `SwarmCache` for `wanted`."""
        super().__init__(factory, max_tokens, max_rows)
        self.wanted = wanted
        self._briefly = briefly
        self._later_tokens = later_tokens
        self._hidden = History()
        self._histories.append(self._hidden)

    def check_room(self, rows: int, longest: int) -> None:
        self.check_usable()
        self._later_tokens = max(self._later_tokens, rows * longest)

    def release(self) -> None:
        self._end_session()

    def compute(self, hidden: torch.Tensor) -> torch.Tensor:
        count = hidden.shape[1]
        inputs = self._expected()
        step = self._plan(inputs, hidden)
        if step.plan is None:
            output = torch.zeros_like(hidden)
        elif self._in_session() and self._fits(step.after.table):
            output = self._run(step, hidden, inputs)
        else:
            everything = torch.cat([self._hidden.joined().to(hidden), hidden], dim=1) if self.columns else hidden
            step = self._from_the_beginning(inputs, everything, count)
            self._make_room(step.after.table)
            output = self._run(step, everything, inputs)[:, -count:]
        self._advance(step, inputs, hidden)
        self._hidden.append(hidden.detach())
        if self._briefly:
            self._briefly = False
            self._end_session()
        return output

    def _from_the_beginning(self, inputs: ForwardInputs, everything: torch.Tensor, count: int) -> BatchStep:
        """Return the step that computes all columns in a new session and answers the last `count` of them."""
        ids = inputs.input_ids
        if ids is not None and self.columns:
            ids = torch.cat([self.input_ids(), ids.cpu()], dim=1)
        rows, self._rows = self._rows, BatchRows()
        try:
            return self._plan(ForwardInputs(ids, inputs.attention_mask, None, inputs.answers or count), everything)
        finally:
            self._rows = rows

    def _in_session(self) -> bool:
        """Whether the session holds everything that was computed so far."""
        return self._runner is not None or not self._rows.table.lengths

    def _make_room(self, table: RowTable) -> None:
        """End the session, so that the next step begins one with room for `table`."""
        begun = bool(self._rows.table.lengths)
        self._end_session()
        if begun:
            self.max_tokens = max(self.max_tokens, self._later_tokens, 2 * table.tokens)
            self.max_rows = max(self.max_rows, len(table.lengths))
