"""Whatever generate does to its cache, the peers hold the right tokens in the right rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from blockswarm.client.model.batch.packing import ForwardInputs
from blockswarm.client.model.batch.steps import BatchRows, BatchStep
from blockswarm.client.model.remote import SwarmCache
from blockswarm.client.report import ChainReport
from blockswarm.proto.errors import UsageError
from blockswarm.proto.wire.steps import RowTable, StepPlan, validate_plan
from hypothesis import given
from hypothesis import strategies as st
from support.pending import Answered
from transformers import DynamicCache


def step(rows: BatchRows, tokens: Sequence[str], paddings: Sequence[int] | None = None, answers: int = 1) -> BatchStep:
    """A forward of a batch, one string of one-letter tokens per row ('.' for padding)."""
    if paddings is None:
        paddings = [len(row) - len(row.lstrip(".")) for row in tokens]
    return rows.step(paddings, len(tokens[0]), answers, lambda: tokens)


def plan_of(done: BatchStep) -> StepPlan:
    assert done.plan is not None
    validate_plan(done.plan)
    return done.plan


def test_prompts_expanded_for_beams_are_sent_once_and_forked_by_the_next_step():
    """Three beams of two prompts cost two rows until they differ."""
    prompt = step(BatchRows(), ["abc", "abc", "abc", ".xy", ".xy", ".xy"])
    assert [piece.count for piece in plan_of(prompt).rows] == [3, 2]
    assert prompt.senders == (0, 3)
    assert prompt.receivers == (0, 0, 0, 1, 1, 1)
    fork = step(prompt.after, ["d", "e", "f", "z", "w", "v"], paddings=[0, 0, 0, 1, 1, 1])
    assert plan_of(fork).source_rows == (0, 0, 0, 1, 1, 1)
    assert fork.after.table.lengths == (4, 4, 4, 3, 3, 3)


def test_rows_that_stay_equal_stay_one_row():
    """A chunked prompt is not forked between its chunks."""
    first = step(BatchRows(), ["ab", "ab"])
    second = step(first.after, ["cd", "cd"])
    assert plan_of(second).source_rows is None
    assert second.after.table.lengths == (4,)


def test_only_the_rows_that_differ_are_forked():
    first = step(BatchRows(), ["ab", "ab", "ab"])
    second = step(first.after, ["c", "d", "c"])
    assert second.receivers == (0, 1, 0)
    assert plan_of(second).source_rows == (0, 0)


def test_crop_and_reorder_ride_in_the_next_step():
    first = step(BatchRows(), ["abcd", "efgh"])
    moved = first.after.cropped(2).selected([1, 0])
    second = step(moved, ["x", "y"])
    assert plan_of(second).source_rows == (1, 0)
    assert [piece.start for piece in plan_of(second).rows] == [2, 2]


def test_a_batch_cropped_to_nothing_begins_anew():
    """Also with another number of rows: none of the old ones is kept."""
    first = step(BatchRows(), ["ab", "cd", "ef"])
    second = step(first.after.cropped(2), ["xyz", "uvw"])
    assert plan_of(second).source_rows == ()
    assert second.after.table.lengths == (3, 3)


def test_columns_that_are_all_padding_need_no_step():
    first = step(BatchRows(), ["..", ".."])
    assert first.plan is None
    second = step(first.after, [".a", "bc"], paddings=[3, 2])
    assert plan_of(second).source_rows is None
    assert second.after.table.lengths == (1, 2)


def test_a_row_of_padding_only_is_named_with_no_tokens():
    """The row table must be complete for the rows behind it."""
    first = step(BatchRows(), ["..", "ab"])
    assert [(piece.row, piece.count, piece.answers) for piece in plan_of(first).rows] == [(0, 0, 0), (1, 2, 1)]


def test_only_the_wanted_answers_come_back():
    first = step(BatchRows(), ["..ab", "cdef"], answers=3)
    assert [piece.answers for piece in plan_of(first).rows] == [2, 3]


def test_padding_inside_a_row_is_refused():
    first = step(BatchRows(), [".a", "bc"])
    with pytest.raises(UsageError, match="hides 3 leading columns"):
        step(first.after, [".", "d"], paddings=[3, 0])


def test_another_batch_size_is_refused():
    first = step(BatchRows(), ["ab", "cd"])
    with pytest.raises(UsageError, match="batch of 3 rows"):
        step(first.after, ["e", "f", "g"])


@dataclass
class RecordingPeers:
    """A StepRunner whose rows are lists of numbers; its answers are running sums, so all that came before matters."""

    rows: list[list[float]] = field(default_factory=list)
    table: RowTable = field(default_factory=RowTable)

    answered_steps: int = 0

    def check_open(self) -> None:
        pass

    def open_session(self, max_tokens: int, max_rows: int, on_event: object = None) -> RecordingPeers:
        return self

    def report(self, since: int = 0) -> ChainReport:
        return ChainReport()

    def run(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        validate_plan(plan)
        self.table = self.table.after(plan)
        if plan.source_rows is not None:
            self.rows = [list(self.rows[source]) for source in plan.source_rows]
        tokens = hidden[:, 0].tolist()
        answers: list[float] = []
        for piece in plan.rows:
            if piece.row == len(self.rows):
                self.rows.append([])
            new, tokens = tokens[: piece.count], tokens[piece.count :]
            self.rows[piece.row] = self.rows[piece.row][: piece.start] + new
            sums = torch.tensor(self.rows[piece.row]).cumsum(0).tolist()
            answers += sums[len(sums) - piece.answers :]
        return torch.tensor(answers)[:, None]

    def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> Answered:
        return Answered(self.run(plan, hidden))

    def last_trip(self) -> None: ...

    def abort(self, confirmed: Sequence[int]) -> None: ...

    def close(self, confirmed: Sequence[int]) -> None: ...


class Twins:
    """A SwarmCache and transformers' own cache, driven alike; the latter keeps each token as its key."""

    def __init__(self) -> None:
        self.peers = RecordingPeers()
        self.swarm = SwarmCache(self.peers, max_tokens=10**6, max_rows=1024)
        self.plain = DynamicCache()
        self.mask = torch.empty(0, 0, dtype=torch.long)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, keep: int) -> None:
        """(B, T) tokens; (B, T) mask, whose zeros are on the left."""
        self.mask = torch.cat([self.mask.view(len(mask), -1), mask], dim=1)
        inputs = ForwardInputs(tokens, self.mask, None, keep)
        self.swarm.expect(inputs)
        output = self.swarm.compute(tokens[..., None].float())[..., 0]
        held, _ = self.plain.update(tokens[:, None, :, None].float(), tokens[:, None, :, None].float(), 0)
        expected = (held[:, 0, :, 0] * self.mask).cumsum(1)[:, -tokens.shape[1] :]
        wanted = mask.bool()
        wanted[:, : tokens.shape[1] - (keep or tokens.shape[1])] = False
        assert torch.equal(output[wanted], expected[wanted])
        assert not output[~wanted].any()

    def check(self) -> None:
        assert self.swarm.get_seq_length() == self.plain.get_seq_length()
        if self.plain.get_seq_length():
            held = self.plain.layers[0].keys[:, 0, :, 0]
            assert torch.equal(self.swarm.input_ids().float(), held)
            assert self.swarm.batch_size == len(held)


@pytest.mark.long
@given(st.data())
def test_peers_hold_what_transformers_own_cache_would_hold(data: st.DataObject):
    """Random forwards, crops, reorders, repetitions and selections; small alphabets make many rows equal."""
    twins = Twins()
    batch = data.draw(st.integers(1, 4), label="batch")
    padding = data.draw(st.lists(st.integers(0, 4), min_size=batch, max_size=batch), label="padding")
    for _ in range(data.draw(st.integers(1, 8), label="operations")):
        columns = twins.swarm.columns
        action = data.draw(st.sampled_from(["forward", "forward", "crop", "reorder", "repeat", "select"]))
        if action == "forward" or columns == 0:
            count = data.draw(st.integers(1, 4), label="count")
            alphabet = st.lists(st.integers(1, 2), min_size=batch * count, max_size=batch * count)
            tokens = torch.tensor(data.draw(alphabet, label="tokens")).view(batch, count)
            mask = (torch.arange(columns, columns + count) >= torch.tensor(padding)[:, None]).long()
            twins.forward(tokens, mask, data.draw(st.integers(0, count), label="keep"))
        elif action == "crop":
            remove = data.draw(st.integers(0, columns), label="remove")
            twins.swarm.crop(-remove)
            twins.plain.crop(-remove)
            twins.mask = twins.mask[:, : columns - remove]
        else:
            if action == "repeat":
                repeats = data.draw(st.integers(1, 2), label="repeats")
                twins.swarm.batch_repeat_interleave(repeats)
                twins.plain.batch_repeat_interleave(repeats)
                chosen = [row for row in range(batch) for _ in range(repeats)]
            else:
                size = batch if action == "reorder" else data.draw(st.integers(1, 4), label="size")
                chosen = data.draw(st.lists(st.integers(0, batch - 1), min_size=size, max_size=size), label="chosen")
                method = "reorder_cache" if action == "reorder" else "batch_select_indices"
                getattr(twins.swarm, method)(torch.tensor(chosen))
                getattr(twins.plain, method)(torch.tensor(chosen))
            batch, padding, twins.mask = len(chosen), [padding[row] for row in chosen], twins.mask[chosen]
        if batch > 32:
            break
        twins.check()


def test_crop_of_nothing_and_of_more_than_there_is():
    """generate calls crop(0) after every accepted guess; positive numbers are the interface of old versions."""
    twins = Twins()
    twins.forward(torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.long), 0)
    twins.swarm.crop(0)
    assert twins.swarm.get_seq_length() == 3
    with pytest.raises(ValueError):
        twins.swarm.crop(2)
    twins.swarm.crop(-5)
    assert twins.swarm.get_seq_length() == 0
