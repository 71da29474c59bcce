"""Kept prefixes against a list of what was kept, in any order of sessions; and against attention caches computed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import RowSpan
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.cache.prefix_cache import PinnedPrefix, PrefixCache
from blockswarm.peer.engine.cache.row import RowKV
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.wire.prefixes import PAGE_TOKENS
from blockswarm.routing.swarm import BlockRange, PeerId
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.tiny_models import write_tiny_checkpoint

CLIENTS = (PeerId("one"), PeerId("two"))
MAX_PAGES = 4
RANGES = (BlockRange(0, 2), BlockRange(1, 3), BlockRange(0, 3), BlockRange(2, 3))
PAGE_BLOCK_BYTES = PAGE_TOKENS * 2 * 4  # one head, key and value of one number each


def number_of(text: str, page: int, block: int) -> float:
    """The value that a token of a page has cached: it depends on all that comes before."""
    return float(zlib.crc32(f"{text[: page + 1]} {block}".encode()) % 10007)


def row_of(text: str, blocks: BlockRange) -> RowKV:
    """A row whose pages are the letters of `text`, with one token behind."""
    row = RowKV(blocks, 1000)
    for block in blocks:
        numbers = [number_of(text, page, block) for page in range(len(text)) for _ in range(PAGE_TOKENS)] + [0.0]
        keys = torch.tensor(numbers).reshape(1, 1, -1, 1)
        row.update(keys, -keys, block)
    row.advance(len(text) * PAGE_TOKENS + 1)
    return row


def digests_of(text: str) -> list[bytes]:
    return [text[: page + 1].encode() for page in range(len(text))]


@dataclass
class ModelPage:
    client: PeerId
    text: str
    blocks: set[int] = field(default_factory=set)
    pins: int = 0

    @property
    def nbytes(self) -> int:
        return len(self.blocks) * PAGE_BLOCK_BYTES


class CacheMachine(RuleBasedStateMachine):
    """Sessions of two clients begin, end and pin; room comes and goes. The model is a list, oldest page first."""

    @initialize(limit=st.integers(0, 14))
    def start(self, limit: int) -> None:
        self.limit = self.room = limit * PAGE_BLOCK_BYTES
        self.cache = PrefixCache(self.limit)
        self.pages: list[ModelPage] = []
        self.pinned: list[tuple[PinnedPrefix, list[ModelPage], BlockRange]] = []

    def find(self, client: PeerId, text: str) -> ModelPage | None:
        return next((page for page in self.pages if (page.client, page.text) == (client, text)), None)

    @property
    def nbytes(self) -> int:
        return sum(page.nbytes for page in self.pages)

    def evict(self, needed: int, spare: set[str], client: PeerId) -> bool:
        for page in list(self.pages):
            if self.nbytes + needed <= self.room or needed > self.room:
                break
            if page.pins == 0 and not (page.client == client and page.text in spare):
                self.pages.remove(page)
        return self.nbytes + needed <= self.room

    def touch(self, client: PeerId, text: str, pages: int) -> None:
        for length in range(pages, 0, -1):
            page = self.find(client, text[:length])
            if page is not None:
                self.pages.remove(page)
                self.pages.append(page)

    texts = st.text("ab", min_size=1, max_size=MAX_PAGES)

    @rule(client=st.sampled_from(CLIENTS), text=texts, blocks=st.sampled_from(RANGES))
    def keep(self, client: PeerId, text: str, blocks: BlockRange) -> None:
        self.cache.keep(client, digests_of(text), row_of(text, blocks))
        run = {text[:length] for length in range(1, len(text) + 1)}
        for length in range(1, len(text) + 1):
            page = self.find(client, text[:length])
            missing = set(blocks) - (page.blocks if page else set())
            if not missing:
                continue
            if not self.evict(len(missing) * PAGE_BLOCK_BYTES, run, client):
                break
            if page is None:
                page = ModelPage(client, text[:length])
                self.pages.append(page)
            page.blocks |= missing
        self.touch(client, text, len(text))

    @rule(client=st.sampled_from(CLIENTS), text=texts, blocks=st.sampled_from(RANGES))
    def pin(self, client: PeerId, text: str, blocks: BlockRange) -> None:
        pinned = self.cache.pin(client, digests_of(text), blocks)
        run: list[ModelPage] = []
        for length in range(1, len(text) + 1):
            page = self.find(client, text[:length])
            if page is None or not page.blocks.issuperset(blocks):
                break
            page.pins += 1
            run.append(page)
        self.touch(client, text, len(run))
        assert pinned.tokens == len(run) * PAGE_TOKENS
        self.pinned.append((pinned, run, blocks))

    @precondition(lambda self: self.pinned)
    @rule(index=st.integers(0, 10))
    def use_and_unpin(self, index: int) -> None:
        """Whatever happened since: the row that begins with the pages is the row that was computed."""
        pinned, run, blocks = self.pinned.pop(index % len(self.pinned))
        if run:
            row = RowKV(blocks, 1000)
            row.append(pinned.pages(pinned.tokens))
            computed = row_of(run[-1].text, blocks)
            computed.truncate(len(run) * PAGE_TOKENS)
            for ours, theirs in zip(row.export(), computed.export(), strict=True):
                assert torch.equal(ours.keys, theirs.keys)
                assert torch.equal(ours.values, theirs.values)
        pinned.release()
        pinned.release()
        for page in run:
            page.pins -= 1
        self.evict(0, set(), CLIENTS[0])

    @rule(room=st.integers(0, 16))
    def change_room(self, room: int) -> None:
        self.cache.shrink_to(room * PAGE_BLOCK_BYTES)
        self.room = min(self.limit, room * PAGE_BLOCK_BYTES)
        self.evict(0, set(), CLIENTS[0])

    @invariant()
    def it_is_what_the_model_is(self) -> None:
        if not hasattr(self, "cache"):
            return
        held = [(client, digest.decode()) for client, digest in self.cache.content()]
        assert held == [(page.client, page.text) for page in self.pages]
        tensors = [
            tensor
            for blocks in self.cache.content().values()
            for kv in blocks.values()
            for tensor in (kv.keys, kv.values)
        ]
        assert self.cache.nbytes == self.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    @invariant()
    def only_pinned_pages_are_beyond_the_room(self) -> None:
        if hasattr(self, "cache"):
            pinned = sum(page.nbytes for page in self.pages if page.pins)
            assert self.cache.nbytes <= max(self.room, pinned)
            assert all(page in self.pages for _, run, _ in self.pinned for page in run), "a pinned page is gone"


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_client_never_finds_the_pages_of_another() -> None:
    cache = PrefixCache(1 << 20)
    cache.keep(CLIENTS[0], digests_of("ab"), row_of("ab", RANGES[0]))
    assert cache.pin(CLIENTS[1], digests_of("ab"), RANGES[0]).tokens == 0
    assert cache.pin(CLIENTS[0], digests_of("ab"), RANGES[0]).tokens == 2 * PAGE_TOKENS


def test_more_pages_than_a_row_has_are_refused() -> None:
    with pytest.raises(ValueError, match="3 pages"):
        PrefixCache(1 << 20).keep(CLIENTS[0], digests_of("aba"), row_of("ab", RANGES[0]))


@pytest.mark.parametrize("tokens", [-64, 1, 63, 192])
def test_only_whole_pages_that_are_held_are_given(tokens: int) -> None:
    cache = PrefixCache(1 << 20)
    cache.keep(CLIENTS[0], digests_of("ab"), row_of("ab", RANGES[0]))
    with pytest.raises(ValueError, match="held"):
        cache.pin(CLIENTS[0], digests_of("ab"), RANGES[0]).pages(tokens)


def test_a_reservation_takes_the_memory_of_pages_that_nobody_uses() -> None:
    page = 2 * PAGE_BLOCK_BYTES
    pool = KvPool(10 * page, prefix_limit_bytes=4 * page)
    pool.prefixes.keep(CLIENTS[0], digests_of("abba"), row_of("abba", RANGES[0]))
    assert pool.prefixes.nbytes == 4 * page
    pool.reserve(8 * page)
    assert (pool.prefixes.nbytes, pool.free_bytes) == (2 * page, 2 * page)
    pinned = pool.prefixes.pin(CLIENTS[0], digests_of("abba"), RANGES[0])
    assert pinned.tokens == 2 * PAGE_TOKENS, "the beginning stays longest"
    pool.reserve(2 * page)
    assert pool.prefixes.nbytes == 2 * page, "who has pinned pages has reserved room that is not filled yet"
    pinned.release()
    assert (pool.prefixes.nbytes, pool.free_bytes) == (0, 0)
    pool.release(9 * page)
    pool.prefixes.keep(CLIENTS[0], digests_of("abba"), row_of("abba", RANGES[0]))
    assert pool.prefixes.nbytes == 4 * page
    assert pool.prefixes.evicted_pages == 4


def test_a_pool_knows_what_its_rows_occupy() -> None:
    pool = KvPool(1 << 20, 0)
    row = RowKV(BlockRange(0, 2), 1000, pool.usage)
    states = torch.zeros(1, 1, 100, 1)
    for block in row.blocks:
        row.update(states, states, block)
    assert pool.used_bytes == 2 * 128 * 2 * 4
    row.release()
    assert pool.used_bytes == 0


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek_v3", "bloom", "gpt2"])
def test_a_row_that_begins_with_kept_pages_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Pages that one session computed serve another one, also in fewer blocks."""
    blocks, part, prefix = BlockRange(1, 5), BlockRange(2, 4), 2 * PAGE_TOKENS
    stage = load_stage(open_checkpoint(write_tiny_checkpoint(name, tmp_path)), blocks)
    view = stage.view(blocks)
    hidden = torch.randn(prefix + 9, stage.hidden_size, generator=torch.Generator().manual_seed(3))
    computed = view.new_row(1000)
    view.forward(hidden[:prefix], [RowSpan(computed, 0, prefix)])
    cache = PrefixCache(1 << 30)
    cache.keep(CLIENTS[0], digests_of("xy"), computed)

    adopted = {some: stage.view(some).new_row(1000) for some in (blocks, part)}
    for some, row in adopted.items():
        row.append(cache.pin(CLIENTS[0], digests_of("xy"), some).pages(prefix))
    for ours, theirs in zip(adopted[part].export(), computed.export()[1:3], strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    expected = view.forward(hidden[prefix:], [RowSpan(computed, prefix, 9)])
    assert torch.equal(view.forward(hidden[prefix:], [RowSpan(adopted[blocks], prefix, 9)]), expected)
