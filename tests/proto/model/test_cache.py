"""A cache without layers answers what families ask, and never does nothing in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blockswarm.proto.model.cache import LayerlessCache
from transformers import Cache, LlamaConfig
from transformers.masking_utils import create_causal_mask


class CountingCache(LayerlessCache):
    """Counts tokens and keeps none."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.length += key_states.shape[2]
        return key_states, value_states


def test_a_cache_has_to_say_its_length_and_take_tokens():
    with pytest.raises(TypeError, match="get_seq_length, update"):
        LayerlessCache()  # type: ignore[abstract]


@pytest.mark.parametrize("block", [0, 5])
def test_every_block_sees_all_tokens(block: int):
    cache = CountingCache(7)
    assert cache.get_seq_length(block) == cache.get_query_offset(block) == 7
    assert cache.get_mask_sizes(3, block) == (10, 0)


def test_transformers_sizes_its_masks_by_it():
    """The mask of 2 new tokens behind 3 cached ones, as transformers makes it for any of its families."""
    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, attn_implementation="eager")
    mask = create_causal_mask(config, torch.zeros(1, 2, 8), None, CountingCache(3), torch.arange(3, 5)[None])
    assert (mask[0, 0] == 0).tolist() == [[True] * 4 + [False], [True] * 5]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-1),
        lambda cache: cache.reorder_cache(torch.tensor([0])),
        lambda cache: cache.batch_select_indices(torch.tensor([0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.reset(),
    ],
)
def test_a_change_that_it_does_not_know_is_refused(change: Any):
    """transformers' own methods loop over the layers, of which there are none: tokens would stay that must go."""
    with pytest.raises(NotImplementedError, match="a CountingCache cannot"):
        change(CountingCache(4))


def test_it_promises_nothing_that_it_does_not_do():
    cache = CountingCache(4)
    assert not cache.is_compileable
    assert not cache.is_croppable
    assert not cache.is_initialized
    assert cache.get_max_length() == -1
    assert cache.batch_size == -1
    assert list(cache.is_sliding) == list(cache.is_linear) == list(cache.is_dummy) == []


def test_transformers_asks_nothing_new_of_a_cache():
    """A new version of transformers may ask for more; raising the bound on its version means looking at ours."""
    asked = {name for name in vars(Cache) if not name.startswith("_")}
    known = {
        "activate_past_recording", "batch_repeat_interleave", "batch_select_indices", "batch_size", "crop",
        "early_initialization", "get_conv_state", "get_mask_sizes", "get_max_length", "get_query_offset",
        "get_recurrent_state", "get_seq_length", "has_previous_state", "is_compileable", "is_croppable",
        "is_dummy", "is_initialized", "is_linear", "is_recording_past", "is_sliding", "offload", "prefetch",
        "reorder_cache", "reset", "update", "update_conv_state", "update_indexer", "update_recurrent_state",
    }  # fmt: skip
    assert asked == known
