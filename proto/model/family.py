"""Where a model family keeps its blocks, and how to cut the family's own classes at the two ends of the block list.

A peer runs `stage_class`: the family's class with only some of its blocks and nothing before or after them.  A client
runs `ends_class` of `ends.py`: everything but the blocks, one remote module standing where they were.  There is no
table of families.  The module that owns the list of blocks is found by looking, its own forward is what runs, and what
that forward does before the first block and after the last one is cut off by value (`BlockEdge`) rather than by knowing
what it is: a scaled embedding, a learned position, a norm.  Whether a family survives this is found out by
`peer/engine/blocks/selfcheck.py`.

Blocks keep the index they have in the full model (`layer_idx`), and the configuration of the full model; only the
owner's copy of the configuration speaks of the blocks that are really there.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from ...routing.swarm import BlockRange
from ..errors import ModelMismatch, OutOfMemory, UnsupportedModel


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
    """The hidden states that pass the two edges of a run of blocks in one forward; a run is used by one thread."""

    __slots__ = ("entering", "leaving")

    def __init__(self) -> None:
        self.entering: torch.Tensor | None = None
        """Given to the first block in place of what the owner computed before it."""
        self.leaving: torch.Tensor | None = None
        """The output of the last block, before the owner does anything else to it."""


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

    return family_subclass(family, {"__init__": __init__, "_tied_weights_keys": None})


def family_subclass(family: type[PreTrainedModel], attributes: dict[str, Any]) -> type[PreTrainedModel]:
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
        with quiet_transformers():
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


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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
