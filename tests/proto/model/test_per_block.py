"""The part of a configuration that belongs to some of a model's blocks."""

from __future__ import annotations

import pytest
from blockswarm.proto.model.per_block import block_kinds, per_block_settings, slice_config, values_of_blocks
from support.tiny_models import tiny_model_config
from transformers import AutoConfig, PreTrainedConfig


def gemma4() -> PreTrainedConfig:
    """Every sixth block attends to everything, with heads of twice the size."""
    return AutoConfig.for_model("gemma4_text", num_hidden_layers=12, hidden_size_per_layer_input=0)


class TestSlices:
    def test_take_every_list_with_one_entry_per_block_and_leave_the_original(self) -> None:
        config = tiny_model_config("smollm3")
        before = config.to_json_string()
        sliced = slice_config(config, 2, 5)
        assert sliced.num_hidden_layers == 3
        assert sliced.layer_types == config.layer_types[2:5]
        assert sliced.no_rope_layers == config.no_rope_layers[2:5]
        assert config.to_json_string() == before

    def test_know_own_names_of_sizes(self) -> None:
        assert slice_config(tiny_model_config("gpt2"), 0, 2).n_layer == 2

    @pytest.mark.parametrize("name", ["eos_token_id", "suppress_token_ids"])
    def test_leave_lists_of_tokens_alone(self, name: str) -> None:
        """They may happen to be as long as the model."""
        tokens = [9, 8, 7, 6, 5, 4]
        assert getattr(slice_config(tiny_model_config("llama", **{name: tokens}), 1, 3), name) == tokens

    def test_number_named_blocks_anew(self) -> None:
        config = tiny_model_config("qwen3_moe", mlp_only_layers=[1, 3, 4])
        assert slice_config(config, 3, 6).mlp_only_layers == [0, 1]
        assert slice_config(config, 5, 6).mlp_only_layers == []

    def test_take_what_single_blocks_have_of_their_own(self) -> None:
        config = gemma4()
        assert dict(per_block_settings(config)) == {5: {"head_dim": 512}, 11: {"head_dim": 512}}
        assert dict(per_block_settings(slice_config(config, 4, 8))) == {1: {"head_dim": 512}}
        assert not per_block_settings(slice_config(config, 0, 5))
        assert len(per_block_settings(config)) == 2


def test_values_of_chosen_blocks_make_a_model_of_them() -> None:
    values = values_of_blocks(gemma4(), [0, 5, 11])
    config = type(gemma4()).from_dict(values)
    assert config.layer_types == ["sliding_attention", "full_attention", "full_attention"]
    assert dict(per_block_settings(config)) == {1: {"head_dim": 512}, 2: {"head_dim": 512}}


def test_blocks_are_of_one_kind_where_nothing_tells_them_apart() -> None:
    kinds = block_kinds(gemma4())
    assert kinds == [kinds[0]] * 5 + [kinds[5]] + [kinds[0]] * 5 + [kinds[5]]
    assert kinds[0] != kinds[5]
    dense = block_kinds(tiny_model_config("qwen3_moe", mlp_only_layers=[1, 3]))
    assert dense[1] == dense[3] != dense[0] == dense[2]
