"""Refuses features of transformers and torch that do not work, or work wrongly, on a model without its blocks."""

from __future__ import annotations

from typing import Any, NoReturn

from ...proto.errors import UsageError


def refuse_unknown_tokens(ids: Any, vocabulary: int) -> None:
    """Raise UsageError if the tensor `ids` has an id outside the embedding of `vocabulary` rows."""
    if not ids.numel():
        return
    low, high = (int(end) for end in ids.aminmax())
    if low < 0 or high >= vocabulary:
        raise UsageError(
            f"token {low if low < 0 else high} is not in the model's vocabulary of {vocabulary}",
            hint="Use the tokenizer of this model.",
        )


def refuse_long_texts(tokens: int, limit: int | None) -> None:
    """Raise UsageError if a text of `tokens` tokens exceeds the model's `limit` of positions; None: no limit."""
    if limit is not None and tokens > limit:
        raise UsageError(
            f"the model has {limit} positions, {tokens} tokens are asked",
            hint="Shorten the text, or ask for fewer new tokens.",
        )


class NotCopied:
    """A mix-in for objects that hold a connection of this process: they refuse to be copied or pickled."""

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise self._not_copied()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise self._not_copied()

    def _not_copied(self) -> UsageError:
        return UsageError(
            f"a {type(self).__name__} of a swarm cannot be copied or pickled: it is tied to this process's connections",
            hint="Share it between threads; in another process call from_pretrained there.",
        )


class WithoutBlocks(NotCopied):
    """A mix-in for a model whose blocks are at the peers: it refuses what needs them here."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise UsageError(
            "this model cannot be saved: its blocks are at the peers, and would be missing",
            hint="Use the checkpoint that it was loaded from.",
        )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.save_pretrained()

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise UsageError(
            "transformers' continuous batching (generate_batch) is not possible: the attention caches are at the peers",
            hint="Call generate with a padded batch, or from several threads: the peers compute them together.",
        )

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.init_continuous_batching()

    def compile(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise UsageError(
            "a model of a swarm cannot be compiled: its blocks are at the peers, and the rest is not worth it",
            hint="Call it as it is.",
        )

    @property
    def _initialize_hook(self) -> NoReturn:
        """Refuse torch.compile(model), which alone looks for this attribute. A test guards it."""
        self.compile()
