"""Rows of several sessions in one step: each gets what the whole model gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import BatchingRoute, RowOutOfMemory, RowSpan, Stage, StageView, attention_of
from blockswarm.peer.engine.blocks.view import EXPANDED_TOKENS
from blockswarm.peer.engine.cache.row import RowKV
from blockswarm.proto.errors import OutOfMemory
from blockswarm.proto.model.family import find_blocks, load_model, stage_class
from blockswarm.proto.model.tiny import random_model
from blockswarm.routing.swarm import BlockRange
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from support.tiny_models import PADDED_MODELS, SERVED_MODELS, tiny_model_config
from transformers import PreTrainedModel

TOLERANCE = 1e-5
"""Relative to the largest output, in float32: sums run in another order where there are more rows."""
MAX_TOKENS = 64


class WholeModel:
    """A model that was not cut, and what goes into and comes out of each of its blocks."""

    def __init__(self, name: str) -> None:
        self.config = tiny_model_config(name)
        self.model: PreTrainedModel = random_model(self.config)
        self.blocks = find_blocks(self.model, self.config.num_hidden_layers).blocks

    @torch.inference_mode()
    def run(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """For tokens (T,) what passes between the blocks, (T, H) each: entry i enters block i."""
        between: list[torch.Tensor] = []

        def note_input(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            between.append((args[0] if args else kwargs["hidden_states"])[0].clone())

        def note_output(block: Any, args: tuple[Any, ...], output: Any) -> None:
            between.append((output[0] if isinstance(output, tuple) else output)[0].clone())

        hooks = [block.register_forward_pre_hook(note_input, with_kwargs=True) for block in self.blocks]
        hooks.append(self.blocks[-1].register_forward_hook(note_output))
        self.model(input_ids=tokens[None], use_cache=False)
        for hook in hooks:
            hook.remove()
        assert len(between) == len(self.blocks) + 1
        return between

    def stage(
        self, route: BatchingRoute, dtype: torch.dtype = torch.float32, expanded_tokens: int = EXPANDED_TOKENS
    ) -> Stage:
        """All blocks of the model."""
        everything = BlockRange(0, len(self.blocks))
        model_class = stage_class(self.config, everything)
        prefix = find_blocks(self.model, len(self.blocks))
        path = f"{prefix.owner_path}.{prefix.name}.".lstrip(".")
        state = {name: tensor for name, tensor in self.model.state_dict().items() if name.startswith(path)}
        model = load_model(model_class, self.config, state, dtype, attention_of(route))
        return Stage.of(model, everything, route, expanded_tokens)


def route_of(name: str) -> BatchingRoute:
    return BatchingRoute.PADDED if name in PADDED_MODELS else BatchingRoute.PACKED


def random_tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 257, (count,), generator=torch.Generator().manual_seed(seed))


def largest_difference(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest expected value."""
    return ((output - expected).abs().max() / expected.abs().max()).item()


@dataclass
class Session:
    """A row on its way along the tokens of one text."""

    kv: RowKV
    entering: torch.Tensor
    leaving: torch.Tensor

    def take(self, start: int, count: int) -> tuple[torch.Tensor, RowSpan, torch.Tensor]:
        """Input, row and expected output of some of the text."""
        tokens = slice(start, start + count)
        return self.entering[tokens], RowSpan(self.kv, start, count), self.leaving[tokens]


def run_step(view: StageView, pieces: Sequence[tuple[torch.Tensor, RowSpan, torch.Tensor]]) -> list[float]:
    """How far each row is off."""
    hidden, rows, expected = zip(*pieces, strict=True)
    output = view.forward(torch.cat(hidden), rows)
    parts = output.split([row.count for row in rows])
    return [largest_difference(part, wanted) for part, wanted in zip(parts, expected, strict=True)]


SCHEDULE: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((0, 0, 13), (1, 0, 5)),
    ((1, 5, 1), (0, 13, 1), (2, 0, 1)),
    ((3, 0, 30), (0, 14, 1), (1, 6, 9), (2, 1, 1)),
    ((0, 15, 1), (1, 15, 1), (2, 2, 1), (3, 30, 1)),
    ((2, 3, 20), (3, 20, 4), (0, 16, 1)),
    ((0, 9, 1), (1, 16, 1), (2, 23, 1), (3, 24, 1)),
)
"""Steps of (session, start, count): prompts and their chunks beside single tokens, in turns, back at times, past all
windows (8) and chunks (8) of the tiny models."""


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_every_row_of_a_mixed_step_equals_the_whole_model(name: str) -> None:
    """Every family; inside the stage too, where sessions enter behind its first and leave before its last block."""
    whole = WholeModel(name)
    stage = whole.stage(route_of(name))
    between = [whole.run(random_tokens(36, seed)) for seed in range(4)]
    for blocks in (BlockRange(0, 6), BlockRange(1, 4)):
        view = stage.view(blocks)
        sessions = [Session(view.new_row(MAX_TOKENS), text[blocks.start], text[blocks.stop]) for text in between]
        for step in SCHEDULE:
            off = run_step(view, [sessions[index].take(start, count) for index, start, count in step])
            assert max(off) <= TOLERANCE, (step, off)


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_a_row_does_not_depend_on_its_company(name: str) -> None:
    """The same row alone and in a step with others, whose activations are a hundred times as large."""
    stage = WholeModel(name).stage(route_of(name))
    view = stage.view(stage.blocks)
    alone, together, others = view.new_row(MAX_TOKENS), view.new_row(MAX_TOKENS), [view.new_row(64) for _ in range(3)]
    generator = torch.Generator().manual_seed(0)
    for count, counts in ((9, (3, 1, 20)), (1, (1, 12, 1)), (1, (1, 1, 1)), (4, (1, 1, 7))):
        own = torch.randn(count, 64, generator=generator)
        company = 100 * torch.randn(sum(counts), 64, generator=generator)
        expected = view.forward(own, [RowSpan(alone, alone.length, count)])
        rows = [RowSpan(row, row.length, n) for row, n in zip(others, counts, strict=True)]
        rows.insert(1, RowSpan(together, together.length, count))
        before = counts[0]
        output = view.forward(torch.cat([company[:before], own, company[before:]]), rows)
        assert largest_difference(output[before : before + count], expected) <= TOLERANCE


def test_a_latent_cache_is_never_expanded_for_more_tokens_than_fit() -> None:
    """Also not if the step has more: it is then computed in several packs."""
    whole = WholeModel("deepseek_v3")
    stage = whole.stage(BatchingRoute.PACKED, expanded_tokens=40)
    view = stage.view(stage.blocks)
    expanded: list[int] = []
    for block in stage.hosted.values():
        expansion = block.module.get_submodule("self_attn.kv_b_proj")
        expansion.register_forward_pre_hook(lambda _, latents: expanded.append(latents[0].shape[-2]))
    sessions = []
    for seed in range(4):
        between = whole.run(random_tokens(36, seed))
        sessions.append(Session(view.new_row(MAX_TOKENS), between[0], between[-1]))
    for step in SCHEDULE:
        assert max(run_step(view, [sessions[index].take(start, count) for index, start, count in step])) <= TOLERANCE
    assert max(expanded) <= 40 < max(sum(start + count for _, start, count in step) for step in SCHEDULE)


@dataclass
class Text:
    """A row, and the tokens that it has."""

    kv: RowKV
    tokens: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


class StepMachine(RuleBasedStateMachine):
    """Any schedule of rows, chunks, ways back and forks gives each row what the whole model gives its tokens."""

    name: str
    whole: WholeModel
    view: StageView

    @initialize()
    def start(self) -> None:
        self.texts = [Text(self.view.new_row(MAX_TOKENS))]
        self.seed = 0

    @rule()
    def open(self) -> None:
        if len(self.texts) < 5:
            self.texts.append(Text(self.view.new_row(MAX_TOKENS)))

    @rule(which=st.integers(0, 4))
    def fork(self, which: int) -> None:
        text = self.texts[which % len(self.texts)]
        if len(self.texts) < 5:
            self.texts.append(Text(text.kv.fork(), text.tokens))

    @rule(
        which=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
        counts=st.lists(st.sampled_from((1, 1, 1, 2, 7, 19)), min_size=5, max_size=5),
        back=st.lists(st.sampled_from((0, 0, 0, 1, 6)), min_size=5, max_size=5),
    )
    def step(self, which: list[int], counts: list[int], back: list[int]) -> None:
        pieces = []
        for index in which:
            if index >= len(self.texts) or len(self.texts[index].tokens) + counts[index] > 40:
                continue
            text, self.seed = self.texts[index], self.seed + 1
            start = max(0, len(text.tokens) - back[index])
            text.tokens = torch.cat([text.tokens[:start], random_tokens(counts[index], self.seed)])
            between = self.whole.run(text.tokens)
            pieces.append(Session(text.kv, between[0], between[-1]).take(start, counts[index]))
        if pieces:
            assert max(run_step(self.view, pieces)) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("name", ["gemma3", "deepseek_v3", "gpt_oss", "falcon-alibi"])
def test_any_schedule_equals_the_whole_model(name: str) -> None:
    """Windows, a latent cache with experts, sinks, and the padded route with alibi."""
    model = WholeModel(name)
    stage = model.stage(route_of(name))

    class Machine(StepMachine):
        whole = model
        view = stage.view(stage.blocks)

    Machine.TestCase.settings = settings(max_examples=10, stateful_step_count=12)
    Machine.TestCase("runTest").runTest()


@pytest.fixture(scope="module", params=BatchingRoute, ids=lambda route: route.value)
def view(request: pytest.FixtureRequest) -> StageView:
    stage = WholeModel("llama").stage(request.param)
    return stage.view(stage.blocks)


def hidden(count: int) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(count))


def content(rows: Sequence[RowKV]) -> list[torch.Tensor]:
    return [tensor.clone() for row in rows for block in row.export() for tensor in (block.keys, block.values)]


def test_a_row_without_room_is_named_and_nothing_is_changed(view: StageView) -> None:
    """Also not the rows before it, which are to go back: they can be computed again without it."""
    rows = [view.new_row(max_tokens) for max_tokens in (20, 8, 20)]
    view.forward(hidden(18), [RowSpan(row, 0, 6) for row in rows])
    before = content(rows)
    step = [RowSpan(rows[0], 2, 1), RowSpan(rows[1], 6, 3), RowSpan(rows[2], 6, 1)]
    with pytest.raises(RowOutOfMemory, match="8 tokens") as error:
        view.forward(hidden(5), step)
    assert error.value.row_index == 1
    assert isinstance(error.value, OutOfMemory)
    assert [row.length for row in rows] == [6, 6, 6]
    assert all(torch.equal(now, then) for now, then in zip(content(rows), before, strict=True))
    del step[1]
    view.forward(hidden(2), step)
    assert [row.length for row in rows] == [3, 6, 7]


class FailingRow(RowKV):
    """A row for which there is no memory in one of its blocks, once."""

    fails_in_block: int | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        if layer_idx == self.fails_in_block:
            self.fails_in_block = None
            raise MemoryError
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def test_after_a_step_that_failed_half_way_it_can_be_done_again(view: StageView) -> None:
    failing = FailingRow(view.blocks, 20)
    rows, twins = [view.new_row(20), failing, view.new_row(20)], [view.new_row(20) for _ in range(3)]
    for group in (rows, twins):
        view.forward(hidden(15), [RowSpan(row, 0, 5) for row in group])
    failing.fails_in_block = view.blocks.start + 2
    with pytest.raises(MemoryError):
        view.forward(hidden(6), [RowSpan(row, 5, count) for row, count in zip(rows, (1, 4, 1), strict=True)])
    assert failing.fails_in_block is None
    assert [row.length for row in rows] == [5, 5, 5]
    again, straight = (view.forward(hidden(3), [RowSpan(row, 5, 1) for row in group]) for group in (rows, twins))
    assert torch.equal(again, straight)


def test_rows_that_make_no_step_are_refused(view: StageView) -> None:
    row, other = view.new_row(20), view.new_row(20)
    for rows in (
        [],
        [RowSpan(row, 0, 2)],
        [RowSpan(row, 0, 3), RowSpan(other, 0, 0)],
        [RowSpan(row, 0, 4), RowSpan(other, 0, -1)],
        [RowSpan(row, 0, 2), RowSpan(row, 0, 1)],
        [RowSpan(row, 0, 2), RowSpan(other, 1, 1)],
        [RowSpan(row, 0, 2), RowSpan(other, -1, 1)],
    ):
        with pytest.raises(ValueError, match="row"):
            view.forward(hidden(3), rows)
    assert row.length == other.length == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon"])
def test_sixteen_bits_are_near_to_thirty_two(name: str, dtype: torch.dtype) -> None:
    """Both kinds of attention, and the padded route. Loosely: bfloat16 has 8 bits, and loses some in every block.

    No experts: which of them are chosen can change with the last bit.
    """
    whole = WholeModel(name)
    stage = whole.stage(route_of(name), dtype)
    view = stage.view(stage.blocks)
    sessions = []
    for seed in range(2):
        between = whole.run(random_tokens(30, seed))
        sessions.append(Session(view.new_row(MAX_TOKENS), between[0].to(dtype), between[-1]))
    for step in (((0, 0, 20), (1, 0, 3)), ((0, 20, 1), (1, 3, 1)), ((0, 21, 1), (1, 4, 9))):
        off = run_step(view, [sessions[index].take(start, count) for index, start, count in step])
        assert max(off) <= 5e-2, off
