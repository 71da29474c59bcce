"""A session's reservation, the pages that it begins with, and those that it leaves behind."""

from __future__ import annotations

import pytest
import torch
from blockswarm.peer.engine.cache.memory import SessionMemory
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.cache.row import RowKV
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.routing.swarm import BlockRange, PeerId

BLOCKS = BlockRange(0, 2)
CLIENT = PeerId("client")
DIGESTS = (b"1", b"2", b"3")
TOKEN_BYTES = len(BLOCKS) * 2 * 4


def computed_row(tokens: int) -> RowKV:
    row = RowKV(BLOCKS, 1000)
    states = torch.arange(tokens, dtype=torch.float32).reshape(1, 1, -1, 1)
    for block in BLOCKS:
        row.update(states + 1000 * block, -states, block)
    row.advance(tokens)
    return row


@pytest.fixture
def pool() -> KvPool:
    pool = KvPool(1000 * TOKEN_BYTES, prefix_limit_bytes=1000 * TOKEN_BYTES)
    SessionMemory(pool, CLIENT, BLOCKS, 0).keep(computed_row(130), DIGESTS[:2])
    return pool


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 127, 128])
def test_a_row_begins_with_any_part_of_what_is_held(pool: KvPool, tokens: int) -> None:
    memory = SessionMemory(pool, CLIENT, BLOCKS, 200 * TOKEN_BYTES, [(), DIGESTS])
    assert memory.held_tokens == (0, 128)
    row = RowKV(BLOCKS, 200, memory.usage)
    memory.adopt(row, 1, tokens)
    assert row.length == tokens
    for ours, theirs in zip(row.export(), computed_row(130).export(), strict=True):
        assert torch.equal(ours.keys, theirs.keys[:, :tokens])
        assert torch.equal(ours.values, theirs.values[:, :tokens])


def test_a_long_beginning_is_copied_in_parts(pool: KvPool) -> None:
    """Other sessions' steps run in between."""
    memory = SessionMemory(pool, CLIENT, BLOCKS, 200 * TOKEN_BYTES, [DIGESTS])
    row = RowKV(BLOCKS, 200, memory.usage)
    for tokens in (64, 127):
        memory.adopt(row, 0, tokens)
    assert row.length == 127
    assert torch.equal(row.export()[1].keys, computed_row(130).export()[1].keys[:, :127])
    assert memory.usage.nbytes == 128 * TOKEN_BYTES


@pytest.mark.parametrize(("index", "tokens"), [(0, 1), (1, 129), (2, 1)])
def test_a_row_does_not_begin_with_what_is_not_held(pool: KvPool, index: int, tokens: int) -> None:
    memory = SessionMemory(pool, CLIENT, BLOCKS, 200 * TOKEN_BYTES, [(), DIGESTS])
    with pytest.raises(RemoteProtocolError, match="held"):
        memory.adopt(RowKV(BLOCKS, 200), index, tokens)


def test_what_is_not_computed_is_not_kept(pool: KvPool) -> None:
    with pytest.raises(RemoteProtocolError, match="keep"):
        SessionMemory(pool, CLIENT, BLOCKS, 0).keep(computed_row(191), DIGESTS)


def test_what_a_session_may_begin_with_stays_until_it_does(pool: KvPool) -> None:
    memory = SessionMemory(pool, CLIENT, BLOCKS, 128 * TOKEN_BYTES, [DIGESTS])
    other = SessionMemory(pool, PeerId("other"), BLOCKS, 872 * TOKEN_BYTES)
    memory.reserve()
    other.reserve()
    other.reserve()
    assert (pool.free_bytes, len(pool.prefixes)) == (0, 2)
    row = RowKV(BLOCKS, 128, memory.usage)
    memory.adopt(row, 0, 128)
    memory.unpin()
    assert (pool.used_bytes, pool.prefixes.nbytes) == (128 * TOKEN_BYTES, 0)
    row.release()
    memory.close()
    other.close()
    assert (pool.used_bytes, pool.reserved_bytes) == (0, 0)
