"""Find out by trying whether a family may be served: cut a tiny copy of the model, and compare with the whole.

The tiny copy has random weights and the pattern of block types of the real model.  Three chained stages and the
client's ends must give its logits.  This catches what no table of families would know: positions added before the
blocks, windows that exist only in a mask, state that cannot be rolled back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ...proto.errors import UnsupportedModel
from ...proto.family import ends_class, family_class, find_blocks, load_model, random_model, stage_class, tiny_config
from ...routing.swarm import BlockRange
from .kv import RowKV
from .stage import RowSlice, Stage, StageView

TOLERANCE = 1e-5
"""Relative to the largest logit (about 4), in float32: sums run in another order where a prompt is cut differently."""

_LONG = 26
"""Tokens of a sequence beyond the tiny copy's windows and its original context."""
_SHORT = 20
"""Tokens of a sequence that is beyond them too, but shorter."""

_results: dict[str, UnsupportedModel | None] = {}


def check_family(config: PreTrainedConfig) -> None:
    """Raise UnsupportedModel, with the reason, unless models like `config` survive being cut into stages.

    Takes about half a second the first time, nothing after that.
    """
    key = f"{type(config).__name__} {config.to_json_string()}"
    if key not in _results:
        _results[key] = _reason_against(config)
    reason = _results[key]
    if reason is not None:
        raise reason


def _reason_against(config: PreTrainedConfig) -> UnsupportedModel | None:
    try:
        _check_caches(config)
        _check_tiny_copy(tiny_config(config))
    except UnsupportedModel as error:
        return error
    except Exception as error:  # whatever goes wrong inside a family's code is the reason to refuse it
        return UnsupportedModel(f"{config.model_type} cannot be cut into stages: {type(error).__name__}: {error}")
    return None


@torch.inference_mode()
def _check_tiny_copy(config: PreTrainedConfig) -> None:
    """Raises UnsupportedModel, or whatever the family's code raises."""
    model = random_model(config)
    long, short = _random_tokens(config, _LONG, seed=1), _random_tokens(config, _SHORT, seed=2)
    # The shorter one first: some families remember the longest sequence they have seen.
    short_logits = model(input_ids=short, use_cache=False).logits
    long_logits = model(input_ids=long, use_cache=False).logits
    trial = _Trial(model, config)

    row = trial.new_row()
    trial.compare("a prompt in chunks and cached decoding", row, long, long_logits, (0, 15, 21, 22, 23, 24))
    trial.compare("a second, shorter sequence", trial.new_row(), short, short_logits, (0, _SHORT))
    trial.compare("going back to an earlier token", row, long, long_logits, (17, 20, 21))
    fork = [cache.fork() for cache in row]
    trial.run(fork, short, (9, 12, 13))
    trial.compare("a sequence whose fork went another way", row, long, long_logits, (21, 22, 25))
    trial.compare("a fork", [cache.fork() for cache in row], long, long_logits, (25, _LONG))
    trial.use_views_of_single_blocks()
    trial.compare("single blocks of a stage", trial.new_row(), long, long_logits, (0, 15, 16, _LONG))


class _Trial(nn.Module):
    """A tiny model cut into three stages and two ends; it is itself the remote module of the ends."""

    def __init__(self, model: PreTrainedModel, config: PreTrainedConfig) -> None:
        super().__init__()
        self._model_type = config.model_type
        found = find_blocks(model, config.num_hidden_layers)
        prefix = f"{found.owner_path}.{found.name}.".lstrip(".")
        weights = model.state_dict()
        ends = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
        # The ends hold this module, so it must not hold them as a submodule.
        self._ends = (load_model(ends_class(config, lambda: self), config, ends),)
        self._stages = [_load_stage(config, weights, prefix, blocks) for blocks in _cuts(config.num_hidden_layers)]
        self._views = [stage.view(stage.blocks) for stage in self._stages]
        self._rows: Sequence[RowKV] = ()
        self._start = 0

    def use_views_of_single_blocks(self) -> None:
        self._views = [stage.view(BlockRange(block, block + 1)) for stage in self._stages for block in stage.blocks]

    def new_row(self) -> list[RowKV]:
        return [view.new_row(max_tokens=_LONG) for view in self._views]

    def run(self, row: Sequence[RowKV], tokens: torch.Tensor, cuts: Sequence[int]) -> torch.Tensor:
        """Logits (1, T, V) of tokens cuts[0]..cuts[-1], computed in the pieces between the cuts."""
        logits = []
        self._rows = row
        for start, stop in itertools.pairwise(cuts):
            self._start = start
            positions = torch.arange(start, stop)[None]
            output = self._ends[0](input_ids=tokens[:, start:stop], position_ids=positions, use_cache=False)
            logits.append(output.logits)
        return torch.cat(logits, dim=1)

    def compare(
        self, what: str, row: Sequence[RowKV], tokens: torch.Tensor, expected: torch.Tensor, cuts: Sequence[int]
    ) -> None:
        """Raises UnsupportedModel if the logits differ."""
        difference = (self.run(row, tokens, cuts) - expected[:, cuts[0] : cuts[-1]]).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):  # NaN differs
            raise UnsupportedModel(
                f"{self._model_type} cut into stages differs from the whole model by {difference:.1e} in {what}"
            )

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = hidden_states[0]
        for view, cache in zip(self._views, self._rows, strict=True):
            hidden = _forward_checked(view, hidden, cache, self._start)
        return hidden[None]


def _forward_checked(view: StageView, hidden: torch.Tensor, cache: RowKV, start: int) -> torch.Tensor:
    """Raises UnsupportedModel if the blocks write into their input, which others keep, or keep no cache."""
    before = hidden.clone()
    output = view.forward(hidden, [RowSlice(cache, start, hidden.shape[0])])
    if not torch.equal(hidden, before):
        raise UnsupportedModel("its blocks overwrite their input")
    if len(cache.export()) != len(view.blocks):
        raise UnsupportedModel("some of its blocks keep no attention cache")
    return output


def _check_caches(config: PreTrainedConfig) -> None:
    """Look at the caches that transformers itself would make for the family. Raises UnsupportedModel."""
    family_class(config)
    cache = DynamicCache(config=config)
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
        raise UnsupportedModel(
            f"{config.model_type} has linear-attention blocks, whose state cannot be rolled back to an earlier token"
        )
    if any(cache.is_dummy):
        raise UnsupportedModel(f"{config.model_type} has blocks without an attention cache of their own")


def _cuts(num_blocks: int) -> list[BlockRange]:
    """Three unequal ranges; fewer if there are fewer blocks."""
    bounds = sorted({0, num_blocks // 3, num_blocks // 2, num_blocks})
    return [BlockRange(start, stop) for start, stop in itertools.pairwise(bounds)]


def _load_stage(config: PreTrainedConfig, weights: dict[str, Any], prefix: str, blocks: BlockRange) -> Stage:
    state: dict[str, Any] = {}
    for block in blocks:
        old, new = f"{prefix}{block}.", f"{prefix}{block - blocks.start}."
        state |= {new + name.removeprefix(old): weights[name] for name in weights if name.startswith(old)}
    return Stage(load_model(stage_class(config, blocks), config, state), blocks)


def _random_tokens(config: PreTrainedConfig, count: int, seed: int) -> torch.Tensor:
    """(1, count), without the first few, which families use for padding."""
    return torch.randint(3, config.vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))
