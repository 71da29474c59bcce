"""Why a family cannot be served: the property of its models that prevents it, found by watching a tiny model compute.

Used when no route gives the tokens of the whole model (`selfcheck.py`).  An error inside a family's code says where it
failed; this says why.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from ....proto.model.family import FOREIGN_FAILURES, find_blocks, refused
from ....proto.model.tiny import FIRST_TEXT_TOKEN, random_model

_TOKENS = 6
_SAME = 1e-3
"""Absolute tolerance; logits are about 4, in float32."""


@dataclass(slots=True)
class _Call:
    """A call of a block: copies of everything that it was given, and of what it returned."""

    hidden: Any
    others: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...] = ()


@torch.inference_mode()
def obstacle(tiny: PreTrainedConfig) -> str | None:
    """Return what prevents serving models like `tiny`, as the end of a sentence that begins with their name, or None.

    Raises UnsupportedModel, with the reason, if there is no model to watch or it has no list of blocks.
    """
    try:
        model = random_model(tiny)
        first, second = _texts(tiny)
        logits, calls, cached = _watched(model, first, tiny.num_hidden_layers)
        again, _, _ = _watched(model, first, tiny.num_hidden_layers)
        others, other_calls, _ = _watched(model, second, tiny.num_hidden_layers)
    except FOREIGN_FAILURES as error:
        raise refused(tiny, error) from error
    if not torch.allclose(logits, again, atol=_SAME):
        return "computes something else each time"
    if not torch.allclose(logits[:, 0], others[:, 0], atol=_SAME):
        return "reads its text in both directions"
    if not cached:
        return "keeps no attention cache"
    return _obstacle_in_calls(calls, other_calls, tiny) or _obstacle_around(model, tiny)


def _obstacle_in_calls(calls: Sequence[_Call], other_calls: Sequence[_Call], tiny: PreTrainedConfig) -> str | None:
    if len(calls) != tiny.num_hidden_layers:
        return f"runs its {tiny.num_hidden_layers} blocks {len(calls)} times for one token"
    if any(getattr(call.hidden, "shape", None) != (1, _TOKENS, tiny.hidden_size) for call in calls):
        return "passes more than one hidden state per token from block to block"
    if _differ(calls[0].others, other_calls[0].others):
        return "shows its blocks the tokens themselves, which only the client has"
    if any(_hands_on(before, after) for before, after in itertools.pairwise(calls)):
        return "hands values from block to block beside the hidden states"
    if any(_differ(call.others, other.others) for call, other in zip(calls, other_calls, strict=True)):
        return "hands values from block to block beside the hidden states"
    return None


def _obstacle_around(model: PreTrainedModel, tiny: PreTrainedConfig) -> str | None:
    taken = inspect.signature(find_blocks(model, tiny.num_hidden_layers).owner.forward).parameters
    if "inputs_embeds" not in taken:
        return "has its blocks in a part that takes nothing but tokens"
    if "position_ids" not in taken:
        return "numbers the tokens of a text itself, in the order in which they come"
    return None


def _texts(tiny: PreTrainedConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts (1, T) with the same first token and different ones after it."""
    first = torch.arange(FIRST_TEXT_TOKEN, FIRST_TEXT_TOKEN + _TOKENS)[None]
    second = first.clone()
    second[:, 1:] += _TOKENS
    return first, second


def _watched(model: PreTrainedModel, tokens: torch.Tensor, num_blocks: int) -> tuple[torch.Tensor, list[_Call], int]:
    """Run the model; return logits (1, T, V), the calls of the blocks, and the number of tokens in the cache."""
    calls: list[_Call] = []

    def begun(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        calls.append(_Call(given[0], tuple(_tensors(given[1:]))))

    def ended(module: Any, args: Any, output: Any) -> None:
        calls[-1].outputs = tuple(_tensors(output))

    hooks = []
    for block in find_blocks(model, num_blocks).blocks:
        hooks += [block.register_forward_pre_hook(begun, with_kwargs=True), block.register_forward_hook(ended)]
    try:
        cache = DynamicCache(config=model.config)
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits, calls, cache.get_seq_length()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Copies of the tensors in lists, tuples and dictionaries; copies, because families change some in place."""
    if isinstance(value, torch.Tensor):
        yield value.clone()
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _differ(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return len(some) != len(others) or not all(map(torch.equal, some, others))


def _hands_on(before: _Call, after: _Call) -> bool:
    """Whether a block is given something that the block before it returned besides the hidden states."""
    return any(
        given.shape == output.shape and torch.equal(given, output)
        for given in after.others
        for output in before.outputs[1:]
    )
