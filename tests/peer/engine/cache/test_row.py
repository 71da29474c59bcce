"""A row's cache against the obvious one: a list of tensors that is concatenated, cut and copied."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from blockswarm.peer.engine.cache.row import BlockKV, KvUsage, RowKV
from blockswarm.proto.errors import OutOfMemory
from blockswarm.routing.swarm import BlockRange
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from transformers.masking_utils import find_first_full_attention_index

BLOCKS = BlockRange(3, 5)
MAX_TOKENS = 200
HEADS, KEY_SIZE, VALUE_SIZE = 2, 4, 3
TOKEN_BYTES = len(BLOCKS) * HEADS * (KEY_SIZE + VALUE_SIZE) * 4


def random_states(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, HEADS, count, KEY_SIZE, generator=generator)
    return keys, torch.randn(1, HEADS, count, VALUE_SIZE, generator=generator)


def write(row: RowKV, count: int, seed: int) -> None:
    """A whole forward: every block writes `count` tokens."""
    for block in row.blocks:
        row.update(*random_states(count, seed + block), block)
    row.advance(count)


@dataclass
class ObviousRow:
    """Per block, the cached keys and values (1, heads, tokens, size)."""

    content: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=lambda: {block: random_states(0, 0) for block in BLOCKS}
    )

    def write(self, count: int, seed: int) -> None:
        for block, cached in self.content.items():
            new = random_states(count, seed + block)
            self.content[block] = tuple(torch.cat(pair, dim=2) for pair in zip(cached, new, strict=True))  # type: ignore[assignment]

    def truncate(self, length: int) -> None:
        self.content = {
            block: (keys[:, :, :length], values[:, :, :length]) for block, (keys, values) in self.content.items()
        }


class RowMachine(RuleBasedStateMachine):
    """Any order of writes, failed writes, truncations, forks and moves keeps every row what it should be."""

    @initialize()
    def start(self) -> None:
        self.usage = KvUsage()
        self.rows = [(RowKV(BLOCKS, MAX_TOKENS, self.usage), ObviousRow())]
        self.seed = 0

    @rule(which=st.integers(0, 3), count=st.integers(1, 70))
    def write(self, which: int, count: int) -> None:
        row, obvious = self.rows[which % len(self.rows)]
        self.seed += 10
        if row.length + count > MAX_TOKENS:
            with pytest.raises(OutOfMemory):
                write(row, count, self.seed)
            return
        write(row, count, self.seed)
        obvious.write(count, self.seed)

    @rule(which=st.integers(0, 3), count=st.integers(1, 70))
    def fail_half_way(self, which: int, count: int) -> None:
        """The first block has written, the second one has not: the row is as it was."""
        row, _ = self.rows[which % len(self.rows)]
        if row.length + count <= MAX_TOKENS:
            row.update(*random_states(count, -1), BLOCKS.start)

    @rule(which=st.integers(0, 3), share=st.floats(0, 1))
    def truncate(self, which: int, share: float) -> None:
        row, obvious = self.rows[which % len(self.rows)]
        length = int(row.length * share)
        row.truncate(length)
        obvious.truncate(length)

    @rule(which=st.integers(0, 3))
    def fork(self, which: int) -> None:
        row, obvious = self.rows[which % len(self.rows)]
        if len(self.rows) < 4:
            self.rows.append((row.fork(), ObviousRow(dict(obvious.content))))

    @rule(which=st.integers(0, 3))
    def drop(self, which: int) -> None:
        if len(self.rows) > 1:
            row, _ = self.rows.pop(which % len(self.rows))
            row.release()
            assert row.nbytes == 0

    @rule(which=st.integers(0, 3), share=st.floats(0, 1))
    def append_a_part_of_another(self, which: int, share: float) -> None:
        """As it is done with a prefix that was kept, in pieces."""
        row, obvious = self.rows[which % len(self.rows)]
        source, source_obvious = self.rows[(which + 1) % len(self.rows)]
        cut = int(source.length * share)
        if 0 < cut < source.length and row.length + source.length <= MAX_TOKENS:
            bounds = ((0, cut), (cut, source.length))
            tokens = [
                (torch.cat([keys, source_keys], dim=2), torch.cat([values, source_values], dim=2))
                for (keys, values), (source_keys, source_values) in zip(
                    obvious.content.values(), source_obvious.content.values(), strict=True
                )
            ]
            row.append([dict(zip(BLOCKS, source.read(*part), strict=True)) for part in bounds])
            obvious.content = dict(zip(BLOCKS, tokens, strict=True))

    @rule(which=st.integers(0, 3))
    def move(self, which: int) -> None:
        """To another peer."""
        index = which % len(self.rows)
        row, obvious = self.rows[index]
        content = [BlockKV(block.keys.clone(), block.values.clone()) for block in row.export()]
        row.release()
        self.rows[index] = (RowKV.import_(BLOCKS, MAX_TOKENS, content, self.usage), obvious)

    @invariant()
    def every_row_is_what_it_should_be(self) -> None:
        for row, obvious in getattr(self, "rows", []):
            exported = row.export()
            expected = list(obvious.content.values())
            assert row.length == row.get_seq_length() == expected[0][0].shape[2]
            if row.length:
                for block, (keys, values) in zip(exported, expected, strict=True):
                    assert torch.equal(block.keys, keys[0])
                    assert torch.equal(block.values, values[0])

    @invariant()
    def memory_is_counted_and_bounded(self) -> None:
        """The bytes of all slabs are counted, each once, and are in proportion to the tokens."""
        rows = [row for row, _ in getattr(self, "rows", [])]
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for row in rows
            for tensor in row.tensors()
        }
        if rows:
            assert self.usage.nbytes == sum(storages.values())
        for row in rows:
            tokens_at_most = min(MAX_TOKENS, max(4 * row.length, 128))  # 128: what a failed write of 70 leaves behind
            assert row.nbytes <= tokens_at_most * TOKEN_BYTES

    def teardown(self) -> None:
        for row, _ in getattr(self, "rows", []):
            row.release()
        assert not hasattr(self, "usage") or self.usage.nbytes == 0


TestRowMachine = RowMachine.TestCase
TestRowMachine.settings = settings(max_examples=20, stateful_step_count=20)


def test_a_block_sees_its_own_tokens_with_the_new_ones_behind() -> None:
    row = RowKV(BLOCKS, MAX_TOKENS)
    write(row, 5, seed=0)
    new = random_states(2, seed=77)
    keys, values = row.update(*new, 4)
    assert keys.shape == (1, HEADS, 7, KEY_SIZE)
    assert torch.equal(keys[:, :, 5:], new[0])
    assert torch.equal(values[:, :, :5], random_states(5, seed=4)[1])


def test_tokens_are_written_in_place() -> None:
    """Decoding must not copy the cache for each token."""
    row = RowKV(BLOCKS, MAX_TOKENS)
    write(row, 5, seed=0)
    before, _ = row.update(*random_states(1, 1), 3)
    row.advance(1)
    after, _ = row.update(*random_states(1, 2), 3)
    assert after.data_ptr() == before.data_ptr()


def test_memory_doubles_but_never_exceeds_the_reservation() -> None:
    row = RowKV(BLOCKS, max_tokens=150)
    assert row.nbytes == 0
    for count, capacity in ((1, 1), (2, 4), (61, 64), (1, 128), (85, 150)):
        write(row, count, seed=0)
        assert row.nbytes == capacity * TOKEN_BYTES
    with pytest.raises(OutOfMemory, match="150"):
        write(row, 1, seed=0)
    assert row.length == 150


def test_memory_comes_back_when_most_of_a_row_is_truncated() -> None:
    """Or a session could make its rows long one after the other, and hold many times what it has reserved."""
    row = RowKV(BLOCKS, MAX_TOKENS)
    write(row, 128, seed=0)
    row.truncate(32)
    assert row.nbytes == 128 * TOKEN_BYTES
    row.truncate(31)
    assert row.nbytes == 32 * TOKEN_BYTES
    assert torch.equal(row.export()[0].keys, random_states(128, seed=3)[0][0, :, :31])
    row.truncate(0)
    assert row.nbytes == 0


def test_in_the_middle_of_a_step_a_truncation_keeps_what_some_blocks_have_written() -> None:
    row = RowKV(BLOCKS, MAX_TOKENS)
    row.update(*random_states(100, 1), BLOCKS.start)
    row.advance(100)
    row.truncate(0, may_free=False)
    row.update(*random_states(100, 2), BLOCKS.start + 1)
    row.advance(100)
    for block, seed in zip(row.export(), (1, 2), strict=True):
        assert torch.equal(block.keys, random_states(100, seed)[0][0])
    with pytest.raises(ValueError, match="cannot truncate"):
        row.truncate(101, may_free=False)


def test_a_fork_costs_memory_only_when_it_is_written_to() -> None:
    usage = KvUsage()
    row = RowKV(BLOCKS, MAX_TOKENS, usage)
    write(row, 60, seed=0)
    forks = [row.fork() for _ in range(8)]
    assert usage.nbytes == 64 * TOKEN_BYTES
    write(forks[0], 1, seed=5)
    assert usage.nbytes == 2 * 64 * TOKEN_BYTES
    for fork in forks:
        fork.release()
    assert usage.nbytes == 64 * TOKEN_BYTES
    before, _ = row.update(*random_states(1, 1), 3)
    assert before.data_ptr() == row.update(*random_states(1, 1), 3)[0].data_ptr()
    assert usage.nbytes == 64 * TOKEN_BYTES, "the last one left owns the slab: nothing to copy"


@pytest.mark.parametrize("length", [-1, 6])
def test_a_row_is_not_truncated_to_a_length_it_never_had(length: int) -> None:
    row = RowKV(BLOCKS, MAX_TOKENS)
    write(row, 5, seed=0)
    with pytest.raises(ValueError, match="truncate"):
        row.truncate(length)


def test_an_empty_row_can_be_moved() -> None:
    assert RowKV.import_(BLOCKS, MAX_TOKENS, RowKV(BLOCKS, MAX_TOKENS).export()).length == 0


@pytest.mark.parametrize(
    "content",
    [
        [(5, 5)],
        [(5, 5), (5, 5), (5, 5)],
        [(5, 5), (4, 4)],
        [(5, 4), (5, 4)],
        [(0, 0), (0, 0)],
        [(MAX_TOKENS + 1, MAX_TOKENS + 1)] * 2,
    ],
)
def test_content_that_makes_no_row_is_refused(content: list[tuple[int, int]]) -> None:
    """Imported rows come from another peer."""
    blocks = [
        BlockKV(torch.zeros(HEADS, keys, KEY_SIZE), torch.zeros(HEADS, values, VALUE_SIZE)) for keys, values in content
    ]
    with pytest.raises(ValueError, match="row"):
        RowKV.import_(BLOCKS, MAX_TOKENS, blocks)


def test_content_of_another_shape_is_refused() -> None:
    flat = BlockKV(torch.zeros(5), torch.zeros(HEADS, 5, VALUE_SIZE))
    with pytest.raises(ValueError, match="row"):
        RowKV.import_(BlockRange(3, 4), MAX_TOKENS, [flat])


def test_transformers_sizes_masks_for_all_tokens() -> None:
    """Whatever the block's window: all tokens are there, and the mask says what is seen of them."""
    row = RowKV(BLOCKS, MAX_TOKENS)
    write(row, 30, seed=0)
    assert find_first_full_attention_index(row) == 0
    assert row.get_mask_sizes(query_length=4, layer_idx=4) == (34, 0)
    assert row.get_query_offset(4) == 30


@torch.inference_mode()  # as stages run
def test_tokens_that_were_not_computed_are_zeros() -> None:
    usage = KvUsage()
    row = RowKV(BLOCKS, MAX_TOKENS, usage)
    write(row, 3, seed=1)
    fork = row.fork()
    fork.append_blanks(2)
    assert (row.length, fork.length) == (3, 5)
    for ours, theirs in zip(row.export(), fork.export(), strict=True):
        for old, new in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            assert torch.equal(new[:, :3], old)
            assert torch.equal(new[:, 3:], torch.zeros_like(new[:, 3:]))
    fork.truncate(4)
    write(fork, 1, seed=2)
    assert fork.length == 5
    for each in (row, fork):
        each.release()
    assert usage.nbytes == 0
