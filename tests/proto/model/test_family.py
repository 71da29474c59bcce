"""The two ways to cut a family's class: a run of blocks, and everything but the blocks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from blockswarm.proto.errors import ModelMismatch, UnsupportedModel
from blockswarm.proto.model.ends import block_returns_tuple, ends_class, position_limit
from blockswarm.proto.model.family import BlockList, family_class, find_blocks, load_model, stage_class
from blockswarm.proto.model.tiny import random_model
from blockswarm.routing.swarm import BlockRange
from support.tiny_models import SERVED_MODELS, tiny_model_config
from torch import nn
from transformers import AutoConfig, DynamicCache, PreTrainedModel


class AllBlocksHere(nn.Module):
    """The remote module of the ends, computed by the blocks of the full model."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.hidden_states: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        self.hidden_states = hidden_states
        return hidden_states


def outer_weights(model: nn.Module, num_blocks: int) -> dict[str, torch.Tensor]:
    """The weights outside the blocks."""
    found = find_blocks(model, num_blocks)
    prefix = f"{found.path}."
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefix)}


def make_ends(name: str) -> tuple[Any, AllBlocksHere]:
    config, remote = tiny_model_config(name), AllBlocksHere()
    return load_model(ends_class(config, lambda: remote), config, outer_weights(random_model(config), 6)), remote


class TestEnds:
    @pytest.mark.parametrize("name", SERVED_MODELS)
    @torch.inference_mode()
    def test_call_the_remote_module_once_and_give_it_what_a_first_block_gets(self, name: str) -> None:
        model, (ends, remote) = random_model(tiny_model_config(name)), make_ends(name)
        seen: list[torch.Tensor] = []
        find_blocks(model, 6).blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        tokens = torch.randint(3, 257, (2, 7), generator=torch.Generator().manual_seed(0))
        model(input_ids=tokens, use_cache=False)
        ends(input_ids=tokens, use_cache=False)
        assert remote.calls == 1
        torch.testing.assert_close(remote.hidden_states, seen[0], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "mpt", "gpt2", "falcon-alibi"])
    @torch.inference_mode()
    def test_take_caches_padding_and_long_contexts(self, name: str) -> None:
        """The mask is a constant whatever the length; computing it must neither fail nor cost."""
        ends, remote = make_ends(name)
        cache = DynamicCache()
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[0, :3] = 0
        ends(input_ids=torch.ones(2, 9, dtype=torch.long), attention_mask=mask, past_key_values=cache, use_cache=True)
        assert remote.hidden_states is not None
        assert remote.hidden_states.shape[:2] == (2, 9)

    @pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bloom"])
    def test_show_the_configuration_of_the_full_model(self, name: str) -> None:
        """`generate` and the user look at it."""
        ends, _ = make_ends(name)
        assert ends.config.num_hidden_layers == 6
        assert ends.config.model_type == tiny_model_config(name).model_type
        owner = BlockList.at(ends, ends.blocks_path).owner
        assert owner.config.num_hidden_layers == 1
        assert ends.can_generate()

    def test_tied_heads_are_tied(self) -> None:
        ends, _ = make_ends("llama-tied")
        assert ends.get_output_embeddings().weight is ends.get_input_embeddings().weight

    def test_are_tied_also_where_several_threads_build_models(self) -> None:
        """transformers replaces its tying of weights for all threads while it builds a model."""
        tie_weights = PreTrainedModel.tie_weights
        with ThreadPoolExecutor(4) as pool:
            built = list(pool.map(lambda _: make_ends("llama-tied")[0], range(24)))
        assert all(ends.get_output_embeddings().weight is ends.get_input_embeddings().weight for ends in built)
        assert PreTrainedModel.tie_weights is tie_weights

    def test_hold_nothing_of_the_blocks(self) -> None:
        ends, _ = make_ends("llama")
        assert sum(parameter.numel() for parameter in ends.parameters()) == 2 * 257 * 64 + 64


class TestStages:
    @pytest.mark.parametrize("name", SERVED_MODELS)
    def test_hold_their_blocks_and_nothing_else(self, name: str) -> None:
        config = tiny_model_config(name)
        with torch.device("meta"):
            full, stage = family_class(config)(config), stage_class(config, BlockRange(2, 5))(config)
        wanted = sum(
            parameter.numel() for block in find_blocks(full, 6).blocks[2:5] for parameter in block.parameters()
        )
        assert sum(parameter.numel() for parameter in stage.parameters()) == wanted

    def test_blocks_keep_the_index_they_have_in_the_model(self) -> None:
        config = tiny_model_config("gemma3")
        with torch.device("meta"):
            stage = stage_class(config, BlockRange(4, 6))(config)
        found = BlockList.at(stage, stage.blocks_path)
        assert [block.self_attn.layer_idx for block in found.blocks] == [4, 5]
        assert found.owner.config.layer_types == config.layer_types[4:6]
        assert found.blocks[0].self_attn.config.layer_types == config.layer_types

    def test_building_one_leaves_the_configuration_alone(self) -> None:
        config = tiny_model_config("llama-tied")
        before = config.to_json_string()
        with torch.device("meta"):
            stage_class(config, BlockRange(0, 2))(config)
        assert config.to_json_string() == before

    def test_a_missing_weight_is_named(self) -> None:
        config = tiny_model_config("llama")
        with pytest.raises(ModelMismatch, match=r"model\.layers\.0\."):
            load_model(stage_class(config, BlockRange(0, 1)), config, {})

    def test_a_weight_of_another_shape_is_named(self) -> None:
        config = tiny_model_config("llama")
        weights = {name: t for name, t in random_model(config).state_dict().items() if "layers.0." in name}
        name = "model.layers.0.mlp.up_proj.weight"
        with pytest.raises(ModelMismatch, match="up_proj"):
            load_model(stage_class(config, BlockRange(0, 1)), config, weights | {name: torch.zeros(3, 3)})


@pytest.mark.parametrize(("name", "returns_tuple"), [("llama", False), ("falcon", True), ("bloom", True)])
def test_what_a_block_returns_is_found_by_looking(name: str, returns_tuple: bool) -> None:
    assert block_returns_tuple(tiny_model_config(name)) is returns_tuple


@pytest.mark.parametrize(
    ("name", "changes", "limit"),
    [
        ("gpt2", {"n_positions": 100}, 100),
        ("opt", {"max_position_embeddings": 90}, 90),
        ("gptj", {"n_positions": 80}, 80),
        ("mpt", {"max_seq_len": 70}, 70),
        ("bloom", {}, None),
        ("llama", {}, None),
        ("llama3-rope", {}, None),
    ],
)
def test_how_long_a_text_may_be_is_found_by_trying(name: str, changes: dict[str, int], limit: int | None) -> None:
    """A table ends; rotated positions do not, whatever the configuration says."""
    assert position_limit(tiny_model_config(name, **changes)) == limit


class TestRefusals:
    @pytest.mark.parametrize("model_type", ["t5", "vit", "llava"])
    def test_what_is_no_language_model_of_one_part(self, model_type: str) -> None:
        with pytest.raises(UnsupportedModel, match=model_type):
            family_class(AutoConfig.for_model(model_type))

    def test_weights_that_are_quantised_already(self) -> None:
        config = tiny_model_config("llama", quantization_config={"quant_method": "gptq", "bits": 4})
        with pytest.raises(UnsupportedModel, match="quantised"):
            family_class(config)

    def test_a_model_without_a_list_of_blocks(self) -> None:
        with pytest.raises(UnsupportedModel, match="0 lists of 7"):
            find_blocks(random_model(tiny_model_config("llama")), 7)

    def test_two_lists_of_equal_standing(self) -> None:
        twins = nn.Module()
        twins.a, twins.b = (nn.ModuleList(nn.Linear(1, 1) for _ in range(3)) for _ in range(2))
        with pytest.raises(UnsupportedModel, match="2 lists"):
            find_blocks(twins, 3)
