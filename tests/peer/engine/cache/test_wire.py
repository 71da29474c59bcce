"""A session's cache moves to another peer as bytes: nothing changes by it, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.cache.part import CachePart
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine, SessionKv
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.proto.wire.tensors import encode_tensor
from blockswarm.routing.swarm import BlockRange
from safetensors.torch import load, save
from support.tiny_models import write_tiny_checkpoint

BLOCKS = BlockRange(2, 5)
HIDDEN = 64
FAMILIES = ("llama", "qwen2", "gemma3", "deepseek_v3", "gpt2", "bloom", "falcon", "mpt", "gpt_oss")


def open_session(folder: Path, dtype: torch.dtype = torch.float32, blocks: BlockRange = BLOCKS) -> SessionKv:
    """A session of a peer of its own."""
    engine = Engine(load_stage(open_checkpoint(folder), blocks, dtype), KvPool(0, prefix_limit_bytes=0))
    return engine.open(blocks, engine.wire_format(str(dtype).removeprefix("torch.")), 100, 4)


def step(
    kv: SessionKv,
    *rows: tuple[int, int, int],
    source: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
) -> bytes:
    plan = StepPlan(tuple(RowSlice(row, start, count, count) for row, start, count in rows), source)
    generator = torch.Generator().manual_seed(plan.tokens)
    hidden = torch.randn(plan.tokens, HIDDEN, generator=generator).to(dtype)
    return kv.step(plan, encode_tensor(hidden)).data


def prepare(kv: SessionKv, dtype: torch.dtype = torch.float32) -> SessionKv:
    """Rows of 12, 5, 12 and 0 tokens; one is a fork, one was truncated."""
    step(kv, (0, 0, 12), (1, 0, 9), dtype=dtype)
    step(kv, (1, 4, 1), (2, 11, 1), (3, 0, 0), source=(0, 1, 0), dtype=dtype)
    assert kv.table.lengths == (12, 5, 12, 0)
    return kv


def whole(kv: SessionKv) -> CachePart:
    return kv.export((), kv.table.tokens)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_the_next_steps_are_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(name, tmp_path)
    old, new = prepare(open_session(folder)), open_session(folder)
    new.import_(whole(old))
    assert new.table == old.table
    for rows, source in (
        (((0, 12, 1), (1, 5, 3), (2, 12, 1), (3, 0, 2)), None),
        (((0, 8, 2), (1, 13, 1)), (2, 0)),
        (((0, 10, 1), (1, 14, 1)), None),
    ):
        assert step(new, *rows, source=source) == step(old, *rows, source=source)


def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path) -> None:
    folder, dtype = write_tiny_checkpoint("llama", tmp_path), torch.bfloat16
    old, new = prepare(open_session(folder, dtype), dtype), open_session(folder, dtype)
    new.import_(whole(old))
    assert step(new, (0, 12, 1), dtype=dtype) == step(old, (0, 12, 1), dtype=dtype)
    with pytest.raises(RemoteProtocolError, match="not what this peer computes with"):
        open_session(folder).import_(whole(old))


def test_a_cache_never_has_more_bytes_than_is_allowed(tmp_path: Path) -> None:
    old = prepare(open_session(write_tiny_checkpoint("deepseek_v3", tmp_path)))
    part = whole(old)
    assert len(part.data) <= old.largest_import(part.starts, part.lengths)


def test_an_empty_session_moves_too(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("llama", tmp_path)
    old, new = open_session(folder), prepare(open_session(folder))
    new.import_(whole(old))
    assert new.table.lengths == ()


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "bloom"])
@pytest.mark.parametrize("most", [1, 5, 13])
def test_a_cache_that_moves_in_parts_while_steps_go_on_is_the_same(name: str, most: int, tmp_path: Path) -> None:
    """Rows grow, are cut and dropped between the parts; a row that was exchanged begins anew."""
    folder = write_tiny_checkpoint(name, tmp_path)
    old, new = prepare(open_session(folder)), open_session(folder)
    stories = [((0, 12, 1), (1, 5, 3)), ((0, 4, 2), (2, 12, 1)), ((3, 0, 2),), ((1, 2, 1),)]
    for rows in stories:
        new.import_(old.export(new.table.lengths, most))
        step(old, *rows)
    step(old, (0, 6, 1), (1, 3, 1), source=(0, 1))
    held = tuple(min(2, length) for length in new.table.lengths[:2])  # what no step has dropped meanwhile
    while held != old.table.lengths:
        part = old.export(held, most)
        new.import_(part)
        held = part.lengths
    assert new.table == old.table
    for after in (((0, 7, 1), (1, 4, 2)), ((0, 3, 1),)):
        assert step(new, *after) == step(old, *after)


def changed(data: bytes, **changes: torch.Tensor | None) -> bytes:
    """The cache with some tensors replaced, added or (None) left out; "t2_3k" stands for "2.3.k"."""
    tensors = load(data)
    for key, tensor in changes.items():
        name = key.lstrip("t").replace("_", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    return save(tensors)


@pytest.mark.long
def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("llama", tmp_path)
    old, new, untouched = (prepare(open_session(folder)) for _ in range(3))
    lengths, good = old.table.lengths, whole(old).data
    keys = load(good)["0.2.k"]
    bad: dict[str, tuple[tuple[int, ...], bytes]] = {
        "no tensors": (lengths, b""),
        "noise": (lengths, bytes(range(256)) * 8),
        "a header that never ends": (lengths, (1 << 40).to_bytes(8, "little") + b"{"),
        "cut": (lengths, good[:-1]),
        "longer": (lengths, good + b"\0"),
        "a tensor missing": (lengths, changed(good, t0_2_k=None)),
        "a tensor too many": (lengths, changed(good, t9_2_k=keys)),
        "a block of another peer": (lengths, changed(good, t0_2_k=None, t0_1_k=keys)),
        "fewer tokens": (lengths, changed(good, t0_2_k=keys[:, :-1].contiguous())),
        "other heads": (lengths, changed(good, t0_2_k=keys[:1].contiguous())),
        "other axes": (lengths, changed(good, t0_2_k=keys.flatten())),
        "another dtype": (lengths, changed(good, t0_2_k=keys.to(torch.float16))),
        "integers": (lengths, changed(good, t0_2_k=keys.view(torch.int32))),
        "other lengths": ((12, 5, 12, 1), good),
        "rows exchanged": ((5, 12, 12, 0), good),
        "more rows than reserved": ((*lengths, 0), good),
        "more tokens than reserved": ((12, 5, 84, 0), good),
        "more bytes than the rows have": ((0, 0, 0, 0), save({"0.2.k": torch.zeros(100_000)})),
    }
    for rows, data in bad.values():
        with pytest.raises(RemoteProtocolError):
            new.import_(CachePart((0,) * len(rows), rows, data))
    beyond = old.export((12, 4, 12), 100)
    with pytest.raises(RemoteProtocolError, match="begins at 12"):
        open_session(folder).import_(beyond)
    assert step(new, (0, 12, 1), (1, 5, 1)) == step(untouched, (0, 12, 1), (1, 5, 1))
    with pytest.raises(RemoteProtocolError):
        open_session(folder, blocks=BlockRange(1, 4)).import_(CachePart((0,) * 4, lengths, good))
