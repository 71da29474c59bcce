"""How much of an attention cache comes in one part: as much as the other peer copies at once, whatever is reserved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.session.work.compute import largest_part
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.wire.frames import CACHE_PART_BYTES
from blockswarm.proto.wire.steps import MAX_ROWS
from blockswarm.routing.swarm import BlockRange
from support.tiny_models import write_tiny_checkpoint

BLOCKS = BlockRange(0, 6)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    folder = write_tiny_checkpoint("llama", tmp_path)
    engine = Engine(load_stage(open_checkpoint(folder), BLOCKS), KvPool(0, prefix_limit_bytes=0))
    yield engine
    engine.close()


def test_a_part_has_no_more_bytes_than_are_copied_at_once(engine: Engine) -> None:
    """Parts that stand still lie in memory beside each other, one for each session."""
    tokens = 4 * CACHE_PART_BYTES // (len(BLOCKS) * engine.stage.kv_bytes_per_token)
    kv = engine.open(BLOCKS, engine.wire_format("float32"), tokens, 1)
    assert largest_part(kv, (0,), (8,)) == kv.largest_import((0,), (8,))
    assert (
        CACHE_PART_BYTES < largest_part(kv, (0,), (tokens,)) < 2 * CACHE_PART_BYTES < kv.largest_import((0,), (tokens,))
    )
    with pytest.raises(RemoteProtocolError, match="reserved"):
        largest_part(kv, (0,), (tokens + 1,))


def test_rows_without_content_make_no_part_larger(engine: Engine) -> None:
    """A stranger that has reserved one token may name a thousand rows, and each block of each has a header."""
    kv = engine.open(BLOCKS, engine.wire_format("float32"), 1, MAX_ROWS)
    empty = (0,) * (MAX_ROWS - 1)
    assert largest_part(kv, (0, *empty), (1, *empty)) == largest_part(kv, (0,), (1,))


def test_what_names_the_content_of_a_part_is_bounded_as_its_content_is(engine: Engine) -> None:
    token_bytes = len(BLOCKS) * engine.stage.kv_bytes_per_token
    most_rows, rows = CACHE_PART_BYTES // token_bytes, 4 * CACHE_PART_BYTES // token_bytes
    kv = engine.open(BLOCKS, engine.wire_format("float32"), rows, rows)
    starts, lengths = (0,) * rows, (1,) * rows
    assert largest_part(kv, starts, lengths) == kv.largest_import(starts[:most_rows], lengths[:most_rows])
