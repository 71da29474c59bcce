"""The blocks that a machine can host, and the outputs that it keeps for replay."""

from __future__ import annotations

import pytest
from blockswarm.peer.config import BlockRequest
from blockswarm.peer.offer.capacity import (
    MemoryNeed,
    MemoryOffer,
    check_blocks,
    check_space,
    count_that_fits,
    explain,
    free_memory_bytes,
    need_and_free,
)
from blockswarm.peer.session.replay_store import ReplayStore
from blockswarm.proto.errors import OutOfMemory, UsageError
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange, PeerId
from hypothesis import given
from hypothesis import strategies as st


def test_the_least_recently_used_replay_buffer_goes_first_and_stays_gone() -> None:
    store = ReplayStore(limit_bytes=100)
    for session in (b"a", b"b"):
        store.begin(session, PeerId("client"), token_bytes=10)
        store.append(session, StepPlan((RowSlice(0, 0, 4, 0),)), bytes(40))
    store.append(b"a", StepPlan((RowSlice(0, 4, 3, 0),)), bytes(30))
    assert store.get(b"b") is None
    assert store.get(b"a") is not None
    assert store.nbytes == 70
    store.append(b"b", StepPlan((RowSlice(0, 4, 1, 0),)), bytes(10))
    assert store.get(b"b") is None
    store.end(b"a")
    assert store.nbytes == 0


NEED = MemoryNeed(block_bytes=100, kv_bytes=50, fixed_bytes=30)


@given(st.integers(0, 5000), st.integers(1, 40))
def test_as_many_blocks_as_fit_with_the_margin(free_bytes: int, num_blocks: int) -> None:
    try:
        count = count_that_fits(NEED, free_bytes, num_blocks)
    except OutOfMemory:
        assert NEED.total(1) > 0.84 * free_bytes - 1
        return
    assert NEED.total(count) <= 0.85 * free_bytes
    assert count == num_blocks or NEED.total(count + 1) > 0.85 * free_bytes - 1
    assert f"{count} blocks" in explain(NEED, free_bytes, count)


def test_free_memory_is_a_plausible_number() -> None:
    assert 2**20 < free_memory_bytes() < 2**50


@pytest.mark.parametrize("text", ["", "0", "-1", "8:3", "3:3", "a:b", "1:2:3", "0x1", "1.5", "all"])
def test_nonsense_for_blocks_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--blocks"):
        BlockRequest.parse(text)


@pytest.mark.parametrize("text", ["4:9", "9"])
def test_blocks_that_the_model_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the model has"):
        check_blocks(BlockRequest.parse(text), 8)


def test_blocks_that_the_model_has_are_accepted() -> None:
    for text in ("0:8", "7:8", "8", "auto"):
        check_blocks(BlockRequest.parse(text), 8)


def test_disk_room_is_asked_for_every_range_that_may_become_the_peers() -> None:
    """Only the middle of the model is here: a peer that may be placed there can start, another one cannot."""
    asked: list[BlockRange] = []

    def check(blocks: BlockRange) -> None:
        asked.append(blocks)
        if blocks not in (BlockRange(3, 5), BlockRange(3, 4)):
            raise UsageError("no room")

    for text in ("3:5", "2", "auto"):
        check_space(BlockRequest.parse(text), 8, check)
    for text in ("2:4", "3"):
        with pytest.raises(UsageError, match="no room"):
            check_space(BlockRequest.parse(text), 8, check)
    assert asked[0] == BlockRange(3, 5)
    assert asked[-1] == BlockRange(5, 8)


def test_a_gpus_blocks_are_counted_against_its_own_memory() -> None:
    """The replay buffer stays in the machine's."""
    assert need_and_free(10, 30, 100, 5, device_free_bytes=None)[0] == NEED
    on_gpu = need_and_free(10, 30, 100, 5, device_free_bytes=1000)
    assert on_gpu == (MemoryNeed(100, 50, 0), 1000)
    assert "replay" not in explain(*on_gpu, count=5)


@given(st.integers(1, 80), st.integers(1, 40_000), st.integers(1, 10**9), st.integers(1, 10**5))
def test_the_offered_memory_is_weights_and_caches(blocks: int, kv_tokens: int, block_bytes: int, kv_bytes: int) -> None:
    """The room is what was asked for at first, and with other numbers of blocks what the same memory has room for."""
    offer = MemoryOffer.of(blocks, kv_tokens, block_bytes, kv_bytes)
    assert offer.room(blocks) == blocks * kv_tokens
    for other in range(1, 2 * blocks):
        try:
            room = offer.room(other)
        except OutOfMemory:
            assert other * (block_bytes + kv_bytes) > offer.total_bytes
            continue
        assert other * block_bytes + room * kv_bytes <= offer.total_bytes
        assert other * block_bytes + (room + 1) * kv_bytes > offer.total_bytes
