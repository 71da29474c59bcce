"""Where a model family keeps its blocks, and how to cut the family's own classes at the two ends of the block list.

A peer runs `stage_class`: the family's class with only some of its blocks and nothing before or after them.  A client
runs `ends_class` of `ends.py`: everything except the blocks, with one remote module in their place.  There is no table
of families.  The module that owns the list of blocks is found by searching the model, and its own forward runs.  What
that forward does before the first block and after the last one (a scaled embedding, a learned position, a norm) is cut
off at the values that pass (`BlockEdge`), without knowing what it is.  `peer/engine/blocks/selfcheck.py` checks whether
a family works this way.

Blocks keep the index that they have in the full model (`layer_idx`), and the configuration of the full model; only the
owner's copy of the configuration describes the blocks that are present.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import init
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from ...routing.swarm import BlockRange
from ..errors import ModelMismatch, OutOfMemory, UnsupportedModel
from .bounds import check_elements
from .per_block import slice_config

logger = logging.getLogger(__name__)


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
    def path(self) -> str:
        return f"{self.owner_path}.{self.name}".lstrip(".")

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
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise UnsupportedModel(f"{config.model_type} has no single stack of blocks")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f"transformers has no decoder-only language model for {config.model_type!r}")
    family: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return family


def find_blocks(model: nn.Module, num_blocks: int) -> BlockList:
    """Find the one outermost list of `num_blocks` modules with weights.

    Raises UnsupportedModel if there is none or several.
    """
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks and _all_have_weights(module)
    ]
    outermost = [path for path in lists if path.count(".") == min(other.count(".") for other in lists)]
    if len(outermost) != 1:
        raise UnsupportedModel(
            f"{type(model).__name__} has {len(outermost)} lists of {num_blocks} blocks, exactly one is needed"
        )
    return BlockList.at(model, outermost[0])


def _all_have_weights(modules: nn.ModuleList) -> bool:
    """Whether all modules have weights; not so in a list of tables, such as rotary positions."""
    return all(next(module.parameters(), None) is not None for module in modules)


_COMPUTING: Mapping[str, bool] = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "output_router_logits": False,
    "gradient_checkpointing": False,
}
"""Switches of a configuration for training or inspecting a model, and their values when it computes blocks."""


def inference_copy(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of `config` to build a model from, without switches left over from training.

    Families read these switches in their forward pass; they cause outputs of other shapes, and losses over parts that
    are at other peers.  None of them changes the hidden states.
    """
    copied = copy.deepcopy(config)
    for name, value in _COMPUTING.items():
        if hasattr(copied, name):
            setattr(copied, name, value)
    return copied


class Passage:
    """The hidden states at the two edges of a run of blocks in one forward; only one thread uses a run."""

    __slots__ = ("entering", "leaving")

    def __init__(self) -> None:
        self.entering: torch.Tensor | None = None
        """The input of the first block, in place of what the owner computed before it."""
        self.leaving: torch.Tensor | None = None
        """The output of the last block, before the owner does anything else to it."""


class BlockEdge(nn.Module):
    """Wraps the first block of a run, the last, or the only one, and passes its input or output through the edge."""

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


class _PassOn(nn.Module):
    """Replaces a module around the blocks whose weights a peer does not have; the edge cuts off its output."""

    def forward(self, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any) -> Any:
        return args[0] if inputs_embeds is None else inputs_embeds


class _NoEmbedding(nn.Module):
    """Replaces the embedding that a peer does not have; its output adds nothing, and the edge cuts it off anyway."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(())


def stage_class(config: PreTrainedConfig, blocks: BlockRange) -> type[PreTrainedModel]:
    """The family's class with only `blocks`; its block i is block `blocks.start + i` of the full model.

    The class holds no weights outside the blocks.  It is built from the full configuration, so that patterns over the
    absolute index (dense or sparse, window or none) are right.  Its attribute `blocks_path` is the path of the blocks.
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
        self.blocks_path = found.path

    def _init_weights(self: Any, module: nn.Module) -> None:
        # Families access modules here that are gone once the blocks are cut out.
        is_cut = hasattr(self, "blocks_path")
        if not is_cut or any(module is inner for inner in self.get_submodule(self.blocks_path).modules()):
            family._init_weights(self, module)

    return family_subclass(family, {"__init__": __init__, "_init_weights": _init_weights, "_tied_weights_keys": None})


def family_subclass(family: type[PreTrainedModel], attributes: dict[str, Any]) -> type[PreTrainedModel]:
    """A subclass with the family's own name, by which transformers looks up conversion rules of checkpoints."""
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
            setattr(model, name, _NoEmbedding() if isinstance(child, nn.Embedding) else _PassOn())


def attention_implementation(family: type[PreTrainedModel]) -> str:
    """The name of transformers' attention for the family: softcaps, sinks and some alibi need the eager one."""
    return "sdpa" if family._supports_sdpa else "eager"


def load_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    check_size: bool = False,
) -> PreTrainedModel:
    """Build a class made above and fill it from `state`: parameter name -> tensor or safetensors slice.

    transformers does the rest: building on the meta device, conversion of checkpoint layouts, dtype.  The model gets an
    `inference_copy` of the configuration.  `attention` is the name of a registered attention; None: the one of
    transformers that fits the family.  `check_size`: first compare the size of the model with that of `state`, which
    takes the time to build the model once more.

    Raises ModelMismatch if `state` lacks a weight or has one of another shape, OutOfMemory, and UnsupportedModel if the
    family's own code fails.
    """
    if check_size:
        _check_size(model_class, config, state)
    try:
        with building():
            model, info = model_class.from_pretrained(
                None,
                config=inference_copy(config),
                state_dict=dict(state),
                dtype=dtype,
                attn_implementation=attention or attention_implementation(model_class),
                ignore_mismatched_sizes=True,  # reported below, as our own error
                output_loading_info=True,
            )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory("the weights do not fit into memory") from error
    except FOREIGN_FAILURES as error:
        raise refused(config, error) from error
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        raise ModelMismatch(f"weight {name} has shape {tuple(found)}, the configuration wants {tuple(wanted)}")
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelMismatch(f"{len(missing)} weights are missing from the checkpoint, for example {missing[0]}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def _check_size(model_class: type[PreTrainedModel], config: PreTrainedConfig, state: Mapping[str, Any]) -> None:
    """Raise ModelMismatch if the model is larger than `state`, UnsupportedModel if it cannot be built."""
    try:
        with building(), torch.device("meta"):
            model = model_class(inference_copy(config))
        wanted = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    except FOREIGN_FAILURES as error:
        raise refused(config, error) from error
    shapes = (piece.shape if isinstance(piece, torch.Tensor) else piece.get_shape() for piece in state.values())
    check_elements(wanted, sum(map(math.prod, shapes)), "a model")


FOREIGN_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, RuntimeError,
    StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
"""Error classes that a family's own code raises for an invalid configuration."""


def refused(config: PreTrainedConfig, error: BaseException) -> UnsupportedModel:
    """The error for a model whose family fails on its configuration; its own words go to the log."""
    logger.info("the code of %s in transformers: %s: %s", config.model_type, type(error).__name__, str(error)[:1000])
    return UnsupportedModel(
        f"transformers itself cannot compute a {config.model_type} of this configuration",
        hint="Check that config.json is whole, and made for the installed version of transformers; the log has more.",
    )


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Context for building a model: one thread at a time, without progress bars and warnings.

    While transformers builds a model it patches functions of its own for all threads, including the one that ties
    weights. With two threads at once, a model's head was left untied, and the patch stayed for good.
    """
    with _BUILDING:
        verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity(logging.ERROR)
        transformers_logging.disable_progress_bar()
        try:
            with _NothingRandom():
                yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()


class _NothingRandom(TorchFunctionMode):
    """Skips filling tensors on the meta device, which torch does slowly, in Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in _RANDOM:
            tensor = args[0] if args else options["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **options)


_RANDOM = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_})
_BUILDING = threading.RLock()
