"""The memory that a block will need, before any of its weights is read.

The model is built on torch's meta device, where tensors have a shape and a dtype but no bytes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig

from ....proto.model.family import attention_implementation, stage_class
from ....proto.wire.tensors import DTYPES
from ....routing.swarm import BlockRange
from ..cache.row import RowKV
from ..weights.quantize import Packing, packed_block_bytes
from .rows import RowSpan
from .view import BatchingRoute, Shell, StageView


def block_sizes(config: PreTrainedConfig, dtype: str, packing: Packing) -> tuple[int, int]:
    """Bytes of the weights of the model's largest block, and of one token's attention cache in the block that needs
    most, with activations in `dtype` ("float32"), and weights as they are loaded in it and packed. The few weights
    that a family keeps in float32 even so are counted in `dtype`.

    Raises UnsupportedModel. Takes no memory to speak of, and time that grows with the number of blocks.
    """
    everything = BlockRange(0, config.num_hidden_layers)
    model_class = stage_class(config, everything)
    with torch.device("meta"):
        model: Any = model_class._from_config(
            copy.deepcopy(config), dtype=DTYPES[dtype], attn_implementation=attention_implementation(model_class)
        ).eval()
        shell, modules = Shell.split(model, BatchingRoute.SINGLE)
        weights = max(packed_block_bytes(module, packing) for module in modules)
        hidden = torch.zeros(1, model.config.hidden_size, dtype=DTYPES[dtype])
        return weights, max(
            _kv_bytes(StageView(shell, BlockRange(block, block + 1), [modules[block]]), hidden) for block in everything
        )


def _kv_bytes(view: StageView, hidden: torch.Tensor) -> int:
    """The bytes that one block hands to the cache for one token; what comes after its attention does not run."""
    cache = _CacheProbe(view.blocks)
    try:
        view.forward(hidden, [RowSpan(cache, 0, 1)])
    except _HandedOver as handed:
        return handed.nbytes
    raise AssertionError(f"block {view.blocks} caches nothing")


class _HandedOver(Exception):
    """Ends the forward: experts are chosen by value, and the meta device has none."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes = nbytes


class _CacheProbe(RowKV):
    """A cache that only looks at what it is given."""

    def __init__(self, blocks: BlockRange) -> None:
        super().__init__(blocks, max_tokens=1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise _HandedOver(key_states.nbytes + value_states.nbytes)
