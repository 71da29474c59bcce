"""Peers whose streams differ: what travels takes their bytes, and the numbers are those of float32 links."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.config import SessionConfig, SessionEvent
from blockswarm.client.timing import ChainTiming, ClientTiming
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange
from support.swarm import LocalPeer, LocalSwarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm

HIDDEN = 64
RANGES = ("0:2", "2:4", "4:6")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PAGES = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


def tokens(count: int, seed: int) -> bytes:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed)).numpy().tobytes()


def plan(*rows: tuple[int, int, int], source: tuple[int, ...] | None = None) -> StepPlan:
    """(row, start, count) each; every token is answered."""
    return StepPlan(tuple(RowSlice(row, start, count, count) for row, start, count in rows), source)


STORY = [
    plan((0, 0, 300), (1, 0, 7)),
    plan((0, 300, 1), (1, 7, 1)),
    plan((0, 301, 1), (1, 301, 1), (2, 8, 1), source=(0, 0, 1)),
    plan((0, 290, 5), (1, 302, 1)),
    plan((0, 295, 2), source=(1,)),
]
UNTRUNCATED = 1
"""A step that drops nothing: caches are rebuilt to the same lengths, and so in the same pieces and to the same bits,
whether the peers before the one that is gone had applied the step by then or not."""
CALM = ClientTiming(chain=ChainTiming(late_seconds=30.0, open_seconds=30.0, reroute_seconds=30.0))
"""Nothing here is to be found out by its lateness: a repair more would compute the same in other batches."""
TOKENS = sum(step.tokens for step in STORY)


class Run:
    """One swarm of a peer for each range, with streams of these dtypes, and the sessions of one client in it."""

    def __init__(self, folder: Path, dtypes: Sequence[torch.dtype], **options: object) -> None:
        self.swarm = LocalSwarm(open_checkpoint(folder), prefix_bytes=PAGES)
        self.events: list[SessionEvent] = []
        self._dtypes = dtypes
        self._options = options

    async def __aenter__(self) -> Run:
        for index, dtype in enumerate(self._dtypes):
            await self.start(index, dtype)
        self.config: SessionConfig = await self.swarm.client(events=self.events, timing=CALM, **self._options)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.swarm.close()

    async def start(self, index: int, dtype: torch.dtype) -> LocalPeer:
        return await self.swarm.start_peer(BlockRange.parse(RANGES[index]), dtype=dtype)

    def peer_at(self, session: ChainSession, index: int) -> LocalPeer:
        return next(peer for peer in self.swarm.peers if peer.identity.peer_id == session.chain[index][0])

    async def replace(self, index: int, dtype: torch.dtype) -> None:
        """Another peer for the blocks, and the one that had them is dead; the client has not seen it yet."""
        old = [peer for peer in self.swarm.peers if str(peer.blocks) == RANGES[index]][-1]
        await self.start(index, dtype)
        await old.kill()

    async def session(self, **changes: object) -> ChainSession:
        return ChainSession(replace(self.config, **changes), 2000, 4)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events if event.kind in ("handed-over", "replay", "hop-lost")]

    @property
    def hits(self) -> int:
        return sum(peer.parts.counters.prefix_hit_tokens for peer in self.swarm.peers)


async def tell(run: Run, at: int = -1, index: int = 0, dtype: torch.dtype = F32, drain: bool = False) -> list[bytes]:
    """The answers of a session that plays STORY; before step `at` the peer `index` is replaced by another one."""
    session, answers = await run.session(), []
    for number, step in enumerate(STORY):
        if number == at and drain:
            await run.start(index, dtype)
            await run.swarm.drain(run.peer_at(session, index))
        elif number == at:
            await run.replace(index, dtype)
        answers.append(await session.run(step, tokens(step.tokens, number)))
    await session.close()
    return answers


def size(dtype: torch.dtype) -> int:
    return dtype.itemsize * HIDDEN


@pytest.mark.parametrize("push", [True, False], ids=["push", "hub"])
@pytest.mark.parametrize(
    "dtypes",
    [(BF16, BF16, BF16), (F32, BF16, F32), (BF16, F32, BF16), (F16, F16, F32), (F32, F32, F32)],
    ids=lambda dtypes: "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
)
def test_the_bytes_are_those_of_the_streams_and_the_numbers_those_of_float32(
    folder: Path, dtypes: Sequence[torch.dtype], push: bool
) -> None:
    async def told(wire_format: str) -> tuple[list[bytes], int]:
        async with asyncio.timeout(60), Run(folder, dtypes, push=push, wire_format=wire_format) as run:
            return await tell(run), run.swarm.tensor_bytes

    def expected(links: Sequence[torch.dtype]) -> int:
        # What is relayed is sent to the client and then to the next peer.
        ways = (1, 1, 1, 1) if push else (1, 2, 2, 1)
        return TOKENS * sum(way * size(link) for way, link in zip(ways, links, strict=True))

    answers, nbytes = asyncio.run(told("auto"))
    in_float32, nbytes_in_float32 = asyncio.run(told("float32"))
    assert answers == in_float32
    assert nbytes == expected((dtypes[0], *dtypes))
    assert nbytes_in_float32 == expected((F32,) * 4)
    if set(dtypes) == {BF16}:
        assert 2 * nbytes == nbytes_in_float32


@pytest.mark.parametrize("index", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize(("old", "new"), [(BF16, F32), (F32, BF16)], ids=["to float32", "to bfloat16"])
@pytest.mark.parametrize("way", ["push", "hub", "drain"])
def test_a_peer_is_replaced_by_one_of_another_stream(
    folder: Path, index: int, old: torch.dtype, new: torch.dtype, way: str
) -> None:
    """The links of a chain change in a session, not what the peers say to those that stay."""
    dtypes = [BF16, F32, BF16]
    dtypes[index] = old

    async def told(wire_format: str) -> tuple[list[bytes], list[str]]:
        async with asyncio.timeout(60), Run(folder, dtypes, push=way != "hub", wire_format=wire_format) as run:
            return await tell(run, UNTRUNCATED, index, new, drain=way == "drain"), run.kinds()

    answers, kinds = asyncio.run(told("auto"))
    in_float32, _ = asyncio.run(told("float32"))
    assert answers == in_float32
    # A cache has the dtype of its stream, so it cannot be handed over.
    assert kinds == (["replay", "handed-over"] if way == "drain" else ["hop-lost", "replay"])


PROMPT = StepPlan((RowSlice(0, 0, 130, 2),))
NEXT = StepPlan((RowSlice(0, 130, 70, 1),))


async def ask(session: ChainSession, *, close: bool = True) -> bytes:
    answer = await session.run(PROMPT, tokens(130, 1))
    if close:
        await session.close()
    return answer


async def fresh(run: Run) -> bytes:
    """The answer where nobody holds anything."""
    return await ask(await run.session(page_names=None))


def test_what_was_held_behind_another_stream_is_not_found(folder: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(60), Run(folder, [BF16, F32, F32], prefix_cache=True) as run:
            first = await ask(await run.session())
            assert await ask(await run.session()) == first
            assert run.hits == 3 * 128
            await run.replace(0, F32)
            expected = await fresh(run)
            assert expected != first
            for hits in (0, 3 * 128):  # its own pages are found as ever
                before = run.hits
                assert await ask(await run.session()) == expected
                assert run.hits - before == hits

    asyncio.run(scenario())


def test_a_session_behind_two_streams_leaves_nothing(folder: Path) -> None:
    """The peers that stayed were fed in part by the peer that is gone: no chain would feed them so again."""

    async def scenario() -> None:
        async with asyncio.timeout(60), Run(folder, [BF16, F32, F32], prefix_cache=True) as run:
            session = await run.session()
            await ask(session, close=False)
            await run.replace(0, F32)
            await session.run(NEXT, tokens(70, 2))
            await session.close()
            assert "replay" in run.kinds()
            expected = await fresh(run)
            assert await ask(await run.session()) == expected
            assert run.hits == 0

    asyncio.run(scenario())


def test_pages_that_were_named_before_a_peer_was_replaced_are_not_kept(folder: Path) -> None:
    """They were named for the stream of the peer that is gone, and computed behind another one."""

    async def scenario() -> None:
        async with asyncio.timeout(60), Run(folder, [BF16, F32, F32], prefix_cache=True) as run:
            first, second = run.swarm.peers[0], await run.start(0, F32)
            await run.swarm.views[0].refresh()
            run.config.router.ban(second.identity.peer_id, PeerUnavailable("not its turn yet"))
            deaths: list[asyncio.Task[None]] = []

            def die(event: SessionEvent) -> None:
                run.events.append(event)
                if event.kind == "opened" and not deaths:
                    run.config.router.pardon(frozenset({second.identity.peer_id}))
                    deaths.append(asyncio.create_task(first.kill()))

            await ask(await run.session(on_event=die))
            assert [event.kind for event in run.events] == ["opened", "hop-lost", "rerouted"]
            await run.replace(0, BF16)
            expected = await fresh(run)
            for hits in (0, 3 * 128):
                before = run.hits
                assert await ask(await run.session()) == expected
                assert run.hits - before == hits

    asyncio.run(scenario())
