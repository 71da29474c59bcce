"""Records of peers that say nothing, over real sockets: clients start soon, and their sessions go on."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.config import SessionEvent
from blockswarm.client.timing import ClientTiming
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.directory.directory import MemoryDirectory
from blockswarm.proto.directory.records import MAX_ADDRESSES, PeerRecord, sign_peer_record
from blockswarm.proto.directory.swarm_key import swarm_key_name
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec
from support.chain_truth import BLOCKS, Truth, check_step, plan
from support.silent_ports import SilentPort, silent_port
from support.swarm import RECORD_SECONDS, LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = [pytest.mark.swarm, pytest.mark.long]

SILENT = 135
"""Records with as many addresses as fit: 1080 in all, more than the connections that a client keeps."""
TIMING = ClientTiming(ping_seconds=1.0, look_seconds=2.0)
STORY = [plan((0, 0, 20)), plan((0, 20, 1)), plan((0, 21, 1)), plan((0, 15, 3))]


async def announce_silence(swarm: LocalSwarm, ports: list[SilentPort]) -> None:
    """Somebody makes up peers that seem to be the best of all."""
    directory = MemoryDirectory(swarm.store, time.time)
    for _ in range(SILENT):
        identity = Identity.generate()
        spec = PeerSpec(
            identity.peer_id, BlockRange(0, BLOCKS), ComputeCost(1e-6), kv_tokens_total=1 << 20, kv_tokens_free=1 << 20,
            block_hashes=swarm.checkpoint.block_hashes(BlockRange(0, BLOCKS)),
        )  # fmt: skip
        record = PeerRecord(swarm.digest, spec, addresses=tuple(port.target for port in ports), incarnation=1)
        await directory.announce(sign_peer_record(identity, record, None, time.time() + 100))


def test_a_client_starts_and_its_session_goes_on_whatever_is_announced(tmp_path: Path) -> None:
    """45 such records kept clients from starting within 30 s, 135 had a client close the channels of its sessions."""
    folder = write_tiny_checkpoint("llama", tmp_path)
    truth = Truth(Engine(load_stage(open_checkpoint(folder), BlockRange(0, BLOCKS)), KvPool(0, prefix_limit_bytes=0)))
    events: list[SessionEvent] = []

    async def main() -> None:
        async with asyncio.timeout(300), AsyncExitStack() as stack:
            ports = [await stack.enter_async_context(silent_port()) for _ in range(MAX_ADDRESSES)]
            swarm = await stack.enter_async_context(local_swarm(folder, "0:3", "3:6"))
            await announce_silence(swarm, ports)
            config = await swarm.client(events=events, timing=TIMING)
            knocks = sum(port.knocks for port in ports)
            assert 0 < knocks < MAX_ADDRESSES * SILENT, "the looks end by their time, and do not try all addresses"
            (view,), session = swarm.views, ChainSession(config, 100, 1)
            assert len(view.usable()) == 2
            for number, step in enumerate(STORY):
                knocks = sum(port.knocks for port in ports)
                await check_step(session, truth, step, number)
                await view.refresh()
                assert sum(port.knocks for port in ports) - knocks <= SILENT
                assert len(view.usable()) == 2
            assert not {"hop-lost", "replay", "stalled"} & {event.kind for event in events}
            assert config.dialer.open_channels <= 2, "nothing is left of those that say nothing"
            await session.close()

    asyncio.run(main())


def test_peers_of_a_swarm_in_memory_renew_their_records_until_they_die(tmp_path: Path) -> None:
    """Without it a test file that took 100 s on a busy machine lost its swarm."""
    folder = write_tiny_checkpoint("llama", tmp_path)

    async def main() -> None:
        async with local_swarm(folder, "0:3", "3:6") as swarm:
            directory = MemoryDirectory(swarm.store, time.time)
            name = swarm_key_name(swarm.digest, None)
            before = {record.peer_id: record.expires_at_seconds for record in await directory.lookup(name)}
            gone = swarm.peers[1]
            await gone.kill()
            await swarm.renew(time.time())
            await swarm.renew(time.time() + RECORD_SECONDS / 2)
            after = {record.peer_id: record.expires_at_seconds for record in await directory.lookup(name)}
            renewed = [peer_id for peer_id, expires_at in after.items() if expires_at > before[peer_id]]
            assert renewed == [swarm.peers[0].identity.peer_id]

    asyncio.run(main())
