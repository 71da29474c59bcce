"""The model that users call: the family's own class and transformers' own `generate`, with its blocks in the swarm.

    model = AutoSwarmModelForCausalLM.from_pretrained("org/model", initial_peers=[...])
    model.generate(**tokenizer("A cat sat", return_tensors="pt"), max_new_tokens=50)

    with model.session(max_length=2048) as session:        # the peers keep the attention cache between the calls
        session.generate(**tokenizer("A cat sat", return_tensors="pt"), max_new_tokens=50)
        session.generate(tokenizer(" and then", return_tensors="pt").input_ids, max_new_tokens=50)
        session.rewind(20)

    async for token_id in model.astream(**inputs, max_new_tokens=50): ...

    model.last_generation.report                           # where the time of this thread's last call went

This machine holds the embedding, the final norm and the head.  `generate` is not reimplemented: this module gives it a
cache (`remote.py`), closes the session after it, and refuses what cannot be done through a swarm.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from ...proto.errors import UsageError
from ...proto.model.ends import ends_class, position_limit
from ...proto.wire.tensors import dtype_name
from ..quotes import Quote
from .batch.packing import ForwardInputs
from .batch.padding import RowEnds, least_padding, refuse_empty_rows
from .generation import Cancellation, Generation, current_generation, last_generation, note_last
from .growing import GrowingCache
from .guess.drafter import Drafter
from .guess.forwards import GuessedForwards
from .guess.guesser import Guesser
from .guess.panel import KnownKinds, made_by
from .guess.policy import AUTO, OFF, checked_setting
from .guess.suffix import SuffixDrafter
from .refusals import WithoutBlocks, refuse_long_texts, refuse_unknown_tokens
from .remote import RemoteBlocks, SessionFactory, SwarmCache
from .slices import BlockSlices
from .stream import stream_tokens
from .text_session import TextSession, entered_session


def swarm_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the family's class with the swarm in place of its blocks. Raises UnsupportedModel."""
    ends = ends_class(config, RemoteBlocks)
    # transformers looks families up by the name and the module of the class.
    attributes = {
        "__module__": ends.__module__,
        "__qualname__": ends.__qualname__,
        "prepare_inputs_for_generation": _without_held_inputs(ends.prepare_inputs_for_generation),
    }
    combined: Any = type(ends.__name__, (SwarmModel, ends), attributes)
    return combined  # type: ignore[no-any-return]


def _without_held_inputs(family_method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the family's `prepare_inputs_for_generation` so that it leaves out tokens that the cache holds already.

    Assisted generation does not do so itself. The wrapper keeps the family's signature, which `generate` inspects.
    """

    @functools.wraps(family_method)
    def prepare_inputs(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        generation = current_generation()
        if generation is not None and generation.assisted and kwargs.get("is_first_iteration"):
            kwargs["next_sequence_length"] = input_ids.shape[1] - kwargs["past_key_values"].columns
        return family_method(self, input_ids, *args, **kwargs)

    return prepare_inputs


_Family: Any = object  # stands for the PreTrainedModel that SwarmModel is mixed into


class SwarmModel(WithoutBlocks, _Family):
    """A mix-in that comes before the family's class.

    `generate` is transformers' own; inside `with model.session(...)` it computes only what the session does not hold.
    Every call, however made, has a `Generation` with its events and its report; with `return_report=True` `generate`
    returns it beside the output.
    """

    session_factory: SessionFactory | None = None
    guess: str | int = AUTO
    """How many tokens to guess ahead: "auto", "off", or a number per trip. Read when a call begins."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.generation_listeners: list[Callable[[Generation], object]] = []
        """Called with every new generation before its first step, in its thread; an error in one ends the call."""
        self.make_drafters: Callable[[], Sequence[Drafter]] = lambda: [SuffixDrafter()]
        """Makes the drafters of a new session's text: objects that implement `Drafter`."""
        self._known_kinds: KnownKinds = {}
        """How often guesses of each kind were right in the texts so far."""
        signature = inspect.signature(self.forward)

        def before_forward(
            model: SwarmModel, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (), _checked_inputs(model, signature.bind_partial(*args).arguments | kwargs if args else kwargs)

        self.register_forward_pre_hook(before_forward, with_kwargs=True)
        self.register_forward_hook(_without_unwanted_cache, with_kwargs=True)

    @property
    def head_format(self) -> str:
        """The numeric format of the head, by the names that peers use for theirs: "int8" if that was asked for."""
        head: Any = self.get_output_embeddings()
        if head is None:
            return "float32"
        return getattr(head, "numeric_format", None) or dtype_name(head.weight.dtype)

    @functools.wraps(GenerationMixin.generate)
    def generate(self, *args: Any, return_report: bool = False, **kwargs: Any) -> Any:
        generation = Generation()
        output = self.generate_as(generation, *args, **kwargs)
        return (output, generation) if return_report else output

    def generate_as(self, generation: Generation, /, *args: Any, **kwargs: Any) -> Any:
        """Run `generate`, recorded in `generation`, which must be new."""
        self.connected()
        session = entered_session(self) if kwargs.get("past_key_values") is None else None
        if session is not None:
            return session.continue_text(generation, *args, **kwargs)
        with generation.running(self):
            for listener in self.generation_listeners:
                listener(generation)
            return super().generate(*args, **kwargs)

    @property
    def blocks(self) -> BlockSlices:
        """The blocks at the peers, as functions: `model.blocks[3:7](hidden)`, see `BlockSlices`."""
        return BlockSlices(self, self.config.num_hidden_layers)

    @functools.cached_property
    def position_limit(self) -> int | None:
        """The most tokens of a text, prompt and new ones; None: no limit. Found by trial on first use."""
        return position_limit(self.config)

    def quote(self, prompt_tokens: int, new_tokens: int) -> Quote:
        """Predict the wait, the time to the first token and the speed of one text that begins now.

        Chooses a chain as a session would and reserves nothing.  The intervals come from the sessions that have ended
        and are unbounded before there are enough of them.  Raises UsageError, NoChainError, PeerBusy.
        """
        for name, number in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
            if number < 1:
                raise UsageError(f"{name} must be at least 1, not {number}")
        refuse_long_texts(prompt_tokens + new_tokens, self.position_limit)
        return self.connected().quote(prompt_tokens, new_tokens)

    @property
    def last_generation(self) -> Generation | None:
        """The last call of `generate` on this model in this thread or task; other threads do not change it."""
        return last_generation(self)

    def session(self, max_length: int, max_rows: int = 1) -> TextSession:
        """Return a session with room for `max_rows` sequences of `max_length` tokens each, prompt included."""
        return TextSession(self, max_length, max_rows)

    async def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[int]:
        """Generate one sequence and yield its new token ids one by one; arguments as for `generate`.

        Leaving the iteration early (break and aclose, or cancelling the task) fails the pending step and closes the
        session at once. Raises what `generate` raises.
        """
        if "streamer" in kwargs:
            raise UsageError("astream takes no streamer: it is one", hint="Use its tokens, or call generate.")
        cancellation = Cancellation()
        generation = Generation(cancellation)
        note_last(self, generation)
        generate = functools.partial(self.generate_as, generation, *args)
        end_seconds = self.connected().timing.stream_end_seconds
        async with aclosing(stream_tokens(generate, cancellation, kwargs, end_seconds)) as tokens:  # type: ignore[type-var]
            async for token in tokens:
                yield token

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
        # Prompt look-up may guess beyond the maximum length.
        guessed = generation_config.prompt_lookup_num_tokens or 0
        longest, padding = max_cache_length + 1 + guessed, 0
        if (mask := model_kwargs.get("attention_mask")) is not None:
            refuse_empty_rows(mask)
            padding = least_padding(mask)
        refuse_long_texts(max_cache_length + guessed - padding, self.position_limit)
        cache = model_kwargs.get("past_key_values")
        generation = current_generation()
        assert generation is not None, "generate is called through SwarmModel.generate"
        generation.assisted = generation_mode == GenerationMode.ASSISTED_GENERATION
        if cache is None:
            cache = model_kwargs["past_key_values"] = self._new_cache(generation, rows, longest, generation_config)
        elif not isinstance(cache, SwarmCache):
            raise _foreign_cache(cache)
        cache.check_room(rows, longest)
        if isinstance(cache, GrowingCache):
            generation.own(cache)
        cache.batch_repeat_interleave(copies)
        self._guess_ahead(cache, max_cache_length)
        generation.use(cache, longest)

    def _new_cache(self, generation: Generation, rows: int, longest: int, settings: GenerationConfig) -> SwarmCache:
        """Return the cache for a call of `generate`; one that is part of the result may be passed in again."""
        factory, outer = self.connected(), generation.outer
        if outer is not None:  # an assistant's call: the next one continues it, up to the end of the outer text
            cache: SwarmCache = GrowingCache(factory, rows * max(longest, outer.longest), rows)
        elif settings.return_dict_in_generate:
            cache = GrowingCache(factory, rows * longest, rows)
        else:
            cache = SwarmCache(factory, rows * longest, rows)
            generation.own(cache)
        return cache

    def _get_stopping_criteria(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """Record which rows end before others. Private to transformers: a test guards it."""
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        generation = current_generation()
        if generation is None:
            return criteria
        generation.row_ends = RowEnds(criteria, generation_config.num_beams or 1)
        return generation.row_ends

    def _guess_ahead(self, cache: SwarmCache, most_columns: int) -> None:
        """Set up guessing for `cache` as `guess` says; a cache that has guessed before keeps what it has learnt.

        A `GrowingCache` does not guess, because it may begin another session in the middle of a text; its trips are
        counted.
        """
        setting = OFF if isinstance(cache, GrowingCache) else checked_setting(self.guess)
        known = cache.guesses.guesser if cache.guesses is not None else None
        if known is None or known.setting != setting:
            drafters = made_by(self.make_drafters) if setting != OFF else ()
            known = Guesser(setting, drafters, self.connected().timing.guess, self._known_kinds)
        cache.guesses = GuessedForwards(known, self, most_columns)

    def close(self) -> None:
        """Close the connections to the swarm and end running calls; a `with` block does it on exit. Idempotent."""
        if self.session_factory is not None:
            self.session_factory.close()

    def __enter__(self) -> SwarmModel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def connected(self) -> SessionFactory:
        """Return the connection to the swarm. Raises UsageError if there is none, or if it is closed."""
        if self.session_factory is None:
            raise UsageError("the model is not connected to a swarm", hint="Use from_pretrained with initial_peers.")
        self.session_factory.check_open()
        return self.session_factory


def _checked_inputs(model: SwarmModel, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Refuse what a swarm cannot do, and pass the cache the inputs that do not reach the blocks. Raises UsageError."""
    if model.training:
        raise UsageError("a swarm does not train", hint="Call model.eval().")
    for wish in ("output_hidden_states", "output_attentions", "output_router_logits"):
        if kwargs.get(wish) or getattr(model.config, wish, False):
            raise UsageError(f"{wish} is not possible: the blocks are at the peers")
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if (ids is None) == (embeds is None):
        raise UsageError("exactly one of input_ids and inputs_embeds is needed")
    batch, count = (embeds if ids is None else ids).shape[:2]  # type: ignore[union-attr]
    factory = model.connected()
    cache = kwargs.get("past_key_values")
    if cache is None:
        generation = current_generation()
        later = batch * (count + generation.longest) if generation is not None else 0
        wanted = kwargs.get("use_cache") is not False
        cache = GrowingCache(factory, batch * count, batch, briefly=True, later_tokens=later, wanted=wanted)
        if generation is not None:
            generation.own(cache)
    elif not isinstance(cache, SwarmCache):
        raise _foreign_cache(cache)
    keep = kwargs.get("logits_to_keep", 0)
    mask = kwargs.get("attention_mask")
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        raise UsageError("the attention mask must have two dimensions: one number per token")
    if batch * count > 1 or cache.columns == 0:  # a single new token is one that generate has chosen
        if ids is not None:
            refuse_unknown_tokens(ids, model.get_input_embeddings().num_embeddings)
        refuse_long_texts(cache.columns + count - least_padding(mask), model.position_limit)
    cache.expect(ForwardInputs(ids, mask, kwargs.get("position_ids"), keep if isinstance(keep, int) else 0))
    return kwargs | {"past_key_values": cache, "use_cache": True}


def _without_unwanted_cache(model: SwarmModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Remove the cache from the result of a forward that was called with `use_cache=False`."""
    cache = kwargs["past_key_values"]
    if cache.wanted:
        return output
    if isinstance(output, tuple):
        return tuple(value for value in output if value is not cache)
    output.past_key_values = None
    return output


def _foreign_cache(cache: object) -> UsageError:
    return UsageError(
        f"a cache of type {type(cache).__name__} cannot be used: keys and values are at the peers",
        hint="Use `with model.session(...)`.",
    )
