"""A peer that serves: everything it began is ended, however it ends, and it ends when a vital part of it does."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blockswarm.peer.config import BlockRequest, PeerConfig
from blockswarm.peer.engine.load import Examined, examine_model, load_examined
from blockswarm.peer.hosting import BlockSource
from blockswarm.peer.offer.announce import Announcer
from blockswarm.peer.offer.capacity import MemoryOffer
from blockswarm.peer.offer.cost_store import CostStore, Measured
from blockswarm.peer.offer.lookups import RecentLookups
from blockswarm.peer.placement.watch import SwarmWatch
from blockswarm.peer.serving import ReadyPeer, serve_until
from blockswarm.peer.setup import PeerSetup
from blockswarm.peer.tasks import StopRequest, VitalTaskEnded
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord, open_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.errors import LocalProtocolError, PeerUnavailable, SwarmError, UsageError
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, ping
from blockswarm.routing.place.moves import ClaimTiming
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState
from support.tiny_models import write_tiny_checkpoint

BLOCKS = BlockRange(1, 4)
KV_TOKENS = 300
Announce = Callable[[int], Awaitable[None]]
"""Is given the number of the announcement, from 1."""


class StubDirectory:
    """A directory in which announcements do what a test wants."""

    def __init__(self, announce: Announce) -> None:
        self.announced: list[SignedRecord] = []
        self.ended = asyncio.Event()
        self._announce = announce
        self._count = 0

    isolated = False
    met_maddrs: Sequence[str] = ()

    async def visible_maddrs(self) -> Sequence[str]:
        return ("/ip4/127.0.0.1/tcp/1/p2p/x",)

    async def announce(self, record: SignedRecord) -> None:
        self._count += 1
        await self._announce(self._count)
        self.announced.append(record)

    async def lookup(self, name: str) -> Sequence[SignedRecord]:
        return tuple(self.announced)

    async def until_closed(self) -> None:
        await self.ended.wait()

    async def close(self) -> None:
        self.ended.set()

    def records(self) -> list[PeerRecord]:
        return [open_peer_record(record, None) for record in self.announced]

    def specs(self) -> list[PeerSpec]:
        return [record.spec for record in self.records()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    return open_checkpoint(write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def examined(checkpoint: Checkpoint) -> Examined:
    return examine_model(checkpoint, "cpu", "float32", "none", 1, time.perf_counter)


class Program:
    """One peer from a loaded engine on, in this process."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, examined: Examined, announce: Announce) -> None:
        timing = PeerTiming(claims=ClaimTiming(refresh_seconds=0.05), watch_seconds=0.02, goodbye_seconds=5.0)
        self.config = PeerConfig(
            model="model", blocks=BlockRequest(count=3), initial_peers=(), identity_path=folder / "key",
            host="127.0.0.1", port=0, announce=(), dht_port=0, swarm_key_path=None, allowed_peers=frozenset(),
            kv_tokens=KV_TOKENS, replay_bytes=0, prefix_cache_bytes=0, device="cpu", dtype="auto", quantize="none",
            threads=1, nice=False, data_folder=folder, metrics_host="127.0.0.1", metrics_port=None, name="",
            revision=None, timing=timing,
        )  # fmt: skip
        self.checkpoint, self.examined = checkpoint, examined
        self.identity = Identity.generate()
        self.directory = StubDirectory(announce)
        self.stop = StopRequest()
        self.ready: ReadyPeer | None = None
        self.on_ready: Callable[[], None] = lambda: None

    async def run(self) -> None:
        digest = self.checkpoint.model_digest().hex()
        dialer = Dialer(rule=EVERY_RANGE)
        source = BlockSource(
            lambda blocks, reuse, check: load_examined(self.checkpoint, blocks, self.examined, lambda *_: None, reuse),
            self.checkpoint.block_hashes,
        )
        lookups = RecentLookups(self.directory, digest, None, time.time, self.config.timing)
        offer = MemoryOffer.of(len(BLOCKS), KV_TOKENS, self.examined.block_bytes, self.examined.kv_bytes_per_token)
        rng, timing, peer = random.Random(1), self.config.timing, self.identity.peer_id
        announcer = Announcer(self.directory, self.identity, None, time.time, rng, lookups.announced, timing)
        blocks = self.checkpoint.num_blocks
        watch = SwarmWatch(peer, blocks, lookups.records, None, dialer, time.time, rng, timing)
        setup = PeerSetup(
            self.config, self.identity, None, self.checkpoint, digest, dialer, self.directory, lookups, self.examined,
            offer, source, announcer, watch, (), incarnation=1,
        )  # type: ignore[arg-type]  # fmt: skip

        def ready(peer: ReadyPeer) -> None:
            self.ready = peer
            self.on_ready()

        try:
            async with asyncio.timeout(60):
                await serve_until(setup, await source.hosted(BLOCKS, offer), ready, self.stop)
        finally:
            await lookups.close()
            await dialer.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is left"

    async def check_nothing_listens(self) -> None:
        assert self.ready is not None
        dialer = Dialer(rule=EVERY_RANGE)
        with pytest.raises(SwarmError):
            await ping(dialer.stub(self.ready.address), self.ready.address, 5.0)
        await dialer.close()


async def goes_well(number: int) -> None:
    """Every announcement reaches the directory."""


@pytest.mark.long
def test_a_peer_announces_itself_until_it_is_stopped(
    tmp_path: Path, checkpoint: Checkpoint, examined: Examined
) -> None:
    async def scenario() -> None:
        async def stop_with_the_third(number: int) -> None:
            if number == 3:
                program.stop()

        program = Program(tmp_path, checkpoint, examined, stop_with_the_third)
        await program.run()
        told = [(spec.state, spec.kv_tokens_total) for spec in program.directory.specs()]
        room = KV_TOKENS * len(BLOCKS)
        assert told[:2] == [(PeerState.SERVING, room), (PeerState.SERVING, room)]
        assert [news for news, _ in itertools.groupby(told)] == [  # on a busy machine some are announced again
            (PeerState.SERVING, room),
            (PeerState.DRAINING, room),
            (PeerState.DRAINING, 0),  # it refuses sessions when nobody waits for a successor
            (PeerState.LEAVING, 0),
        ]
        for spec in program.directory.specs():
            assert spec.blocks == BLOCKS
            assert spec.kv_tokens_total == spec.kv_tokens_free
            per_block = examined.block_bytes + KV_TOKENS * examined.kv_bytes_per_token
            assert spec.memory_bytes == len(BLOCKS) * per_block
            assert (spec.max_blocks, spec.blocks_fixed) == (3, False)
            assert abs(spec.issued_seconds - time.time()) < 60
        devices = {(record.device_class, record.tokens_served) for record in program.directory.records()}
        assert devices == {("cpu, 1 thread", 0)}, "measuring itself serves nobody"
        await program.check_nothing_listens()

    asyncio.run(scenario())


@pytest.mark.long
def test_a_peer_that_hides_its_device_says_nothing_of_it(
    tmp_path: Path, checkpoint: Checkpoint, examined: Examined
) -> None:
    async def scenario() -> None:
        program = Program(tmp_path, checkpoint, examined, goes_well)
        program.config = replace(program.config, tell_device=False)
        program.on_ready = program.stop  # type: ignore[assignment]
        await program.run()
        assert {record.device_class for record in program.directory.records()} == {""}

    asyncio.run(scenario())


@pytest.mark.long
def test_what_a_visit_costs_is_known_from_one_run_to_the_next(
    tmp_path: Path, checkpoint: Checkpoint, examined: Examined
) -> None:
    """Also where the machine computes otherwise than then: only serving tells what a visit costs."""
    digest = checkpoint.model_digest().hex()
    measured = Measured(digest, f"{examined.dtype} {examined.forms.name}", "cpu", examined.threads)
    CostStore(tmp_path).save(measured, ComputeCost(decode_fixed=1e-9, visit=4e-3))

    async def scenario() -> None:
        program = Program(tmp_path, checkpoint, examined, goes_well)
        program.on_ready = program.stop  # type: ignore[assignment]
        await program.run()
        costs = {spec.cost for spec in program.directory.specs()}
        assert {cost.visit for cost in costs} == {4e-3}
        assert all(cost.decode_fixed > 1e-8 for cost in costs), "that was measured anew"

    asyncio.run(scenario())
    kept = CostStore(tmp_path).load(measured)
    assert kept is not None
    assert kept.visit == 4e-3


@pytest.mark.long
def test_an_announcer_that_fails_ends_the_peer_with_its_reason(
    tmp_path: Path, checkpoint: Checkpoint, examined: Examined
) -> None:
    """The peer would serve on otherwise, and be invisible after a minute."""

    async def breaks(number: int) -> None:
        if number == 3:
            raise ValueError("no record")

    async def scenario() -> None:
        program = Program(tmp_path, checkpoint, examined, breaks)
        with pytest.raises(VitalTaskEnded, match="announcing the peer failed: ValueError: no record"):
            await program.run()
        assert program.directory.specs()[-1].state is PeerState.LEAVING
        await program.check_nothing_listens()

    asyncio.run(scenario())


@pytest.mark.long
def test_a_directory_that_is_unreachable_for_a_while_ends_nothing(
    tmp_path: Path, checkpoint: Checkpoint, examined: Examined
) -> None:
    async def scenario() -> None:
        async def fails_for_a_while(number: int) -> None:
            if number == 6:
                program.stop()
            if 2 <= number <= 4:
                raise PeerUnavailable("nobody is there")

        program = Program(tmp_path, checkpoint, examined, fails_for_a_while)
        await program.run()
        assert program.directory.specs()[-1].state is PeerState.LEAVING

    asyncio.run(scenario())


@pytest.mark.long
def test_a_peer_whose_record_nobody_takes_serves_and_tries_on(
    tmp_path: Path, checkpoint: Checkpoint, examined: Examined, caplog: pytest.LogCaptureFixture
) -> None:
    """900 identities of an attacker may fill a key: a newcomer must be able to start all the same."""

    async def scenario() -> None:
        async def refused_at_first(number: int) -> None:
            if number == 4:
                program.stop()
            if number < 4:
                assert (program.ready is not None) == (number > 1)
                raise PeerUnavailable("no node of the DHT kept the record")

        program = Program(tmp_path, checkpoint, examined, refused_at_first)
        await program.run()
        assert program.directory.specs()[0].state is PeerState.SERVING

    asyncio.run(scenario())
    assert any(line.startswith("announcing failed (no node of the DHT kept the record)") for line in caplog.messages)


def test_the_end_of_the_dht_node_is_the_end_of_the_peer(
    tmp_path: Path, checkpoint: Checkpoint, examined: Examined
) -> None:
    async def scenario() -> None:
        program = Program(tmp_path, checkpoint, examined, goes_well)
        program.on_ready = program.directory.ended.set
        with pytest.raises(VitalTaskEnded, match="the node of the DHT has ended"):
            await program.run()
        await program.check_nothing_listens()

    asyncio.run(scenario())


@pytest.mark.long
def test_a_start_that_fails_half_way_leaves_nothing_open(
    tmp_path: Path, checkpoint: Checkpoint, examined: Examined
) -> None:
    """The key is in use elsewhere; and later: the port of the metrics is taken."""

    async def never(number: int) -> None:
        raise LocalProtocolError("a later record is there")

    async def scenario() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program = Program(tmp_path, checkpoint, examined, never)
        program.config = replace(program.config, port=port)
        with pytest.raises(LocalProtocolError, match="a later record is there"):
            await program.run()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))  # nobody listens there any more
            taken.listen()
            program = Program(tmp_path, checkpoint, examined, goes_well)
            program.config = replace(program.config, metrics_port=port)
            with pytest.raises(UsageError, match="metrics cannot be served"):
                await program.run()
        assert [spec.state for spec in program.directory.specs()] == [PeerState.SERVING, PeerState.LEAVING]

    asyncio.run(scenario())
