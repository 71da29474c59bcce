"""A family is served because it was tried, not because somebody wrote it into a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.attention import CapturedMask
from blockswarm.peer.engine.blocks.selfcheck import FamilyRoutes, check_family, find_route
from blockswarm.peer.engine.blocks.stage import BatchingRoute
from blockswarm.proto.errors import UnsupportedModel
from blockswarm.proto.model.ends import position_limit
from blockswarm.proto.model.tiny import random_model, tiny_config
from support.tiny_models import PADDED_MODELS, REFUSED_MODELS, SERVED_MODELS, SINGLE_MODELS, tiny_model_config
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
)
from transformers.masking_utils import causal_mask_function
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralAttention

FULL_SIZED = (
    "llama",
    "qwen2_moe",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gptj",
    "mpt",
    "opt",
    "falcon",
    "granite",
    "deepseek_v3",
    "gpt_oss",
    "llama4_text",
    "smollm3",
)
"""Model types whose default configuration is that of a released model of billions of weights."""


@pytest.mark.long
@pytest.mark.parametrize("name", SERVED_MODELS)
def test_every_family_gets_the_fastest_route_that_it_bears(name: str) -> None:
    """A change in either direction should be noticed."""
    padded, single = BatchingRoute.PADDED, BatchingRoute.SINGLE
    expected = single if name in SINGLE_MODELS else padded if name in PADDED_MODELS else BatchingRoute.PACKED
    assert check_family(tiny_model_config(name)) is expected


def test_most_families_are_served_packed() -> None:
    assert len(SERVED_MODELS) == 36
    assert len(set(SERVED_MODELS) - set(PADDED_MODELS) - set(SINGLE_MODELS)) == 28


@pytest.mark.long
@pytest.mark.parametrize("model_type", FULL_SIZED)
def test_a_configuration_of_full_size_is_shrunk_and_accepted(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    weights = sum(parameter.numel() for parameter in random_model(tiny_config(config)).parameters())
    assert weights < 2_000_000
    check_family(config)


@pytest.mark.long
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "bloom", "gpt2"])
def test_switches_that_training_left_in_a_configuration_change_nothing(name: str) -> None:
    """Fine-tunes are published with them. Families would return other things, or look for blocks that are elsewhere."""
    left = {
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "gradient_checkpointing": True,
    }
    config = tiny_model_config(name, **left)
    if hasattr(config, "output_router_logits"):
        config.output_router_logits = True
    assert check_family(config) is check_family(tiny_model_config(name))
    assert config.output_hidden_states, "the user's own configuration stays as it was"


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_state_that_cannot_be_rolled_back_is_refused_with_that_reason(name: str) -> None:
    with pytest.raises(UnsupportedModel, match="linear-attention") as error:
        check_family(tiny_model_config(name))
    assert name in error.value.reason


@pytest.mark.parametrize("model_type", ["mamba2", "falcon_h1", "t5", "gemma3n_text", "bert"])
def test_what_is_no_plain_decoder_is_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedModel, match=model_type):
        check_family(AutoConfig.for_model(model_type))


PHI_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 32.0, "original_max_position_embeddings": 2048}


@pytest.mark.long
@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 512),
        (PHI_ROPE | {"short_factor": [1.0] * 8, "long_factor": [8.0] * 8}, 2048),
    ],
)
def test_positions_that_depend_on_the_longest_sequence_are_served_up_to_there(rope: dict[str, Any], limit: int) -> None:
    """Behind it cached keys are rotated otherwise than the whole model would: the tokens would depend on the cuts."""
    config = tiny_model_config("llama", rope_parameters=rope)
    assert check_family(config) is BatchingRoute.PACKED
    assert position_limit(config) == limit


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (2, 2), (3, 3), (3, 1), (6, 3)])
def test_few_heads_are_as_good_as_many(heads: int, kv_heads: int) -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=32 * heads, num_attention_heads=heads, num_key_value_heads=kv_heads, num_hidden_layers=2
    )
    assert check_family(config) is BatchingRoute.PACKED


@pytest.mark.long
@pytest.mark.parametrize("model_type", ["granite_swa", "modernbert-decoder", "ctrl", "doge"])
def test_odd_parts_around_the_blocks_keep_no_family_away(model_type: str) -> None:
    """Tables in a list, weights set up outside, an embedding scaled in place, keys chosen by weight from 2,048 on."""
    check_family(AutoConfig.for_model(model_type))


@pytest.mark.long
@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bert", "in both directions"),
        ("deepseek_v32", "keys of an index"),
        ("deepseek_v4", "more than one hidden state"),
        ("gemma4_text", "the tokens themselves"),
        ("openai-gpt", "no attention cache"),
        ("trocr", "numbers the tokens"),
        ("git", "nothing but tokens"),
        ("xlm", "4 lists of 6 blocks"),
        ("blt", "no single stack"),
        ("rwkv", "no attention cache"),
        ("hunyuan_v1_dense", "transformers itself cannot"),
    ],
)
def test_the_reason_names_what_is_in_the_way(model_type: str, reason: str) -> None:
    """A person can act on a property of a model, and not on an error inside a family's code."""
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        check_family(AutoConfig.for_model(model_type))
    assert "Error" not in f"{refusal.value} {refusal.value.hint}"


class OddLlamaConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "odd_llama"


class OddLlama(LlamaForCausalLM):
    """A family of its own kind: Llama with blocks of the class that its configuration names."""

    config_class = OddLlamaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for block in self.model.layers:
            block.__class__ = BLOCKS_OF[config.kind]


AutoModelForCausalLM.register(OddLlamaConfig, OddLlama)


class Drifting(LlamaDecoderLayer):
    """Its output depends on how often it was called."""

    calls = 0

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        return super().forward(hidden_states, *args, **kwargs) + 1e-3 * self.calls


class Mixing(LlamaDecoderLayer):
    """Its output depends on the other rows of a step, as where positions depend on the longest sequence of a batch."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = super().forward(hidden_states, *args, **kwargs)
        positions = kwargs["position_ids"]
        one_sequence = len(positions) == 1 and bool((positions.diff() == 1).all())
        return output if one_sequence else output + 1e-3 * positions.max()


class OddMistralConfig(MistralConfig):  # type: ignore[misc]
    model_type = "odd_mistral"


class OddMistral(MistralForCausalLM):
    """A family whose window is no mask: the mask that is captured says nothing of it."""

    config_class = OddMistralConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for block in self.model.layers:
            block.self_attn.__class__ = WithItsOwnWindow


AutoModelForCausalLM.register(OddMistralConfig, OddMistral)


class WithItsOwnWindow(MistralAttention):
    def forward(self, *args: Any, attention_mask: Any, **kwargs: Any) -> Any:
        if isinstance(attention_mask, CapturedMask):
            attention_mask = CapturedMask(causal_mask_function)
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class Overwriting(LlamaDecoderLayer):
    """It writes into its input, which is kept for replay and must stay as it was."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states.copy_(super().forward(hidden_states, *args, **kwargs))


BLOCKS_OF = {"drifting": Drifting, "mixing": Mixing, "overwriting": Overwriting}


def odd_llama(kind: str) -> PreTrainedConfig:
    return OddLlamaConfig(**{**tiny_model_config("llama").to_dict(), "kind": kind})


@pytest.mark.long
def test_a_family_that_counts_its_forwards_is_refused() -> None:
    """The check can fail: a block whose output depends on more than its input and its cache is found out."""
    with pytest.raises(UnsupportedModel, match="something else each time"):
        FamilyRoutes(find_route).of(odd_llama("drifting"))


@pytest.mark.long
def test_a_family_that_mixes_up_the_rows_of_a_step_is_served_one_row_after_the_other() -> None:
    """Rows alone are right, together they are not."""
    assert FamilyRoutes(find_route).of(odd_llama("mixing")) is BatchingRoute.SINGLE


@pytest.mark.long
def test_a_family_whose_window_is_no_mask_is_not_served_packed() -> None:
    """The packed attention knows only the captured mask."""
    config = OddMistralConfig(**tiny_model_config("mistral").to_dict())
    assert FamilyRoutes(find_route).of(config) is BatchingRoute.PADDED


def test_a_family_that_overwrites_its_input_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="overwrite"):
        FamilyRoutes(find_route).of(odd_llama("overwriting"))


def test_a_result_is_kept_per_configuration() -> None:
    """Refusals too."""
    runs: list[str] = []

    def find(config: PreTrainedConfig) -> BatchingRoute | UnsupportedModel:
        runs.append(config.model_type)
        return UnsupportedModel("no") if config.model_type == "qwen2" else BatchingRoute.PADDED

    routes = FamilyRoutes(find)
    for name in ("llama", "llama", "llama-tied"):
        assert routes.of(tiny_model_config(name)) is BatchingRoute.PADDED
    for _ in range(2):
        with pytest.raises(UnsupportedModel):
            routes.of(tiny_model_config("qwen2"))
    assert runs == ["llama", "llama", "qwen2"]


@pytest.mark.long
def test_the_check_leaves_the_configuration_and_the_random_state_alone() -> None:
    config = tiny_model_config("gemma2")
    before, random_state = config.to_json_string(), torch.random.get_rng_state()
    check_family(config)
    assert config.to_json_string() == before
    assert torch.equal(torch.random.get_rng_state(), random_state)
