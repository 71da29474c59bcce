"""Find out by trying whether a family can be served, and how: cut a tiny copy of the model and compare with the whole.

The tiny copy has random weights and the pattern of block types of the real model.  Three chained stages and the
client's ends must give its logits, for single rows and for several rows in a step.  The fastest route that does is
chosen.  This catches what no table of families would know: positions added before the blocks, windows that exist only
in a mask, state that cannot be rolled back, positions that depend on the longest row of a step.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ....proto.errors import UnsupportedModel
from ....proto.model.ends import ends_class
from ....proto.model.family import FOREIGN_FAILURES, family_class, find_blocks, load_model, refused, stage_class
from ....proto.model.tiny import FIRST_TEXT_TOKEN, random_model, tiny_config
from ....routing.swarm import BlockRange
from ..cache.row import RowKV
from .obstacles import obstacle
from .rows import RowSpan
from .stage import BatchingRoute, Stage, StageView, attention_of

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Relative to the largest logit (about 4), in float32: a prompt that is cut elsewhere is summed in another order."""

_LONG = 26
"""Length of a sequence that exceeds the tiny copy's windows and its original context."""
_SHORT = 20
"""Length of a shorter sequence that exceeds them, too."""


class FamilyRoutes:
    """The results of the check, by configuration."""

    def __init__(self, find: Callable[[PreTrainedConfig], BatchingRoute | UnsupportedModel]) -> None:
        """`find` as `find_route`."""
        self._find = find
        self._results: dict[str, BatchingRoute | UnsupportedModel] = {}

    def of(self, config: PreTrainedConfig) -> BatchingRoute:
        """Return the route for a configuration. Raises UnsupportedModel."""
        key = f"{type(config).__name__} {config.to_json_string()}"
        if key not in self._results:
            self._results[key] = self._find(config)
        result = self._results[key]
        if isinstance(result, UnsupportedModel):
            raise result
        return result


def check_family(config: PreTrainedConfig) -> BatchingRoute:
    """Return the fastest route by which models like `config`, cut into stages, compute the same as in one piece.

    Raises UnsupportedModel, with the reason, if there is none. Takes about a second the first time, nothing after that.
    """
    return _routes.of(config)


def find_route(config: PreTrainedConfig) -> BatchingRoute | UnsupportedModel:
    """As `check_family`, but without its memory; a refusal is returned."""
    try:
        _check_caches(config)
        tiny = tiny_config(config)
    except UnsupportedModel as error:
        return error
    except FOREIGN_FAILURES as error:
        return refused(config, error)
    try:
        with _family_code(tiny):
            return _try_routes(tiny)
    except UnsupportedModel as error:
        return _reason(tiny, error)


@contextmanager
def _family_code(tiny: PreTrainedConfig) -> Iterator[None]:
    """Turn any error inside a family's code into UnsupportedModel, a reason to refuse the family or one route."""
    try:
        yield
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"{tiny.model_type} fails where some of its blocks run without the rest of the model"
        ) from error


def _reason(tiny: PreTrainedConfig, error: UnsupportedModel) -> UnsupportedModel:
    """Return an error that names the obstacle, if one is found, for an error that says only where the check failed."""
    cause = error.__cause__ or error
    logger.info("the check of %s: %s: %s", tiny.model_type, type(cause).__name__, str(cause)[:1000])
    try:
        found = obstacle(tiny)
    except UnsupportedModel as reason:
        return reason
    return error if found is None else UnsupportedModel(f"{tiny.model_type} {found}")


_routes = FamilyRoutes(find_route)


@dataclass(frozen=True, slots=True)
class _Sequence:
    tokens: torch.Tensor
    """(1, T)"""
    logits: torch.Tensor
    """(1, T, V), of the whole model."""


@torch.inference_mode()
def _try_routes(config: PreTrainedConfig) -> BatchingRoute:
    """Return the first route whose results equal those of the whole model.

    Raises UnsupportedModel with the reason against the last route, or whatever the whole model's own code raises.
    """
    model = random_model(config)
    # The shorter one first: some families remember the longest sequence they have seen.
    short = _whole_model(model, _random_tokens(config, _SHORT, seed=2))
    long = _whole_model(model, _random_tokens(config, _LONG, seed=1))
    reason: UnsupportedModel | None = None
    for route in BatchingRoute:
        try:
            with _family_code(config):
                _check_route(_Trial(model, config, route), long, short)
        except UnsupportedModel as error:
            reason = error
        else:
            return route
    assert reason is not None
    raise reason


def _whole_model(model: PreTrainedModel, tokens: torch.Tensor) -> _Sequence:
    return _Sequence(tokens, model(input_ids=tokens, use_cache=False).logits)


def _check_route(trial: _Trial, long: _Sequence, short: _Sequence) -> None:
    """Raises UnsupportedModel, or whatever the family's code raises."""
    row = trial.new_row()
    trial.compare("a prompt in chunks and cached decoding", row, long, (0, 15, 21, 22, 23, 24))
    trial.compare("a second, shorter sequence", trial.new_row(), short, (0, _SHORT))
    trial.compare("going back to an earlier token", row, long, (17, 20, 21))
    fork = [cache.fork() for cache in row]
    trial.run([_Piece(fork, short, 9, 12)])
    trial.run([_Piece(fork, short, 12, 13)])
    trial.compare("a sequence whose fork went another way", row, long, (21, 22, 25))
    trial.compare("a fork", [cache.fork() for cache in row], long, (25, _LONG))
    _check_steps_of_several_rows(trial, long, short)
    trial.use_views_of_single_blocks()
    trial.compare("single blocks of a stage", trial.new_row(), long, (0, 15, 16, _LONG))


def _check_steps_of_several_rows(trial: _Trial, long: _Sequence, short: _Sequence) -> None:
    """Check prompts in chunks beside decoding, rows of very different lengths, going back, and forks."""
    first, second, third = trial.new_row(), trial.new_row(), trial.new_row()
    steps = [
        [_Piece(first, long, 0, 15), _Piece(second, short, 0, 1)],
        [_Piece(second, short, 1, 3), _Piece(first, long, 15, 16), _Piece(third, short, 0, 9)],
        [_Piece(first, long, 16, 17), _Piece(second, short, 3, 4), _Piece(third, short, 9, 10)],
        [_Piece(third, short, 10, _SHORT), _Piece(second, short, 4, 5), _Piece(first, long, 17, 24)],
        [_Piece(second, short, 2, 3), _Piece(first, long, 20, 21), _Piece(third, short, 18, 19)],
    ]
    for step in steps:
        trial.compare_step("a step of several rows", step)
    fork = [cache.fork() for cache in first]
    step = [_Piece(fork, long, 21, 22), _Piece(first, long, 21, _LONG), _Piece(second, short, 3, 4)]
    trial.compare_step("a step of several rows, one of them a fork", step)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens [start, stop) of a sequence, for a row that has the tokens before them."""

    row: Sequence[RowKV]
    """One cache per view of the trial."""
    sequence: _Sequence
    start: int
    stop: int


class _Trial(nn.Module):
    """A tiny model cut into three stages and two ends; it is itself the remote module of the ends."""

    def __init__(self, model: PreTrainedModel, config: PreTrainedConfig, route: BatchingRoute) -> None:
        super().__init__()
        self._model_type = config.model_type
        found = find_blocks(model, config.num_hidden_layers)
        prefix = f"{found.path}."
        weights = model.state_dict()
        ends = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
        # The ends hold this module, so it must not hold them as a submodule.
        self._ends = (load_model(ends_class(config, lambda: self), config, ends),)
        cuts = _cuts(config.num_hidden_layers)
        self._stages = [_load_stage(config, weights, prefix, blocks, route) for blocks in cuts]
        self._views = [stage.view(stage.blocks) for stage in self._stages]
        self._step: Sequence[_Piece] = ()

    def use_views_of_single_blocks(self) -> None:
        self._views = [stage.view(BlockRange(block, block + 1)) for stage in self._stages for block in stage.blocks]

    def new_row(self) -> list[RowKV]:
        return [view.new_row(max_tokens=_LONG) for view in self._views]

    def run(self, step: Sequence[_Piece]) -> torch.Tensor:
        """Compute the pieces' tokens in one step; return their logits (1, T, V), concatenated."""
        self._step = step
        tokens = torch.cat([piece.sequence.tokens[:, piece.start : piece.stop] for piece in step], dim=1)
        positions = torch.cat([torch.arange(piece.start, piece.stop) for piece in step])[None]
        logits: torch.Tensor = self._ends[0](input_ids=tokens, position_ids=positions, use_cache=False).logits
        return logits

    def compare(self, what: str, row: Sequence[RowKV], sequence: _Sequence, cuts: Sequence[int]) -> None:
        """Compare tokens cuts[0]..cuts[-1] of one row, with a step between every two cuts. Raises UnsupportedModel."""
        for start, stop in itertools.pairwise(cuts):
            self.compare_step(what, [_Piece(row, sequence, start, stop)])

    def compare_step(self, what: str, step: Sequence[_Piece]) -> None:
        """Raises UnsupportedModel if the logits differ from those of the whole model."""
        expected = torch.cat([piece.sequence.logits[:, piece.start : piece.stop] for piece in step], dim=1)
        difference = (self.run(step) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):  # NaN differs
            raise UnsupportedModel(
                f"{self._model_type} cut into stages differs from the whole model by {difference:.1e} in {what}"
            )

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = hidden_states[0]
        for index, view in enumerate(self._views):
            rows = [RowSpan(piece.row[index], piece.start, piece.stop - piece.start) for piece in self._step]
            hidden = _forward_checked(view, hidden, rows)
        return hidden[None]


def _forward_checked(view: StageView, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> torch.Tensor:
    """Raises UnsupportedModel if the blocks write into their input, which others still use, or keep no cache."""
    before = hidden.clone()
    output = view.forward(hidden, rows)
    if not torch.equal(hidden, before):
        raise UnsupportedModel("the model's blocks overwrite their input")
    if any(len(row.kv.export()) != len(view.blocks) for row in rows):
        raise UnsupportedModel("some of the model's blocks keep no attention cache")
    return output


def _check_caches(config: PreTrainedConfig) -> None:
    """Check the caches that transformers itself would make for the family. Raises UnsupportedModel."""
    family_class(config)
    cache = DynamicCache(config=config)
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers):
        raise UnsupportedModel(
            f"{config.model_type} has linear-attention blocks, whose state cannot be rolled back to an earlier token"
        )
    if any(hasattr(layer, "update_indexer") for layer in cache.layers):
        raise UnsupportedModel(f"{config.model_type} keeps keys of an index beside its attention cache")
    if any(cache.is_dummy):
        raise UnsupportedModel(f"{config.model_type} has blocks without an attention cache of their own")


def _cuts(num_blocks: int) -> list[BlockRange]:
    """Three unequal ranges; fewer if there are fewer blocks."""
    bounds = sorted({0, num_blocks // 3, num_blocks // 2, num_blocks})
    return [BlockRange(start, stop) for start, stop in itertools.pairwise(bounds)]


def _load_stage(
    config: PreTrainedConfig, weights: dict[str, Any], prefix: str, blocks: BlockRange, route: BatchingRoute
) -> Stage:
    state: dict[str, Any] = {}
    for block in blocks:
        old, new = f"{prefix}{block}.", f"{prefix}{block - blocks.start}."
        state |= {new + name.removeprefix(old): weights[name] for name in weights if name.startswith(old)}
    model = load_model(stage_class(config, blocks), config, state, attention=attention_of(route))
    return Stage.of(model, blocks, route)


def _random_tokens(config: PreTrainedConfig, count: int, seed: int) -> torch.Tensor:
    """(1, count), without special tokens."""
    return torch.randint(FIRST_TEXT_TOKEN, config.vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))
