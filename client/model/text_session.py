"""A text that grows over several calls of `generate`, while the peers keep its attention cache."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

import torch

from ...proto.errors import UsageError
from .generation import Generation
from .remote import SwarmCache

if TYPE_CHECKING:
    from .model import SwarmModel

_entered: contextvars.ContextVar[tuple[TextSession, ...]] = contextvars.ContextVar("blockswarm_sessions", default=())
"""The sessions whose `with` block is running, the innermost last."""


class TextSession:
    """A text that grows over several calls of `generate`, with its attention cache kept at the peers.

    `tokens` is the text: prompts and what was generated, one row per sequence.  `session.generate(new_ids, ...)`
    appends new tokens and continues; inside `with session:` `model.generate(all_ids, ...)` does the same with the
    whole text given.  Either way the peers compute only what follows the longest beginning that they hold already:
    `rewind` is free, nothing has to be repaired after an edited text, beam search or a failed call, and the result is
    that of a new session, only sooner.  Batches keep the padding of the first call.
    """

    def __init__(self, model: SwarmModel, max_length: int, max_rows: int) -> None:
        """Reserve `max_rows` rows of `max_length` tokens on every peer of the chain."""
        if max_length < 1 or max_rows < 1:
            raise UsageError(f"a session has at least one row and one token, not {max_rows} rows of {max_length}")
        self.model = model
        self.max_length = max_length
        self.max_rows = max_rows
        self.tokens = torch.empty((0, 0), dtype=torch.long)
        """(rows, position): the text so far, padding included."""
        self._mask = torch.empty((0, 0), dtype=torch.long)
        self._cache: SwarmCache | None = None
        self._closed = False
        self._outer: list[contextvars.Token[tuple[TextSession, ...]]] = []

    @property
    def position(self) -> int:
        """Length of the text in tokens, padding included."""
        return self.tokens.shape[1]

    @property
    def cache(self) -> SwarmCache:
        """The cache for a direct forward: `model(ids, past_key_values=session.cache)`. A new one after a failure."""
        if self._closed:
            raise UsageError("the session is closed", hint="Open another one with model.session(...).")
        self._release_lost()
        if self._cache is None:
            self._cache = SwarmCache(self.model.connected(), self.max_rows * self.max_length, self.max_rows)
        return self._cache

    def rewind(self, position: int) -> None:
        """Forget the text from `position` on. Raises UsageError if the text is shorter."""
        if not 0 <= position <= self.position:
            raise UsageError(f"the text has {self.position} tokens, it cannot be rewound to {position}")
        self.tokens, self._mask = self.tokens[:, :position], self._mask[:, :position]

    def generate(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Append `input_ids` (rows, new tokens) to the text and continue it; further arguments as for `generate`.

        Without `input_ids` the text is continued as it is. Returns what generate returns for the whole text.
        """
        if input_ids is None:
            input_ids = self.tokens[:, :0]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.position:
            if len(input_ids) != len(self.tokens):
                raise UsageError(f"the session has {len(self.tokens)} rows, these are {len(input_ids)}")
            input_ids = torch.cat([self.tokens.to(input_ids.device), input_ids], dim=1)
            attention_mask = torch.cat([self._mask.to(attention_mask.device), attention_mask], dim=1)
        return self.generate_full(input_ids, attention_mask=attention_mask, **kwargs)

    def generate_full(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's generate with the whole text (rows, position), which becomes the session's text."""
        return self.continue_text(Generation(), *args, **kwargs)

    def continue_text(
        self, generation: Generation, inputs: torch.Tensor | None = None, /, *args: Any, **kwargs: Any
    ) -> Any:
        """`generate_full` as the call that `generation` stands for."""
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None or input_ids.dim() != 2 or not input_ids.shape[1]:
            raise UsageError("a session needs a text of at least one token: pass input_ids")
        mask = kwargs.pop("attention_mask", None)
        mask = torch.ones_like(input_ids) if mask is None else mask
        cache = self.cache
        _keep_common_beginning(cache, input_ids, mask)
        kwargs |= {"attention_mask": mask, "past_key_values": cache}
        try:
            result = self.model.generate_as(generation, input_ids, *args, **kwargs)
        finally:
            self._release_lost()
        self.tokens = result if isinstance(result, torch.Tensor) else result.sequences
        copies = len(self.tokens) // len(mask)
        grown = mask.new_ones((len(mask), self.position - mask.shape[1]))
        self._mask = torch.cat([mask, grown], dim=1).repeat_interleave(copies, dim=0)
        return result

    def close(self) -> None:
        """Free the room at the peers. Idempotent."""
        self._closed = True
        if self._cache is not None:
            self._cache.close()

    def __enter__(self) -> TextSession:
        self._outer.append(_entered.set((*_entered.get(), self)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        _entered.reset(self._outer.pop())
        self.close()

    def _release_lost(self) -> None:
        """Free the room at the peers if a call failed or was cancelled; the text stays."""
        if self._cache is not None and not self._cache.usable:
            self._cache.close()
            self._cache = None


def entered_session(model: SwarmModel) -> TextSession | None:
    """The innermost session of `model` whose `with` block is running in this thread or task."""
    return next((session for session in reversed(_entered.get()) if session.model is model), None)


def _keep_common_beginning(cache: SwarmCache, input_ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Crop and select the cache to the columns that `input_ids` (B, S) begins with; at least one is left to compute."""
    held = cache.input_ids()
    width = min(held.shape[1], input_ids.shape[1] - 1)
    leading = (mask != 0).int().argmax(dim=1).tolist()
    rows, kept = [], width
    for ids, padding in zip(input_ids.cpu(), leading, strict=True):
        same = (held[:, :width] == ids[:width]) | (torch.arange(width) < padding)
        same &= (torch.tensor(cache.paddings).clamp(max=width) == min(padding, width))[:, None]
        lengths = same.int().cumprod(dim=1).sum(dim=1)
        best = int(lengths.argmax()) if len(lengths) else 0
        rows.append(best)
        kept = min(kept, int(lengths[best]) if len(lengths) else 0)
    cache.crop(kept - cache.columns)
    if kept:
        cache.batch_select_indices(torch.tensor(rows))
