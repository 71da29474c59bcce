"""A peer from start to stop: join, load, serve, announce, drain.

Stopping has stages: take no new sessions, let the open ones end, say goodbye in the directory, close. A second signal
skips the waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..proto.clock import SteadyClock
from ..proto.directory.records import MAX_BLOCKS, PeerRecord
from ..proto.directory.swarm_key import SwarmKey, dht_id, swarm_key_name
from ..proto.identity import Identity
from ..proto.model.checkpoint import Checkpoint, open_checkpoint
from ..proto.network.address import LOOPBACK, HostPort, PeerAddress
from ..proto.network.crowding import raise_descriptor_limit
from ..proto.network.transport import Dialer, introduction
from ..proto.service_manager import STOPPING, tell_service_manager
from ..proto.weights.kept import FORMS_FILE_NAME, KeptMeasurements
from ..routing.outlook import Outlook, outlook_of, with_peer_at
from ..routing.place.moves import ReplanPolicy
from ..routing.place.rule import upcoming
from ..routing.swarm import BlockRange, ComputeCost, MoveClaim, PeerState, Swarm
from .config import BlockRequest, PeerConfig, ReachMode
from .engine.driver import check_device
from .hosting import BlockSource, Hosted
from .join import first_contacts, join_swarm
from .key_lock import exclusive_key
from .offer.announce import Announcer
from .offer.capacity import (
    MemoryOffer,
    check_blocks,
    check_space,
    count_that_fits,
    explain,
    free_memory_bytes,
    need_and_free,
)
from .offer.cost_store import CostStore
from .offer.record import ClientFacts, ReachFacts, RecordFacts, RoomFacts, record_of
from .owner.governor import NICENESS
from .placement.group import GroupLook
from .placement.watch import SwarmWatch
from .reach.ask import ReachAsker
from .reach.first import first_verdict
from .reach.ports import RememberedPorts, check_port, port_of, usable_port
from .reach.verdict import UNCHECKED, ReachStatus, ReachVerdict
from .setup import PeerSetup
from .tasks import StopRequest, cancel_all, run_to_end, until_stopped, vital_tasks

if TYPE_CHECKING:
    from .engine.blocks.stage import Stage
    from .engine.load import Examined
    from .serving import ReadyPeer

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(what, bytes done, bytes in all); the last is 0 for work of unknown length."""


async def run_peer(
    config: PeerConfig,
    on_ready: Callable[[ReadyPeer], None],
    progress: Progress,
    leave: Callable[[], object] | None = None,
) -> None:
    """Run a peer until SIGINT, SIGTERM or the end of its terminal.

    `leave` as for StopRequest. Raises SwarmError if it cannot start.
    """
    if config.nice:
        os.nice(NICENESS)  # of this thread, and of all threads started from now on
    raise_descriptor_limit()
    stop = StopRequest(lambda: tell_service_manager(STOPPING), leave, config.timing.cleanup_seconds)
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup the peer outlives its terminal
        loop.add_signal_handler(signal.SIGHUP, stop.hang_up)
    await until_stopped(_run(config, on_ready, progress, stop), stop)


async def _run(
    config: PeerConfig, on_ready: Callable[[ReadyPeer], None], progress: Progress, stop: StopRequest
) -> None:
    identity = Identity.load_or_create(config.identity_path)
    with exclusive_key(config.identity_path):
        for option, host, port in config.ports:
            check_port(option, host, port)
        async with _in_swarm(identity, config, progress) as setup:
            from .serving import serve_until  # brings torch

            try:
                await serve_until(setup, await first_blocks(setup), on_ready, stop)
            finally:
                await setup.announcer.say_goodbye()


@asynccontextmanager
async def _in_swarm(identity: Identity, config: PeerConfig, progress: Progress) -> AsyncIterator[PeerSetup]:
    """Examine the model, join the swarm and yield the peer's setup; nothing is announced yet."""
    swarm_key = SwarmKey.load(config.swarm_key_path) if config.swarm_key_path else None
    check_device(config.device)
    checkpoint = await asyncio.to_thread(_open, config)
    digest = (
        await asyncio.to_thread(checkpoint.model_digest, lambda done, total: progress("hashing", done, total))
    ).hex()
    rule = config.dial_rule(swarm_key is not None)
    clock = SteadyClock()
    dialer = Dialer(rule=rule, named=config.initial_peers, introduce=introduction(identity, swarm_key))
    examining: asyncio.Task[Examined] | None = None
    try:
        contacts = await first_contacts(config, dialer, digest, swarm_key)
        # Joining waits for the network and the DHT daemon: the processor is free meanwhile.
        examining = asyncio.create_task(_examine(config, checkpoint, progress), name="examine the model")
        config, verdict = await _reach(config, identity, dialer, swarm_key)
        reached = verdict.reached is not ReachStatus.NO and config.reach is not ReachMode.RELAY
        async with join_swarm(config, dialer, digest, swarm_key, contacts, reached, clock, checkpoint.num_blocks) as (
            directory,
            lookups,
        ):
            examined = await examining
            offer, asked = _offer(config, checkpoint, examined)
            incarnation = time.time_ns()
            rng, timing = random.Random(incarnation), config.timing
            announcer = Announcer(directory, identity, swarm_key, clock, rng, lookups.announced, timing)
            # Not through `lookups`, the cache for clients: looks of the peer itself must not make its answers older.
            name = swarm_key_name(digest, swarm_key)
            group = GroupLook(partial(directory.lookup, name), partial(directory.shards.of, dht_id(name)))
            watch = SwarmWatch(
                identity.peer_id, checkpoint.num_blocks, group.records, swarm_key, dialer, clock, rng, timing,
                lambda: directory.isolated, checkpoint.proven_hashes(), age_seconds=lambda: group.age_seconds,
            )  # fmt: skip
            maddrs = tuple(await directory.visible_maddrs())
            yield PeerSetup(
                replace(config, blocks=asked), identity, swarm_key, checkpoint, digest, dialer, directory, lookups,
                examined, offer, _source(checkpoint, examined, progress), announcer, watch,
                () if directory.client_mode else maddrs, incarnation, clock, free_bytes=_free_bytes(examined),
                first_verdict=verdict, dht_port=port_of(maddrs), group=group,
            )  # fmt: skip
    finally:
        await run_to_end(cancel_all([examining] if examining is not None else []))
        await dialer.close()


async def _reach(
    config: PeerConfig, identity: Identity, dialer: Dialer, swarm_key: SwarmKey | None
) -> tuple[PeerConfig, ReachVerdict]:
    """Return the configuration with the ports to use, and whether the initial peers reach this peer at them."""
    if config.reach is ReachMode.RELAY:
        config = replace(config, host=LOOPBACK)
    known = await asyncio.to_thread(RememberedPorts(config.data_folder, identity.peer_id).load)
    config = replace(
        config,
        port=usable_port(config.host, config.port, known.data),
        dht_port=usable_port(config.host, config.dht_port, known.dht),
    )
    if config.reach is not ReachMode.AUTO or not config.initial_peers:
        return config, UNCHECKED

    async def initial_peers() -> Sequence[PeerAddress]:
        return config.initial_peers

    asker = ReachAsker(initial_peers, dialer, introduction(identity, swarm_key), random.Random(), config.timing)
    named = HostPort.parse(config.announce[0]).port if config.announce else None
    verdict, port = await first_verdict(identity, config.host, config.port, asker, time.time, named)
    return replace(config, port=port), verdict


def _open(config: PeerConfig) -> Checkpoint:
    """Open the checkpoint; check that it has the requested blocks, and the disk the space for them.

    Raises as `open_checkpoint`, `check_blocks` and `check_space`.
    """
    checkpoint = open_checkpoint(config.model, revision=config.revision, cache_limit_bytes=config.cache_limit_bytes)
    check_blocks(config.blocks, checkpoint.num_blocks)
    check_space(config.blocks, checkpoint.num_blocks, checkpoint.check_space)
    return checkpoint


async def _examine(config: PeerConfig, checkpoint: Checkpoint, progress: Progress) -> Examined:
    """Find out, in a thread, whether the model can be served, and how. Raises UnsupportedModel, UsageError."""

    def examine() -> Examined:
        progress("importing torch", 0, 0)
        from .engine.load import examine_model  # brings torch

        progress("examining the model", 0, 0)
        kept = KeptMeasurements(config.data_folder / FORMS_FILE_NAME)
        return examine_model(
            checkpoint, config.device, config.dtype, config.quantize, config.threads, time.perf_counter, kept=kept
        )

    return await asyncio.to_thread(examine)


def _offer(config: PeerConfig, checkpoint: Checkpoint, examined: Examined) -> tuple[MemoryOffer, BlockRequest]:
    """Return the memory to offer, for the requested blocks or for as many as fit, and the request to go on with.

    If `kv_tokens` is less than one planned request needs in a block, --blocks auto becomes a request for the number
    that fits: the placement rule cannot derive a number for such a peer.  Raises OutOfMemory.
    """
    need, free = need_and_free(
        config.kv_tokens,
        config.replay_bytes,
        examined.block_bytes,
        examined.kv_bytes_per_token,
        examined.device_free_bytes,
    )
    asked = config.blocks
    count = len(asked.blocks) if asked.blocks is not None else asked.count
    if count is None:
        count = count_that_fits(need, free, min(checkpoint.num_blocks, MAX_BLOCKS))
        logger.info("--blocks auto: %s", explain(need, free, count))
        if config.kv_tokens < ReplanPolicy().request.kv_tokens_per_block:
            asked = BlockRequest(count=count)
    elif need.total(count) > free:
        logger.warning("there is not enough memory for full use: %s", explain(need, free, count))
    return MemoryOffer.of(count, config.kv_tokens, examined.block_bytes, examined.kv_bytes_per_token), asked


def _free_bytes(examined: Examined) -> Callable[[], int]:
    """Return a function that reads the free memory, in bytes, of the device with the blocks."""

    def free() -> int:
        from .engine.device import device_free_bytes  # brings torch

        own = device_free_bytes(examined.device)
        return free_memory_bytes() if own is None else own

    return free


def _source(checkpoint: Checkpoint, examined: Examined, progress: Progress) -> BlockSource:
    """Return the source that fetches and loads blocks of the examined model."""

    def load(blocks: BlockRange, reuse: Stage | None, check: Callable[[], None]) -> Stage:
        from .engine.load import load_examined  # brings torch

        def heard(what: str, done: int, total: int) -> None:
            check()
            progress(what, done, total)

        return load_examined(checkpoint, blocks, examined, heard, reuse)

    return BlockSource(load, checkpoint.block_hashes)


# --- the first blocks ------------------------------------------------------------------------------------------------


async def first_blocks(setup: PeerSetup) -> Hosted:
    """Load the blocks that the operator chose or the agent claims; announce the peer as joining meanwhile.

    Raises SwarmError if the swarm cannot be seen or the blocks cannot be loaded.
    """
    announcer, chosen = setup.announcer, setup.config.blocks.blocks
    await setup.watch.look()
    host = _FirstBlocks(setup)
    cost = await _cost_before_blocks(setup)
    agent = setup.agent_for(host, lambda: _joining_record(setup, cost, agent.claim, setup.clock()).spec)
    claimed = MoveClaim(setup.clock(), chosen) if chosen is not None else None
    announcer.make_record = lambda state, issued: _joining_record(setup, cost, claimed or agent.claim, issued, state)
    work = {"announcing the peer": announcer.run(), "the node of the DHT": setup.directory.until_closed()}
    async with vital_tasks(work):
        await announcer.renew()
        if chosen is not None:
            return await host.load(chosen)
        await agent.join()
    return host.hosted


def _joining_record(
    setup: PeerSetup,
    cost: ComputeCost,
    claim: MoveClaim | None,
    issued_seconds: float,
    state: PeerState = PeerState.JOINING,
) -> PeerRecord:
    """The record of a peer that serves nothing yet."""
    facts = RecordFacts(
        state=state,
        issued_seconds=issued_seconds,
        identity=setup.identity_facts,
        hosting=setup.hosting_facts(None, ()),
        cost=cost,
        room=RoomFacts(0, 0, ()),
        reach=ReachFacts.of((), setup.maddrs),
        clients=ClientFacts(0.0),
        coordinate=setup.watch.coordinate.value,
        claim=claim,
    )
    return record_of(facts)


# --- a plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """The blocks that this machine would host, and their gain; nothing was downloaded or announced."""

    blocks: BlockRange | None
    """None: the swarm has no place for it now."""
    num_blocks: int
    numeric_format: str
    checkpoint_bytes: int
    """Size of these blocks in the checkpoint: the most that a download could have."""
    memory_bytes: int
    """Offered for weights and attention caches."""
    decode_seconds_per_block: float
    before: Outlook | None
    """None: the swarm has no other peer yet."""
    after: Outlook | None
    planned_with: int = 0
    """The number of peers that the plan considers..."""
    peers: int = 0
    """...of about this many: a swarm of thousands is placed in groups."""


async def plan_peer(config: PeerConfig, progress: Progress) -> PeerPlan:
    """Find out what a peer with this configuration would do. Raises SwarmError."""
    identity = Identity.load_or_create(config.identity_path)
    async with _in_swarm(identity, config, progress) as setup:
        cost = await _cost_before_blocks(setup)
        swarm = await setup.watch.snapshot(lambda: _joining_record(setup, cost, None, setup.clock()).spec)
        return await asyncio.to_thread(_plan, setup, cost, swarm)


def _plan(setup: PeerSetup, cost: ComputeCost, swarm: Swarm) -> PeerPlan:
    own, checkpoint = setup.identity.peer_id, setup.checkpoint
    planned = (move.after for move in upcoming(swarm, limit=len(swarm.peers)) if move.peer == own)
    blocks = setup.config.blocks.blocks or next(planned, None)
    others = replace(swarm, peers=tuple(peer for peer in swarm.peers if peer.id != own))
    before = outlook_of(others) if others.peers else None
    after = outlook_of(with_peer_at(swarm, own, blocks)) if blocks is not None else before
    return PeerPlan(
        blocks=blocks,
        num_blocks=checkpoint.num_blocks,
        numeric_format=setup.examined.numeric_format,
        checkpoint_bytes=sum(checkpoint.block_bytes(block) for block in blocks or ()),
        memory_bytes=setup.offer.total_bytes,
        decode_seconds_per_block=cost.decode_seconds(),
        before=before,
        after=after,
        planned_with=setup.group.planned_with if setup.group is not None else len(others.peers),
        peers=setup.group.peers if setup.group is not None else len(others.peers),
    )


class _FirstBlocks:
    """The placement agent's host while a peer joins: no blocks, until some are adopted."""

    def __init__(self, setup: PeerSetup) -> None:
        self._setup = setup
        self._hosted: Hosted | None = None

    @property
    def blocks(self) -> BlockRange | None:
        return self._hosted.blocks if self._hosted is not None else None

    @property
    def hosted(self) -> Hosted:
        assert self._hosted is not None, "the agent has joined"
        return self._hosted

    async def load(self, blocks: BlockRange) -> Hosted:
        return await self._setup.source.hosted(blocks, self._setup.offer)

    async def adopt(self, loaded: Hosted) -> None:
        self._hosted = loaded


async def _cost_before_blocks(setup: PeerSetup) -> ComputeCost:
    """Return the cost that an earlier run measured, or else measure one block with random weights."""
    store = CostStore(setup.config.data_folder)
    if (known := store.load(setup.measured)) is not None:
        return known

    def measure() -> ComputeCost:
        logger.info("measuring a block with random weights")
        from .engine.load import sample_stage  # brings torch
        from .offer.calibrate import calibrate

        stage = sample_stage(setup.checkpoint.config, setup.examined)
        return calibrate(stage, time.perf_counter, setup.config.timing.calibration_seconds)

    return await asyncio.to_thread(measure)
