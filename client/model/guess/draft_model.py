"""A small local model that guesses: one thread of its own runs it ahead of all texts.

The thread feeds the new tokens of a text and then, token by token, the likeliest next one.  A text that continues as
guessed is not computed again; where it differs, the model's cache is cropped to that point.  The thread works only on
texts that want guesses, one token for each in turn, and ends when none does.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from ....proto.errors import UsageError
from .drafter import Guess
from .panel import CannotGuessError, others_code

logger = logging.getLogger(__name__)

MOST_TOKENS = 32
"""The most guesses that are made beyond those already sent."""
LEAST_REACH = 0.05
"""Stop guessing when the joint probability of a text's guesses falls below this."""
CHUNK_TOKENS = 256
"""The most tokens of a text that are fed at a time."""
_KINDS = (0.97, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.0)
"""Kinds of guesses by the least probability that the model gives them."""


class DraftModel:
    """A model that guesses for any number of texts at once."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises UsageError for a model whose cache cannot be cropped, as it must be after a wrong guess."""
        self.model = model.eval()
        if not self.new_cache().is_croppable:
            raise UsageError(
                f"a {model.config.model_type} model cannot draft: what it has read cannot be taken back",
                hint="Choose a draft model with full attention in all blocks.",
            )
        self._wanted: deque[weakref.ref[ModelDrafter]] = deque()
        """Weak, so that the thread stops reading a text that has ended."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def drafter(self) -> ModelDrafter:
        """Return a drafter for a new text."""
        return ModelDrafter(self)

    def new_cache(self) -> Any:
        return DynamicCache(config=self.model.config)

    def want(self, drafter: ModelDrafter) -> None:
        """Queue a text for the thread, which is started if it does not run."""
        with self._lock:
            if weakref.ref(drafter) not in self._wanted:
                self._wanted.append(weakref.ref(drafter))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="blockswarm-draft", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:  # the next text that wants guesses starts another thread
                    self._thread = None
                    return
                drafter = self._wanted.popleft()()
            if drafter is not None and drafter.think():
                self.want(drafter)
            del drafter  # do not keep an ended text alive until the next one comes


class ModelDrafter:
    """The guesses of a draft model for one text. Two threads use it: the text's and the model's."""

    name = "draft"

    def __init__(self, model: DraftModel) -> None:
        config = model.model.config.get_text_config(decoder=True)
        self._model = model
        self._vocabulary: int = config.vocab_size
        self._longest: int = getattr(config, "max_position_embeddings", None) or 1 << 30
        self._wake: Callable[[], object] = lambda: None
        self._lock = threading.Lock()  # guards what follows, up to the parts of the model's thread
        self._line: list[int] = []
        """The text, and the guesses after it."""
        self._chances: list[float] = []
        """The probability that the model gave each token of the line; 1 for tokens that it did not guess."""
        self._text = 0
        """The number of tokens of the line that are text."""
        self._known = 0
        """The number of leading tokens of the line that the model can read: known ids in its vocabulary."""
        self._given = 0
        """Up to this index the line has no guesses of this model: they came with the text, or behind it."""
        self._limit = 0
        """Guesses are wanted up to this index of the line."""
        self._cut = 0
        """Up to this index the line is still what the model's thread has read."""
        self._failed = False
        # Used by the model's thread only.
        self._cache: Any = None
        self._cached = 0

    # --- the text's thread ---

    @property
    def thinking(self) -> bool:
        """Whether `draft` will soon return more guesses than now."""
        with self._lock:
            return self._is_wanted()

    def call_when_ready(self, wake: Callable[[], object]) -> None:
        """Call `wake`, in the model's thread, after each new guess."""
        self._wake = wake

    def note(self, start: int, tokens: Sequence[int]) -> None:
        """Record that the text from position `start` on is `tokens`. O(tokens); only `draft` starts guessing."""
        with self._lock:
            stop = start + len(tokens)
            self._replace(min(start, len(self._line)), [-1] * (start - len(self._line)) + list(tokens))
            if stop < self._text:  # the text was cropped: the tokens after it are void
                self._drop(stop)
            self._text = stop
            self._limit = 0

    def draft(self, most: int, behind: Sequence[int]) -> list[Guess]:
        """Return the guesses made so far, and have further ones made. O(behind + most)."""
        with self._lock:
            at = self._text + len(behind)
            if at < self._given:  # guesses of another drafter were given up
                self._drop(at)
            if self._line[self._text : at] != list(behind):
                self._drop(self._text)
                self._replace(self._text, list(behind))
                self._given = at
            self._limit = min(at + min(most, MOST_TOKENS), self._longest)
            wanted = self._is_wanted()
            places = range(at, min(len(self._line), at + most))
            found = [Guess(self._line[place], *_kind_of(self._chances[place])) for place in places]
        if wanted:
            self._model.want(self)
        return found

    def _replace(self, start: int, tokens: Sequence[int]) -> None:
        """Set the line's tokens from `start` on; if they are unchanged, what follows them stays."""
        same = 0
        for token, had in zip(tokens, self._line[start : start + len(tokens)], strict=False):
            if token != had:
                break
            same += 1
        if same == len(tokens):
            return
        self._drop(start + same)
        self._line += tokens[same:]
        self._chances += [1.0] * (len(tokens) - same)
        while self._known < len(self._line) and 0 <= self._line[self._known] < self._vocabulary:
            self._known += 1

    def _drop(self, stop: int) -> None:
        """Remove the tokens of the line from index `stop` on."""
        del self._line[stop:], self._chances[stop:]
        self._known = min(self._known, stop)
        self._given = min(self._given, stop)
        self._cut = min(self._cut, stop)

    def _is_wanted(self) -> bool:
        """Whether one more guess should be made."""
        if self._failed or not self._text or not len(self._line) == self._known < self._limit:
            return False
        reach = 1.0
        for chance in self._chances[self._text :]:
            reach *= chance
        return reach >= LEAST_REACH

    # --- the model's thread ---

    def think(self) -> bool:
        """Read the next chunk of the text, or guess one token; return whether there is more to do."""
        with self._lock:
            if not self._is_wanted():
                return False
            kept = min(self._cached, self._cut, len(self._line) - 1)
            tokens = self._line[kept : kept + CHUNK_TOKENS]
            read = self._cut = kept + len(tokens)
            whole = read == len(self._line)
        try:
            with others_code():
                token, chance = self._next(kept, tokens)
        except CannotGuessError as error:
            logger.warning("the draft model failed and guesses no more for this text", exc_info=error)
            with self._lock:
                self._failed = True
            self._wake()
            return False
        self._cached = read
        with self._lock:
            if whole and self._cut == read == len(self._line):
                self._line.append(token)
                self._chances.append(chance)
                self._known += 0 <= token < self._vocabulary
            wanted = self._is_wanted()
        self._wake()
        return wanted

    @torch.inference_mode()
    def _next(self, kept: int, tokens: Sequence[int]) -> tuple[int, float]:
        """Feed `tokens` after the first `kept` ones; return the likeliest next token and its probability."""
        model = self._model.model
        if self._cache is None or kept == 0:
            self._cache = self._model.new_cache()
        elif kept < self._cached:
            self._cache.crop(kept - self._cached)
        ids = torch.tensor([list(tokens)], device=model.device)
        output = model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        chances = output.logits[0, -1].float().softmax(dim=-1)
        chance, token = chances.max(dim=-1)
        if not math.isfinite(chance):
            raise CannotGuessError("it computes numbers that are not finite")
        return int(token), float(chance)


def _kind_of(chance: float) -> tuple[str, float]:
    least = next(least for least in _KINDS if chance >= least)
    return f"{least:.0%}", chance
