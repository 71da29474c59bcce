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

    `tokens` is the text: prompts and what was generated, one row per sequence.  `session.generate(new_ids, ...)`
    appends new tokens and continues; inside `with session:` `model.generate(all_ids, ...)` does the same with the
    whole text given.  Either way the peers compute only what follows the longest beginning that they hold already:
    `rewind` is free, nothing has to be repaired after an edited text, beam search or a failed call, and the result is
    that of a new session, only sooner.

    The rows of a batch are texts of their own length: what is padding, also behind a row that ended before the others,
    is not computed, and every row is continued as it would be alone.

    A session is one text: a call from another thread while one computes is refused. Threads that each want a text open
    a session each; one that is entered with `with` is that of its thread, or task, alone.
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
        self._computing = threading.RLock()
        self.thread: int | None = None
        """The thread whose `with` block this is."""

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
        with self._alone():
            self._rewind(position)

    def _rewind(self, position: int) -> None:
        if not 0 <= position <= self.position:
            raise UsageError(f"the text has {self.position} tokens, it cannot be rewound to {position}")
        self.tokens, self._mask = self.tokens[:, :position], self._mask[:, :position]

    def generate(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Append `input_ids` (rows, new tokens) to the text and continue it; further arguments as for `generate`.

        Without `input_ids` the text is continued as it is; one without any token begins as transformers begins it. The
        rows may have padding anywhere: without a mask it is found as transformers finds it. Returns what generate
        returns for the whole text.
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
        """As the model's generate with the whole text (rows, position), which becomes the session's text."""
        generation = Generation()
        output = self.continue_text(generation, *args, **kwargs)
        return (output, generation) if return_report else output

    def continue_text(
        self, generation: Generation, inputs: torch.Tensor | None = None, /, *args: Any, **kwargs: Any
    ) -> Any:
        """`generate_full` as the call that `generation` stands for."""
        with self._alone():
            return self._continue(generation, inputs, *args, **kwargs)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads away from the text. Raises UsageError in theirs."""
        if not self._computing.acquire(blocking=False):
            raise UsageError(
                "another thread uses this session, which is one text",
                hint="Wait until its call has ended, or open a session in each thread: model.session(...).",
            )
        try:
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
        try:
            result = self.model.generate_as(generation, text, *args, **kwargs)
        finally:
            self._release_lost()
        return self._grown(result, input_ids, mask, text.shape[1], generation)

    def _grown(
        self, result: Any, input_ids: torch.Tensor, mask: torch.Tensor, width: int, generation: Generation
    ) -> Any:
        """Take over what was generated behind `width` columns; the text before it stays as it was given."""
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
        """The mask of a whole text: the session's own as far as it is the session's text."""
        mask = self._inferred_mask(input_ids, settings)
        if len(input_ids) == len(self.tokens):
            width = min(self.position, input_ids.shape[1])
            same = (self.tokens[:, :width].to(input_ids.device) == input_ids[:, :width]).all(dim=0)
            known = int(same.int().cumprod(dim=0).sum())
            mask[:, :known] = self._mask[:, :known].to(mask.device, mask.dtype)
        return mask

    def _inferred_mask(self, input_ids: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
        """The mask that transformers infers from ids of padding. Its methods are private: a test guards them."""
        config = self._settings(settings)
        self.model._prepare_special_tokens(config, True, device=input_ids.device, batch_size=len(input_ids))
        mask: torch.Tensor = self.model._prepare_attention_mask_for_generation(input_ids, config, {})
        return mask

    def _beginning(self, settings: dict[str, Any]) -> torch.Tensor:
        """The token with which transformers begins a text of which nothing is given. Raises UsageError."""
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
        """Free the room at the peers if a call failed or was cancelled; the text stays."""
        if self._cache is not None and not self._cache.usable:
            self._cache.close()
            self._cache = None


def entered_session(model: SwarmModel) -> TextSession | None:
    """The innermost session of `model` whose `with` block is running in this thread or task.

    Warns where there is none here and another thread is in such a block: a thread that was started there may be
    expected to use its session.
    """
    own = next((session for session in reversed(_entered.get()) if session.model is model), None)
    elsewhere = _open_blocks.get(model)
    if own is None and elsewhere is not None and elsewhere.thread != threading.get_ident():
        warnings.warn(
            "another thread is inside `with model.session(...)`: this call has a text and room of its own, because a"
            " session belongs to the thread that entered it (session.generate uses it from any thread)",
            stacklevel=4,
        )
    return own
