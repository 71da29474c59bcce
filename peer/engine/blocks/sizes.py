"""The memory that a block will need, computed before any of its weights is read.

The model is built on torch's meta device, where tensors have a shape and a dtype but no bytes.  A few families read
values before they cache anything; for those, one block of each kind is built in memory, but not filled.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from ....proto.model.family import FOREIGN_FAILURES, attention_implementation, building, inference_copy, stage_class
from ....proto.model.per_block import block_kinds
from ....proto.wire.tensors import DTYPES
from ....routing.swarm import BlockRange
from ..cache.row import RowKV
from ..weights.quantize import FormChoice, InputGroups, matrix_shapes, packed_block_bytes, shared_inputs
from .rows import RowSpan
from .view import BatchingRoute, Shell, StageView


def block_sizes(config: PreTrainedConfig, dtype: str, forms: FormChoice) -> tuple[int, int]:
    """Return the bytes of the weights of the model's largest block, and of one token's attention cache in the block
    that needs most.

    Activations are in `dtype` ("float32"), weights are loaded in it and then packed. The few weights that a family
    keeps in float32 anyway are counted in `dtype`. Raises UnsupportedModel. Takes hardly any memory, for a few families
    that of one block, and time that grows with the number of blocks.
    """
    everything = BlockRange(0, config.num_hidden_layers)
    groups = _groups(config, forms)
    model = _without_memory(config, everything, dtype)
    with torch.device("meta"):
        shell, modules = Shell.split(model, BatchingRoute.SINGLE)
        weights = max(packed_block_bytes(module, forms, groups) for module in modules)
        try:
            kv = max(
                _kv_bytes(StageView(shell, BlockRange(block, block + 1), [modules[block]])) for block in everything
            )
        except FOREIGN_FAILURES:  # the family looks at values before its blocks cache anything
            kv = 0
    return weights, kv or _kv_bytes_of_values(config, dtype)


def block_shapes(config: PreTrainedConfig) -> dict[tuple[int, int], int]:
    """Return the shapes (N, K) of the matrices of all kinds of blocks -> the most matrices of that shape in one block.

    Linears with the same input count as one matrix.
    """
    kinds = block_kinds(config)
    shapes: dict[tuple[int, int], int] = {}
    for block in (kinds.index(kind) for kind in dict.fromkeys(kinds)):
        model = _without_memory(config, BlockRange(block, block + 1), "float32")
        _, (module,) = Shell.split(model, BatchingRoute.SINGLE)
        for shape, count in matrix_shapes(module, shared_inputs(config)).items():
            shapes[shape] = max(count, shapes.get(shape, 0))
    return shapes


def _groups(config: PreTrainedConfig, forms: FormChoice) -> InputGroups:
    """The groups of linears with the same input; none for plain weights, whose family may have no tiny model."""
    return frozenset() if forms.is_plain else shared_inputs(config)


def _without_memory(config: PreTrainedConfig, blocks: BlockRange, dtype: str) -> Any:
    model_class = stage_class(config, blocks)
    with building(), torch.device("meta"):
        return model_class._from_config(
            inference_copy(config), dtype=DTYPES[dtype], attn_implementation=attention_implementation(model_class)
        ).eval()


def _kv_bytes_of_values(config: PreTrainedConfig, dtype: str) -> int:
    """As `_kv_bytes`, the most over one block of each kind, built in memory with uninitialised weights."""
    kinds = block_kinds(config)
    sizes = []
    for block in (kinds.index(kind) for kind in set(kinds)):
        single = BlockRange(block, block + 1)
        model = _without_memory(config, single, dtype).to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.zero_()  # some are indices
        shell, modules = Shell.split(model, BatchingRoute.SINGLE)
        sizes.append(_kv_bytes(StageView(shell, single, modules)))
    return max(sizes)


def _kv_bytes(view: StageView) -> int:
    """Return the bytes that one block passes to the cache for one token; the forward ends there."""
    cache = _CacheProbe(view.blocks)
    try:
        view.forward(torch.zeros(1, view.hidden_size, dtype=view.dtype, device=view.device), [RowSpan(cache, 0, 1)])
    except _HandedOver as handed:
        return handed.nbytes
    raise AssertionError(f"block {view.blocks} caches nothing")


class _HandedOver(Exception):
    """Ends the forward: experts are chosen by value, and the meta device has none."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes = nbytes


class _CacheProbe(RowKV):
    """A cache that only measures what it is given."""

    def __init__(self, blocks: BlockRange) -> None:
        super().__init__(blocks, max_tokens=1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise _HandedOver(key_states.nbytes + value_states.nbytes)
