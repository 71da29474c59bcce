"""The two ends of a model, which a client holds: the family's class with one remote module in place of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from ..errors import UnsupportedModel
from .family import FOREIGN_FAILURES, family_class, family_subclass, find_blocks, refused
from .per_block import slice_config
from .tiny import FIRST_TEXT_TOKEN, random_model, steady_length, tiny_config

ENDS_ATTENTION = "blockswarm_ends"
"""Name under which a client's mask is registered in transformers; a client runs no attention."""


def ends_class(config: PreTrainedConfig, make_remote: Callable[[], nn.Module]) -> type[PreTrainedModel]:
    """The family's class with `make_remote()` in place of all blocks, as a client holds it.

    The remote module is called as the family calls a block, once per forward, with the hidden states (B, T, H) as its
    first argument; it returns a tensor of the same shape.  The mask that the family computes for it is a constant
    without meaning.  The configuration that the user and `generate` see is that of the full model; only the module that
    owned the blocks has one with a single block.  The attribute `blocks_path` is the path where the blocks would be.
    Raises UnsupportedModel.
    """
    family = family_class(config)
    try:
        as_tuple = block_returns_tuple(config)
    except FOREIGN_FAILURES as error:
        raise refused(config, error) from error

    def __init__(self: Any, config: PreTrainedConfig) -> None:
        family.__init__(self, slice_config(config, 0, 1))
        found = find_blocks(self, 1)
        owner_config = found.owner.config
        owner_config._attn_implementation = ENDS_ATTENTION
        setattr(found.owner, found.name, nn.ModuleList([_AllBlocks(make_remote(), as_tuple)]))
        self.config = config
        found.owner.config = owner_config
        self.blocks_path = found.path

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
    return _observed(config).returns_tuple


def position_limit(config: PreTrainedConfig) -> int | None:
    """The most tokens that a text of the model may have; None: any number.

    There is a limit if positions are rows of a table, which is found by trial, and if a longer text would change the
    values computed for its first tokens (`steady_length`).  Raises UnsupportedModel.
    """
    try:
        has_table = _observed(config).has_position_table
    except FOREIGN_FAILURES as error:
        raise refused(config, error) from error
    limits = [steady_length(config), _positions(config) if has_table else None]
    return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Observed:
    """Facts about a family, observed on a tiny model."""

    returns_tuple: bool
    has_position_table: bool


_observations: dict[tuple[type, str], _Observed] = {}


def _observed(config: PreTrainedConfig) -> _Observed:
    tiny = tiny_config(config, num_blocks=1)
    key = type(tiny), tiny.to_json_string()
    if key not in _observations:
        _observations[key] = _observe(tiny)
    return _observations[key]


@torch.inference_mode()
def _observe(tiny: PreTrainedConfig) -> _Observed:
    model = random_model(tiny)
    seen: list[bool] = []
    block = find_blocks(model, 1).blocks[0]
    block.register_forward_hook(lambda module, args, output: seen.append(isinstance(output, tuple)))
    positions = _positions(tiny)
    tokens = torch.full((1, (positions or 1) + 1), FIRST_TEXT_TOKEN)
    model(input_ids=tokens[:, 1:], use_cache=False)
    if len(seen) != 1:
        raise UnsupportedModel(f"{tiny.model_type} runs each of its blocks {len(seen)} times per forward")
    has_table = False
    if positions is not None:
        try:
            model(input_ids=tokens, use_cache=False)
        except FOREIGN_FAILURES:
            has_table = True
    return _Observed(seen[0], has_table)


def _positions(config: PreTrainedConfig) -> int | None:
    """The number of positions that a configuration states; most models can compute more."""
    numbers = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((number for number in numbers if isinstance(number, int) and number > 0), None)


def _constant_mask(**kwargs: Any) -> torch.Tensor:
    return _ALL_VISIBLE


_ALL_VISIBLE = torch.ones(1, 1, 1, 1, dtype=torch.bool)


def _no_attention(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a client runs no attention")


AttentionMaskInterface.register(ENDS_ATTENTION, _constant_mask)
AttentionInterface.register(ENDS_ATTENTION, _no_attention)
