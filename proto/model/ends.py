"""The two ends of a model, which a client holds: the family's class with one remote module in place of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from ..errors import UnsupportedModel
from .family import family_class, family_subclass, find_blocks, slice_config
from .tiny import random_model, tiny_config

ENDS_ATTENTION = "blockswarm_ends"
"""Name under which transformers knows the mask of a client, which runs no attention."""


def ends_class(config: PreTrainedConfig, make_remote: Callable[[], nn.Module]) -> type[PreTrainedModel]:
    """The family's class with `make_remote()` in place of all blocks: what a client holds.

    The remote module is called as the family calls a block, once per forward, with the hidden states (B, T, H) as its
    first argument; it returns a tensor of the same shape.  The mask that the family computes for it is a constant and
    means nothing.  The configuration that the user and `generate` see is that of the full model; only the module that
    owned the blocks has one that speaks of a single block. Raises UnsupportedModel.
    """
    family = family_class(config)
    as_tuple = block_returns_tuple(config)

    def __init__(self: Any, config: PreTrainedConfig) -> None:
        family.__init__(self, slice_config(config, 0, 1))
        found = find_blocks(self, 1)
        owner_config = found.owner.config
        owner_config._attn_implementation = ENDS_ATTENTION
        setattr(found.owner, found.name, nn.ModuleList([_AllBlocks(make_remote(), as_tuple)]))
        self.config = config
        found.owner.config = owner_config

    return family_subclass(family, {"__init__": __init__})


class _AllBlocks(nn.Module):
    """The remote module as the family's forward sees it: one block, returning what the family's blocks return."""

    def __init__(self, remote: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self.remote = remote
        self.as_tuple = as_tuple

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.remote(hidden_states, *args, **kwargs)
        return (output,) if self.as_tuple else output


def block_returns_tuple(config: PreTrainedConfig) -> bool:
    """Whether the family's blocks return a tuple (hidden states first) or the hidden states; found by running one."""
    tiny = tiny_config(config, num_blocks=1)
    key = type(tiny), tiny.to_json_string()
    if key not in _returns_tuple:
        _returns_tuple[key] = _observe_block_output(tiny)
    return _returns_tuple[key]


_returns_tuple: dict[tuple[type, str], bool] = {}


@torch.inference_mode()
def _observe_block_output(config: PreTrainedConfig) -> bool:
    model = random_model(config)
    seen: list[bool] = []
    block = find_blocks(model, 1).blocks[0]
    block.register_forward_hook(lambda module, args, output: seen.append(isinstance(output, tuple)))
    model(input_ids=torch.ones(1, 2, dtype=torch.long), use_cache=False)
    if len(seen) != 1:
        raise UnsupportedModel(f"{config.model_type} runs each of its blocks {len(seen)} times per forward")
    return seen[0]


def _constant_mask(**kwargs: Any) -> torch.Tensor:
    return _ALL_VISIBLE


_ALL_VISIBLE = torch.ones(1, 1, 1, 1, dtype=torch.bool)


def _no_attention(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a client runs no attention")


AttentionMaskInterface.register(ENDS_ATTENTION, _constant_mask)
AttentionInterface.register(ENDS_ATTENTION, _no_attention)
