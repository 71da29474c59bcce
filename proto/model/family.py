"""Where a model family keeps its blocks, and how to cut the family's own classes at the two ends of the block list.

A peer runs `stage_class`: the family's class with only some of its blocks and nothing before or after them.  A client
runs `ends_class`: the family's class with everything but the blocks, one remote module standing where they were.
There is no table of families.  The module that owns the list of blocks is found by looking, its own forward is what
runs, and what that forward does before the first block and after the last one is cut off by value (`BlockEdge`)
rather than by knowing what it is: a scaled embedding, a learned position, a norm.  Whether a family survives this is
found out by `peer/engine/blocks/selfcheck.py`.

Blocks keep the index they have in the full model (`layer_idx`), and the configuration of the full model; only the
owner's copy of the configuration speaks of the blocks that are really there.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from ...routing.swarm import BlockRange
from ..errors import ModelMismatch, OutOfMemory, UnsupportedModel

ENDS_ATTENTION = "blockswarm_ends"
"""Name under which transformers knows the mask of a client, which runs no attention."""


@dataclass(frozen=True)
class BlockList:
    """The list of transformer blocks inside a model and the module whose forward walks through it."""

    owner: Any  # a module; its attributes are the family's business
    owner_path: str
    """Path of the owner inside the model, "" if it is the model itself."""
    name: str
    """Name of the list in its owner ("layers", "h", "blocks")."""

    @classmethod
    def at(cls, model: nn.Module, path: str) -> BlockList:
        """The list at `path` ("model.layers")."""
        owner_path, _, name = path.rpartition(".")
        return cls(model.get_submodule(owner_path), owner_path, name)

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = getattr(self.owner, self.name)
        assert isinstance(blocks, nn.ModuleList)
        return blocks


def family_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The family's own class with a language-model head; imports only that family's modelling file.

    Raises UnsupportedModel if transformers has none, if the model has other parts beside its decoder, or if its weights
    are stored in a quantised form.
    """
    if config.get_text_config(decoder=True) is not config:
        raise UnsupportedModel(f"{config.model_type} has other parts beside its text decoder")
    if config.is_encoder_decoder:
        raise UnsupportedModel(f"{config.model_type} is an encoder-decoder model")
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModel(
            f"the weights of this {config.model_type} checkpoint are quantised already",
            hint="Use the original checkpoint of the model.",
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f"transformers has no decoder-only language model for {config.model_type!r}")
    family: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return family


def find_blocks(model: nn.Module, num_blocks: int) -> BlockList:
    """Find the one outermost list of `num_blocks` modules. Raises UnsupportedModel if there is none or several."""
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks
    ]
    outermost = [path for path in lists if path.count(".") == min(other.count(".") for other in lists)]
    if len(outermost) != 1:
        raise UnsupportedModel(
            f"{type(model).__name__} has {len(outermost)} lists of {num_blocks} blocks, exactly one is needed"
        )
    return BlockList.at(model, outermost[0])


def slice_config(config: PreTrainedConfig, start: int, stop: int) -> PreTrainedConfig:
    """A copy of `config` for blocks [start, stop): their number, and every list that has one entry per block."""
    num_blocks = config.num_hidden_layers
    sliced = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == num_blocks:
            setattr(sliced, name, value[start:stop])
    sliced.num_hidden_layers = stop - start
    return sliced


class Passage:
    """What passes the two edges of a run of blocks in one forward; a run is used by one thread."""

    __slots__ = ("entering", "leaving")

    def __init__(self) -> None:
        self.entering: torch.Tensor | None = None
        """Given to the first block in place of what the owner computed before it."""
        self.leaving: torch.Tensor | None = None
        """What the last block returned, before the owner does anything else to it."""


class BlockEdge(nn.Module):
    """Stands around the first block of a run, the last, or the only one, and lets its input or output pass the edge."""

    def __init__(self, block: nn.Module, passage: Passage, *, first: bool, last: bool) -> None:
        super().__init__()
        self.block = block
        self._passage = passage
        self._first = first
        self._last = last

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._first:
            hidden_states = self._passage.entering  # type: ignore[assignment]  # set for every forward
        output = self.block(hidden_states, *args, **kwargs)
        if self._last:
            self._passage.leaving = output[0] if isinstance(output, tuple) else output
        return output


class _NoEmbedding(nn.Module):
    """Stands where a peer has no embedding; what it returns adds nothing and is cut off by the edge anyway."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(())


def stage_class(config: PreTrainedConfig, blocks: BlockRange) -> type[PreTrainedModel]:
    """The family's class with only `blocks`; its block i is block `blocks.start + i` of the full model.

    The class holds no weights outside the blocks.  It is built from the full configuration, so that patterns over the
    absolute index (dense or sparse, window or none) come out right.  Its attribute `blocks_path` says where they are.
    Raises UnsupportedModel.
    """
    family = family_class(config)

    def __init__(self: Any, config: PreTrainedConfig) -> None:
        config = copy.deepcopy(config)
        config.tie_word_embeddings = False
        family.__init__(self, config)
        found = find_blocks(self, config.num_hidden_layers)
        kept = nn.ModuleList(found.blocks[index] for index in blocks)
        setattr(found.owner, found.name, kept)
        _remove_weights_outside(self, kept)
        found.owner.config = slice_config(config, blocks.start, blocks.stop)
        self.blocks_path = f"{found.owner_path}.{found.name}".lstrip(".")

    return _family_subclass(family, {"__init__": __init__, "_tied_weights_keys": None})


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

    return _family_subclass(family, {"__init__": __init__})


class _AllBlocks(nn.Module):
    """The remote module as the family's forward sees it: one block, returning what the family's blocks return."""

    def __init__(self, remote: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self.remote = remote
        self.as_tuple = as_tuple

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.remote(hidden_states, *args, **kwargs)
        return (output,) if self.as_tuple else output


def _family_subclass(family: type[PreTrainedModel], attributes: dict[str, Any]) -> type[PreTrainedModel]:
    """A subclass under the family's own name, by which transformers looks up conversion rules of checkpoints."""
    named = {"__module__": family.__module__, "__qualname__": family.__qualname__}
    subclass: type[PreTrainedModel] = type(family.__name__, (family,), named | attributes)
    return subclass


def _remove_weights_outside(model: nn.Module, kept: nn.ModuleList) -> None:
    """Replace every module with weights that neither is, contains, nor is inside `kept`."""
    for name, child in list(model.named_children()):
        if child is kept or not any(True for _ in child.parameters()):
            continue
        if any(module is kept for module in child.modules()):
            _remove_weights_outside(child, kept)
        else:
            setattr(model, name, _NoEmbedding() if isinstance(child, nn.Embedding) else nn.Identity())


def attention_implementation(family: type[PreTrainedModel]) -> str:
    """The attention of transformers that fits the family: softcaps, sinks and some alibi need the eager one."""
    return "sdpa" if family._supports_sdpa else "eager"


def load_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
) -> PreTrainedModel:
    """Build a class made above and fill it from `state`: parameter name -> tensor or safetensors slice.

    transformers does the rest: building without memory, conversion of checkpoint layouts, dtype.  The configuration
    is copied.  `attention` is the name of a registered attention, None: the one of transformers that fits the family.
    Raises ModelMismatch if `state` lacks a weight or has one of another shape, OutOfMemory.
    """
    try:
        with _quiet_transformers():
            model, info = model_class.from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict=dict(state),
                dtype=dtype,
                attn_implementation=attention or attention_implementation(model_class),
                ignore_mismatched_sizes=True,  # reported below, in our words
                output_loading_info=True,
            )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory("the weights do not fit into memory") from error
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise ModelMismatch(f"weight {name} has shape {tuple(found)}, the configuration wants {tuple(wanted)}")
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelMismatch(f"{len(missing)} weights are missing from the checkpoint, for example {missing[0]}")
    loaded: PreTrainedModel = model.eval()
    return loaded


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


_TINY_SIZES: Mapping[str, int] = {
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "vocab_size": 199,
    "max_position_embeddings": 64,
    "max_seq_len": 64,
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "n_inner": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "num_attention_heads": 4,
    "head_dim": 16,
    "rotary_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 2,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "original_max_position_embeddings": 16,
}
"""Upper limits of a tiny configuration, by the names that transformers uses; what has another name is left alone."""

_LATENT_HEAD_SIZES: Mapping[str, int] = {"head_dim": 8, "qk_head_dim": 24}
"""Sizes that follow from the others where attention keeps a latent (MLA): rotated, and rotated plus not."""
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_MEANINGLESS_WHEN_TINY = ("dtype", "id2label", "label2id")
_TINY_ROPE_FACTORS = ("short_factor", "long_factor")


def tiny_config(config: PreTrainedConfig, num_blocks: int = 6) -> PreTrainedConfig:
    """A model of the same kind with tiny widths and at most `num_blocks` blocks that keep the pattern of block types.

    Windows and the original context of stretched positions shrink to a few tokens, so that a short prompt passes
    them.  Raises UnsupportedModel if the family does not accept the small sizes.
    """
    blocks = _representative_blocks(config, num_blocks)
    values = {key: value for key, value in config.to_dict().items() if key not in _MEANINGLESS_WHEN_TINY}
    common_names = {own: common for common, own in config.attribute_map.items()}
    for name, value in list(values.items()):
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            values[name] = [value[block] for block in blocks]
        elif name in _KV_HEADS and isinstance(value, int):
            every_head = value == config.num_attention_heads
            values[name] = _TINY_SIZES["num_attention_heads"] if every_head else min(value, 2)
        elif name in _LATENT_HEAD_SIZES and "qk_rope_head_dim" in values:
            values[name] = _LATENT_HEAD_SIZES[name]
        else:
            values[name] = _tiny_value(common_names.get(name, name), value)
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(blocks)
    if "dynamic" in _rope_types(values.get("rope_parameters")):
        # This kind of stretched positions has no original context of its own.
        values["max_position_embeddings"] = _TINY_SIZES["original_max_position_embeddings"]
    with _quiet_transformers():
        return type(config).from_dict(values)


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """The full model in float32 with random weights, large enough that every weight matters to the logits.

    The global random state is left as it was.
    """
    family = family_class(config)
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family._from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation=attention_implementation(family)
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            else:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    built: PreTrainedModel = model.eval()
    return built


def _representative_blocks(config: PreTrainedConfig, count: int) -> list[int]:
    """The first `count` blocks, the last of them replaced by later ones of types that would be missing."""
    types: list[Any] = list(getattr(config, "layer_types", None) or [None] * config.num_hidden_layers)
    chosen = list(range(min(count, len(types))))
    missing = [index for index in range(len(chosen), len(types)) if types[index] not in types[:index]]
    return sorted(chosen[: count - len(missing)] + missing[:count])


def _rope_types(parameters: Any) -> set[str]:
    """The kinds of rotary positions in a configuration, which may have one per type of block."""
    if not isinstance(parameters, dict):
        return set()
    return {parameters.get("rope_type", "default")}.union(*(_rope_types(inner) for inner in parameters.values()))


def _tiny_value(common_name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tiny_value(name, inner) for name, inner in value.items() if name not in _MEANINGLESS_WHEN_TINY}
    if common_name in _TINY_ROPE_FACTORS:
        return value[: _TINY_SIZES["head_dim"] // 2]
    if common_name.endswith("_token_id"):
        ids = value if isinstance(value, list) else [value]
        ids = [None if token is None else min(token, _TINY_SIZES["vocab_size"] - 1) for token in ids]
        return ids if isinstance(value, list) else ids[0]
    if isinstance(value, int) and not isinstance(value, bool) and common_name in _TINY_SIZES:
        return min(value, _TINY_SIZES[common_name])
    return value


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings about odd sizes from transformers; what matters is raised as an error."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _constant_mask(**kwargs: Any) -> torch.Tensor:
    return _ALL_VISIBLE


_ALL_VISIBLE = torch.ones(1, 1, 1, 1, dtype=torch.bool)


def _no_attention(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a client runs no attention")


AttentionMaskInterface.register(ENDS_ATTENTION, _constant_mask)
AttentionInterface.register(ENDS_ATTENTION, _no_attention)
