"""The model a person uses: the family's own class and transformers' own `generate`, with the blocks in the swarm.

    model = AutoSwarmModelForCausalLM.from_pretrained("org/model", initial_peers=[...])
    model.generate(**tokenizer("A cat sat", return_tensors="pt"), max_new_tokens=50)

    with model.session(max_length=2048) as session:        # the peers keep the attention cache between the calls
        session.generate(**tokenizer("A cat sat", return_tensors="pt"), max_new_tokens=50)
        session.generate(tokenizer(" and then", return_tensors="pt").input_ids, max_new_tokens=50)
        session.rewind(20)

    async for token_id in model.astream(**inputs, max_new_tokens=50): ...

What is on this machine is the embedding, the final norm and the head.  `generate` is not reimplemented: this module
gives it a cache (`remote.py`), closes the session behind it, and refuses what cannot be done through a swarm.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer

from ...proto.errors import UsageError
from ...proto.model.checkpoint import Checkpoint, open_checkpoint
from ...proto.model.family import ends_class, load_model
from .remote import ForwardInputs, RemoteBlocks, SessionFactory, SwarmCache

if TYPE_CHECKING:
    from ...proto.directory.records import SwarmKey

_STREAM_END_SECONDS = 10.0
"""How long a cancelled stream waits for its thread, which has nothing left to do but to unwind."""


class AutoSwarmModelForCausalLM:
    """Makes models whose blocks are in a swarm; like transformers' Auto classes it has no instances."""

    @staticmethod
    def from_pretrained(
        model_name_or_path: str | Path,
        *,
        initial_peers: Sequence[str],
        swarm_key: str | Path | SwarmKey | None = None,
        dtype: torch.dtype = torch.float32,
        wire_format: str | None = None,
        revision: str | None = None,
        **connect_options: Any,
    ) -> Any:
        """The model of a local folder or a hub's "owner/name", computed by the swarm that `initial_peers` belong to.

        Reads, and from a hub fetches, only the tensors outside the blocks. `dtype` is that of this machine's part.
        The other options are those of `blockswarm.client.connect.connect`. Raises SwarmError.
        """
        from ..connect import connect  # brings grpc and the directory

        checkpoint = open_checkpoint(model_name_or_path, revision=revision)
        model = load_ends(checkpoint, dtype)
        factory = connect(
            checkpoint=checkpoint,
            initial_peers=initial_peers,
            swarm_key=swarm_key,
            wire_format=wire_format,
            **connect_options,
        )
        return attach(model, factory)


def load_ends(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model without its blocks, not connected to a swarm yet: see `attach`.

    Raises UnsupportedModel, ModelMismatch, and what reading the checkpoint raises.
    """
    model = load_model(swarm_class(checkpoint.config), checkpoint.config, checkpoint.ends_state(), dtype)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    return prepare(model)


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Make an instance of `swarm_class` that has its weights ready for use."""
    model.requires_grad_(False)
    # MPT's configurations say False; without a cache every token would send the whole text again.
    model.config.use_cache = True
    model.generation_config.use_cache = True
    return model.eval()


def attach(model: PreTrainedModel, factory: SessionFactory) -> Any:
    """Connect a model made by `load_ends` to a swarm; returns the model."""
    assert isinstance(model, SwarmGeneration)
    model.session_factory = factory
    return model


def swarm_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The family's class with the swarm in the place of its blocks. Raises UnsupportedModel."""
    ends = ends_class(config, RemoteBlocks)
    # transformers looks families up by the name and the module of the class.
    attributes = {
        "__module__": ends.__module__,
        "__qualname__": ends.__qualname__,
        "prepare_inputs_for_generation": _without_held_inputs(ends.prepare_inputs_for_generation),
    }
    combined: Any = type(ends.__name__, (SwarmGeneration, ends), attributes)
    return combined  # type: ignore[no-any-return]


def _without_held_inputs(family_method: Callable[..., Any]) -> Callable[..., Any]:
    """The family's way to make a forward's inputs; assisted generation forgets to leave out what a cache holds already.

    `generate` looks at the family's signature, so it is kept.
    """

    @functools.wraps(family_method)
    def prepare_inputs(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        call = _call.get()
        if call is not None and call.assisted and kwargs.get("is_first_iteration"):
            kwargs["next_sequence_length"] = input_ids.shape[1] - kwargs["past_key_values"].columns
        return family_method(self, input_ids, *args, **kwargs)

    return prepare_inputs


@dataclass(eq=False)
class _Call:
    """One call of `generate`: the session it belongs to, or the caches that it opened itself."""

    session: Session | None
    cancellation: _Cancellation | None
    caches: list[SwarmCache] = field(default_factory=list)
    assisted: bool = False

    def close(self) -> None:
        for cache in self.caches:
            cache.close()
        if self.session is not None:
            self.session.release_lost()


class _Cancellation:
    """Stops a call of `generate` from another thread: its pending step fails, and it stops before the next one."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._lock = threading.Lock()
        self._caches: list[SwarmCache] = []

    def add(self, cache: SwarmCache) -> None:
        with self._lock:
            self._caches.append(cache)
            requested = self.requested.is_set()
        if requested:
            cache.abort()

    def request(self) -> None:
        with self._lock:
            self.requested.set()
            caches = list(self._caches)
        for cache in caches:
            cache.abort()


_call: contextvars.ContextVar[_Call | None] = contextvars.ContextVar("blockswarm_call", default=None)
_sessions: contextvars.ContextVar[tuple[Session, ...]] = contextvars.ContextVar("blockswarm_sessions", default=())


_Family: Any = object  # what it is mixed into is a PreTrainedModel


class SwarmGeneration(_Family):
    """Mixed into the family's class, in front of it.

    `generate` is transformers' own; inside `with model.session(...)` it computes only what the session does not hold.
    """

    session_factory: SessionFactory | None = None

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.register_forward_pre_hook(_before_forward, with_kwargs=True)
        self._forward_signature = inspect.signature(self.forward)

    @functools.wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        session = next((session for session in reversed(_sessions.get()) if session.model is self), None)
        if session is not None and kwargs.get("past_key_values") is None:
            return session.generate_full(*args, **kwargs)
        return self._generate(_Call(None, _inherited_cancellation()), args, kwargs)

    def _generate(self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        token = _call.set(call)
        try:
            return super().generate(*args, **kwargs)
        finally:
            _call.reset(token)
            call.close()

    def session(self, max_length: int, max_rows: int = 1) -> Session:
        """Room at the peers for `max_rows` sequences of `max_length` tokens, prompt included; see `Session`."""
        return Session(self, max_length, max_rows)

    async def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[int]:
        """Generate one sequence and yield its new token ids one by one; arguments as for `generate`.

        Leaving the iteration early (break and aclose, or cancelling the task) fails the pending step and closes the
        session at once. Raises what generate raises.
        """
        loop = asyncio.get_running_loop()
        stream: asyncio.Queue[int | _StreamEnd] = asyncio.Queue()
        cancellation = _Cancellation()
        kwargs["streamer"] = _TokenStreamer(lambda token: loop.call_soon_threadsafe(stream.put_nowait, token))
        criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
        kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, _StopOn(cancellation.requested)])
        finished = asyncio.Event()

        def work() -> None:
            error: BaseException | None = None
            _call.set(_Call(None, cancellation))  # in this thread's own context
            try:
                self.generate(*args, **kwargs)
            except BaseException as raised:
                error = raised
            loop.call_soon_threadsafe(stream.put_nowait, _StreamEnd(error))
            loop.call_soon_threadsafe(finished.set)

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name="blockswarm-stream", daemon=True).start()
        try:
            while not isinstance(item := await stream.get(), _StreamEnd):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            if not finished.is_set():
                cancellation.request()
                # A thread that is late still frees the session when what it waits for returns.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(finished.wait(), _STREAM_END_SECONDS)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Give `generate` a cache with room for rows x beams. Private to transformers: a test guards it."""
        generation_config.use_cache = True
        generation_config.cache_implementation = None
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        rows = batch_size * copies
        # Prompt look-up does not cap its guesses at the maximum length.
        longest = max_cache_length + 1 + (generation_config.prompt_lookup_num_tokens or 0)
        cache = model_kwargs.get("past_key_values")
        call = _call.get()
        if cache is None:
            assert call is not None, "generate is called through SwarmGeneration.generate"
            cache = model_kwargs["past_key_values"] = SwarmCache(self.connected(), rows * longest, rows)
            call.caches.append(cache)
        elif not isinstance(cache, SwarmCache):
            raise _foreign_cache(cache)
        else:
            _check_room(cache, rows, longest)
            cache.batch_repeat_interleave(copies)
        if call is not None:
            call.assisted = generation_mode == GenerationMode.ASSISTED_GENERATION
            if call.cancellation is not None:
                call.cancellation.add(cache)

    def connected(self) -> SessionFactory:
        """The swarm that computes the blocks. Raises UsageError if there is none."""
        if self.session_factory is None:
            raise UsageError("the model is not connected to a swarm", hint="Use from_pretrained with initial_peers.")
        return self.session_factory


class Session:
    """A text that grows over several calls of `generate`, with its attention cache kept at the peers.

    `tokens` is the text: prompts and what was generated, one row per sequence.  `session.generate(new_ids, ...)`
    appends new tokens and continues; inside `with session:` `model.generate(all_ids, ...)` does the same with the
    whole text given.  Either way the peers compute only what follows the longest beginning that they hold already:
    `rewind` is free, nothing has to be repaired after an edited text, beam search or a failed call, and the result is
    that of a new session, only sooner.  Batches keep the padding of the first call.
    """

    def __init__(self, model: SwarmGeneration, max_length: int, max_rows: int) -> None:
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
        self._entered: list[contextvars.Token[tuple[Session, ...]]] = []

    @property
    def position(self) -> int:
        """Length of the text in tokens, padding included."""
        return self.tokens.shape[1]

    @property
    def cache(self) -> SwarmCache:
        """For a forward of one's own: `model(ids, past_key_values=session.cache)`. A new one after a failure."""
        if self._closed:
            raise UsageError("the session is closed", hint="Open another one with model.session(...).")
        self.release_lost()
        if self._cache is None:
            self._cache = SwarmCache(self.model.connected(), self.max_rows * self.max_length, self.max_rows)
        return self._cache

    def release_lost(self) -> None:
        """Free the room at the peers if a call failed or was cancelled; the text stays."""
        if self._cache is not None and not self._cache.usable:
            self._cache.close()
            self._cache = None

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

    def generate_full(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the model's generate with the whole text (rows, position), which becomes the session's text."""
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None or input_ids.dim() != 2 or not input_ids.shape[1]:
            raise UsageError("a session needs a text of at least one token: pass input_ids")
        mask = kwargs.pop("attention_mask", None)
        mask = torch.ones_like(input_ids) if mask is None else mask
        cache = self.cache
        _keep_common_beginning(cache, input_ids, mask)
        call = _Call(self, _inherited_cancellation())
        kwargs |= {"attention_mask": mask, "past_key_values": cache}
        result = self.model._generate(call, (input_ids, *args), kwargs)
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

    def __enter__(self) -> Session:
        self._entered.append(_sessions.set((*_sessions.get(), self)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        _sessions.reset(self._entered.pop())
        self.close()


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


def _check_room(cache: SwarmCache, rows: int, longest: int) -> None:
    """Better refused now than in the middle of a text. Raises UsageError, and SessionLost if the session is gone."""
    cache.check_usable()
    if rows * longest > cache.max_tokens or rows > cache.max_rows:
        raise UsageError(
            f"up to {longest} tokens in {rows} rows do not fit into a session for {cache.max_tokens} tokens in "
            f"{cache.max_rows} rows",
            hint="Open the session with a larger max_length or max_rows, or generate fewer tokens.",
        )


def _before_forward(
    model: SwarmGeneration, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Refuse what a swarm cannot do, and tell the cache what the remote blocks will not see. Raises UsageError."""
    if args:
        kwargs = model._forward_signature.bind_partial(*args).arguments | kwargs
    if model.training:
        raise UsageError("a swarm does not train", hint="Call model.eval().")
    for wish in ("output_hidden_states", "output_attentions"):
        if kwargs.get(wish) or getattr(model.config, wish, False):
            raise UsageError(f"{wish} is not possible: the blocks are at the peers")
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if (ids is None) == (embeds is None):
        raise UsageError("exactly one of input_ids and inputs_embeds is needed")
    batch, count = (embeds if ids is None else ids).shape[:2]  # type: ignore[union-attr]
    cache = kwargs.get("past_key_values")
    if cache is None:
        cache = SwarmCache(model.connected(), batch * count, batch, single_use=True)
    elif not isinstance(cache, SwarmCache):
        raise _foreign_cache(cache)
    keep = kwargs.get("logits_to_keep", 0)
    mask = kwargs.get("attention_mask")
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        raise UsageError("the attention mask must have two dimensions: one number per token")
    cache.expect(ForwardInputs(ids, mask, kwargs.get("position_ids"), keep if isinstance(keep, int) else 0))
    return (), kwargs | {"past_key_values": cache, "use_cache": True}


def _inherited_cancellation() -> _Cancellation | None:
    call = _call.get()
    return None if call is None else call.cancellation


def _foreign_cache(cache: object) -> UsageError:
    return UsageError(
        f"a cache of type {type(cache).__name__} cannot be used: keys and values are at the peers",
        hint="Use `with model.session(...)`.",
    )


@dataclass(frozen=True)
class _StreamEnd:
    error: BaseException | None


class _TokenStreamer(BaseStreamer):
    """Passes new tokens on; the first thing that generate puts is the prompt."""

    def __init__(self, emit: Callable[[int], object]) -> None:
        self._emit = emit
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if len(value.shape) > 1 and value.shape[0] > 1:
            raise UsageError("astream generates one sequence at a time")
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._emit(token)
        self._prompt_seen = True

    def end(self) -> None:
        """The end is announced by the thread, together with an error if there is one."""


class _StopOn(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)
