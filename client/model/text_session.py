"""A text that grows over several calls of `generate`, while the peers keep its attention cache."""

from __future__ import annotations

import contextvars
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ...proto.errors import UsageError
from .batch.padding import padded_left, refuse_empty_rows
from .generation import Generation
from .refusals import NotCopied
from .remote import SwarmCache

if TYPE_CHECKING:
    from .model import SwarmModel

_entered: contextvars.ContextVar[tuple[TextSession, ...]] = contextvars.ContextVar("blockswarm_sessions", default=())
"""The sessions whose `with` block is running, the innermost last."""
_open_blocks: weakref.WeakKeyDictionary[Any, TextSession] = weakref.WeakKeyDictionary()
"""By model: the session of the `with` block that was entered last, in any thread."""


class TextSession(NotCopied):
    """A text that grows over several calls of `generate`, with its attention cache kept at the peers.

    `tokens` is the text: prompts and generated tokens, one row per sequence.  `session.generate(new_ids, ...)` appends
    new tokens and continues; inside `with session:` `model.generate(all_ids, ...)` does the same, given the whole text.
    Either way the peers compute only what follows the longest prefix that they hold already: `rewind` is free, edited
    texts, beam search and failed calls need no clean-up, and the result equals that of a new session, only sooner.

    The rows of a batch have their own lengths: padding, also behind a row that ended before the others, is not
    computed, and every row is continued as it would be alone.

    A session is one text: while one call computes, calls from other threads are refused. Threads that need texts of
    their own open a session each; entering a session with `with` affects that thread or task only.
    """

    def __init__(self, model: SwarmModel, max_length: int, max_rows: int) -> None:
        """The first step reserves `max_rows` rows of `max_length` tokens on every peer of the chain."""
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
        self._computing = threading.RLock()
        self._generating = False
        self.thread: int | None = None
        """The thread that entered the `with` block."""

    @property
    def position(self) -> int:
        """Length of the text in tokens, padding included."""
        return self.tokens.shape[1]

    @property
    def cache(self) -> SwarmCache:
        """The cache for a direct forward: `model(ids, past_key_values=session.cache)`; replaced after a failure.

        Raises UsageError while a call of the session computes, because a forward would change that call's text.
        """
        if self._closed:
            raise UsageError("the session is closed", hint="Open another one with model.session(...).")
        with self._alone():
            self._release_lost()
            if self._cache is None:
                self._cache = SwarmCache(self.model.connected(), self.max_rows * self.max_length, self.max_rows)
            return self._cache

    def rewind(self, position: int) -> None:
        """Forget the text from `position` on. Raises UsageError if the text is shorter."""
        with self._alone():
            self._rewind(position)

    def _rewind(self, position: int) -> None:
        if not 0 <= position <= self.position:
            raise UsageError(f"the text has {self.position} tokens, it cannot be rewound to {position}")
        self.tokens, self._mask = self.tokens[:, :position], self._mask[:, :position]

    def generate(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Append `input_ids` (rows, new tokens) to the text and continue it; other arguments as for `generate`.

        Without `input_ids` the text is continued as it is; an empty text begins with the model's BOS token. Rows may
        have padding anywhere; without a mask it is inferred as transformers infers it. Returns what `generate` returns,
        for the whole text.
        """
        with self._alone():
            return self._generate(input_ids, attention_mask, **kwargs)

    def _generate(self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, **kwargs: Any) -> Any:
        if input_ids is None and self.position:
            input_ids = self.tokens[:, :0]
        if self.position and input_ids is not None:
            if len(input_ids) != len(self.tokens):
                raise UsageError(f"the session has {len(self.tokens)} rows, these are {len(input_ids)}")
            mask = self._inferred_mask(input_ids, kwargs) if attention_mask is None else attention_mask
            input_ids = torch.cat([self.tokens.to(input_ids.device), input_ids], dim=1)
            attention_mask = torch.cat([self._mask.to(mask.device, mask.dtype), mask], dim=1)
        return self.generate_full(input_ids, attention_mask=attention_mask, **kwargs)

    def generate_full(self, *args: Any, return_report: bool = False, **kwargs: Any) -> Any:
        """Run the model's `generate` on the whole text (rows, position), which becomes the session's text."""
        generation = Generation()
        output = self.continue_text(generation, *args, **kwargs)
        return (output, generation) if return_report else output

    def continue_text(
        self, generation: Generation, inputs: torch.Tensor | None = None, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Run `generate_full`, recorded in `generation`, which must be new."""
        with self._alone():
            return self._continue(generation, inputs, *args, **kwargs)

    @property
    def generates_here(self) -> bool:
        """Whether a call of this session is running in this thread, so that this is a callback of it."""
        if not self._computing.acquire(blocking=False):
            return False
        try:
            return self._generating
        finally:
            self._computing.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock out other threads, and callbacks of a running call, in which this raises UsageError."""
        if not self._computing.acquire(blocking=False):
            raise UsageError(
                "another thread uses this session, which is one text",
                hint="Wait until its call has ended, or open a session in each thread: model.session(...).",
            )
        try:
            if self._generating:
                raise UsageError(
                    "a call of this session is running, and this is a callback of it",
                    hint="Wait until the call has ended, or use another session: model.session(...).",
                )
            yield
        finally:
            self._computing.release()

    def _continue(self, generation: Generation, inputs: torch.Tensor | None, /, *args: Any, **kwargs: Any) -> Any:
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        settings = kwargs | ({"generation_config": args[0]} if args else {})
        if input_ids is None and kwargs.get("inputs_embeds") is None:
            input_ids = self._beginning(settings)
        if input_ids is None or input_ids.dim() != 2 or not input_ids.numel():
            raise UsageError("a session needs a text of at least one token: pass input_ids")
        mask = kwargs.pop("attention_mask", None)
        mask = self._known_mask(input_ids, settings) if mask is None else mask
        if mask.shape != input_ids.shape:
            raise UsageError(f"the attention mask has shape {tuple(mask.shape)}, the text {tuple(input_ids.shape)}")
        refuse_empty_rows(mask)
        text, visible = padded_left(input_ids, mask)
        cache = self.cache
        cache.keep_beginning(text, visible)
        kwargs |= {"attention_mask": visible, "past_key_values": cache}
        self._generating = True
        try:
            result = self.model.generate_as(generation, text, *args, **kwargs)
        finally:
            self._generating = False
            self._release_lost()
        return self._grown(result, input_ids, mask, text.shape[1], generation)

    def _grown(
        self, result: Any, input_ids: torch.Tensor, mask: torch.Tensor, width: int, generation: Generation
    ) -> Any:
        """Append the tokens generated after the first `width` columns to the text as it was given."""
        sequences = result if isinstance(result, torch.Tensor) else result.sequences
        assert generation.row_ends is not None, "generate asks for the criteria of its end"
        new = generation.row_ends.mask(sequences, width).to(mask.device, mask.dtype)
        copies = len(sequences) // len(input_ids)
        self.tokens = torch.cat([input_ids.repeat_interleave(copies, dim=0), sequences[:, width:]], dim=1)
        self._mask = torch.cat([mask.repeat_interleave(copies, dim=0), new], dim=1)
        if isinstance(result, torch.Tensor):
            return self.tokens
        result.sequences = self.tokens
        return result

    def _known_mask(self, input_ids: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
        """Return the mask of a whole text: the session's own as far as the text is the session's."""
        mask = self._inferred_mask(input_ids, settings)
        if len(input_ids) == len(self.tokens):
            width = min(self.position, input_ids.shape[1])
            same = (self.tokens[:, :width].to(input_ids.device) == input_ids[:, :width]).all(dim=0)
            known = int(same.int().cumprod(dim=0).sum())
            mask[:, :known] = self._mask[:, :known].to(mask.device, mask.dtype)
        return mask

    def _inferred_mask(self, input_ids: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
        """Return the mask that transformers infers from padding ids. Its methods are private: a test guards them."""
        config = self._settings(settings)
        self.model._prepare_special_tokens(config, True, device=input_ids.device, batch_size=len(input_ids))
        mask: torch.Tensor = self.model._prepare_attention_mask_for_generation(input_ids, config, {})
        return mask

    def _beginning(self, settings: dict[str, Any]) -> torch.Tensor:
        """Return the BOS token, (1, 1), with which transformers begins an empty text. Raises UsageError if none."""
        token = self._settings(settings).bos_token_id
        if token is None:
            raise UsageError("the model has no token that begins a text", hint="Pass input_ids.")
        return torch.tensor([[token]])

    def _settings(self, settings: dict[str, Any]) -> Any:
        others = {name: value for name, value in settings.items() if name != "generation_config"}
        return self.model._prepare_generation_config(settings.get("generation_config"), **others)[0]

    def close(self) -> None:
        """Free the room at the peers. Idempotent."""
        self._closed = True
        if self._cache is not None:
            self._cache.close()

    def __enter__(self) -> TextSession:
        self.thread = threading.get_ident()
        _open_blocks[self.model] = self
        self._outer.append(_entered.set((*_entered.get(), self)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        _entered.reset(self._outer.pop())
        if _open_blocks.get(self.model) is self:
            del _open_blocks[self.model]
        self.close()

    def _release_lost(self) -> None:
        """Free the room at the peers after a call that failed or was cancelled; the text stays."""
        if self._cache is not None and not self._cache.usable:
            self._cache.close()
            self._cache = None


def entered_session(model: SwarmModel) -> TextSession | None:
    """Return the innermost session of `model` whose `with` block is running in this thread or task.

    None in a callback of a call of that session, whose text is being computed.
    Warns if there is none here but another thread is inside such a block: callers may expect a thread that was started
    there to use its session.
    """
    own = next((session for session in reversed(_entered.get()) if session.model is model), None)
    elsewhere = _open_blocks.get(model)
    if own is None and elsewhere is not None and elsewhere.thread != threading.get_ident():
        warnings.warn(
            "another thread is inside `with model.session(...)`: this call has a text and room of its own, because a"
            " session belongs to the thread that entered it (session.generate uses it from any thread)",
            stacklevel=4,
        )
    return None if own is not None and own.generates_here else own
