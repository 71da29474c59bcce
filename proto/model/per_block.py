"""The parts of a configuration that speak of single blocks: lists with an entry for each, lists of their numbers, and
settings of their own; taken together for some of the blocks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

_OVERRIDES = "per_layer_config"
_TOKENS = re.compile(r"token_ids?$")
_NUMBERS = re.compile(r"layer|block|idx")


def slice_config(config: PreTrainedConfig, start: int, stop: int) -> PreTrainedConfig:
    """A copy of `config` for blocks [start, stop). Nothing is derived anew: families derive from a whole model."""
    num_blocks, blocks = config.num_hidden_layers, range(start, stop)
    own = per_block_settings(config)
    sliced = copy.deepcopy(config)
    if own:
        sliced.per_layer_config = None
    for name, value in vars(config).items():
        if isinstance(value, list | tuple):
            setattr(sliced, name, of_blocks(name, value, num_blocks, blocks))
    sliced.num_hidden_layers = len(blocks)
    if own:
        sliced.per_layer_config = {block - start: settings for block, settings in own.items() if block in blocks}
    return sliced


def values_of_blocks(config: PreTrainedConfig, blocks: Sequence[int]) -> dict[str, Any]:
    """The values of `config`, by name, for a model of these blocks in this order."""
    own = per_block_settings(config)
    if own:
        config = copy.deepcopy(config)
        config.per_layer_config = None  # what one block has of its own is not read from the others' value
    values = {
        name: of_blocks(name, value, config.num_hidden_layers, blocks) for name, value in config.to_dict().items()
    }
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(blocks)
    if own:
        values[_OVERRIDES] = {place: own[block] for place, block in enumerate(blocks) if block in own}
    return values


def of_blocks(name: str, value: Any, num_blocks: int, blocks: Sequence[int]) -> Any:
    """The part of a value that belongs to `blocks`; all of it if it does not speak of single blocks."""
    if not isinstance(value, list | tuple) or _TOKENS.search(name):
        return value
    if _are_block_numbers(name, value, num_blocks):
        return type(value)(place for place, block in enumerate(blocks) if block in value)
    if len(value) == num_blocks:
        return type(value)(value[block] for block in blocks)
    return value


def block_kinds(config: PreTrainedConfig) -> list[str]:
    """For every block a text that says which kind of block it is; equal for blocks of one kind."""
    count = config.num_hidden_layers
    kinds: list[list[Any]] = [[own] for own in map(per_block_settings(config).get, range(count))]
    for name, value in vars(config).items():
        if not isinstance(value, list | tuple) or _TOKENS.search(name):
            continue
        if _are_block_numbers(name, value, count):
            entries: Sequence[Any] = [block in value for block in range(count)]
        elif len(value) == count:
            entries = value
        else:
            continue
        for kind, entry in zip(kinds, entries, strict=True):
            kind.append(entry)
    return [repr(kind) for kind in kinds]


def per_block_settings(config: PreTrainedConfig) -> Mapping[int, Mapping[str, Any]]:
    """Block -> its settings that differ from those of the model."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    return {int(block): settings for block, settings in config.to_dict()[_OVERRIDES].items()}


def _are_block_numbers(name: str, value: Sequence[Any], num_blocks: int) -> bool:
    """Whether a list names blocks ("mlp_only_layers": [0, 3]), with no entry for each ("no_rope_layers": [0, 1])."""
    if not _NUMBERS.search(name) or not value or any(type(entry) is not int for entry in value):
        return False
    if len(value) == num_blocks and max(value) <= 1:
        return False
    return list(value) == sorted(set(value)) and value[0] >= 0 and value[-1] < num_blocks
