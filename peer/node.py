"""A peer from start to end: join, load, serve, announce, drain.

Stopping has stages: take no new sessions, let the open ones end, say goodbye in the directory, close. A second signal
skips the waiting.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..proto import swarm_pb2 as pb
from ..proto.checkpoint import Checkpoint, open_checkpoint
from ..proto.errors import AuthenticationError, ModelMismatch, PeerUnavailable, SwarmError, WrongKey, WrongSwarm
from ..proto.handshake import PROTOCOL_VERSION, HelloChecker
from ..proto.identity import Identity
from ..proto.records import PeerRecord, SwarmKey, open_peer_record
from ..proto.transport import Dialer, PeerAddress, ping, serve
from ..routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState
from .announce import Announcer, RecentLookups
from .calibrate import calibrate
from .capacity import Need, choose_blocks, count_that_fits, explain, free_memory_bytes
from .config import PeerConfig
from .key_lock import held
from .replay_store import ReplayStore
from .service import PeerParts, PeerService
from .sessions import SessionTable

if TYPE_CHECKING:
    from ..proto.hivemind_directory import HivemindDirectory
    from .engine.engine import Engine

logger = logging.getLogger(__name__)

JOIN_PING_SECONDS = 10.0
DRAIN_SECONDS = 120.0
GOODBYE_SECONDS = 3.0

Progress = Callable[[str, int, int], None]
"""(what, bytes done, bytes in all)"""


@dataclass(frozen=True)
class ReadyPeer:
    """What there is to know about a peer that serves."""

    address: PeerAddress
    blocks: BlockRange
    num_blocks: int
    cost: ComputeCost
    kv_tokens: int
    model_digest: str


class StopRequest:
    """Stops a peer: the first time gently, the second time, or before it serves, at once."""

    def __init__(self) -> None:
        self.serving = False
        self.gently = asyncio.Event()
        self.now = asyncio.Event()

    def __call__(self) -> None:
        (self.gently if self.serving and not self.gently.is_set() else self.now).set()


async def run_peer(config: PeerConfig, on_ready: Callable[[ReadyPeer], None], progress: Progress) -> None:
    """Run a peer until SIGINT or SIGTERM. Raises SwarmError if it cannot start."""
    stop = StopRequest()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, stop)
    await _until_stopped(_run(config, on_ready, progress, stop), stop)


async def _until_stopped(work: Coroutine[Any, Any, None], stop: StopRequest) -> None:
    """Run `work`; a stop before it serves, or a second one, cancels it."""
    task = asyncio.create_task(work)
    forced = asyncio.create_task(stop.now.wait())
    try:
        await asyncio.wait([task, forced], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            logger.warning("stopped at once%s", ", open sessions are lost" if stop.serving else "")
            task.cancel()
        await task
    except asyncio.CancelledError:
        if not forced.done():
            raise
    finally:
        forced.cancel()


async def _run(
    config: PeerConfig, on_ready: Callable[[ReadyPeer], None], progress: Progress, stop: StopRequest
) -> None:
    identity = Identity.load_or_create(config.identity_path)
    with held(config.identity_path):
        await _run_as(identity, config, on_ready, progress, stop)


async def _run_as(
    identity: Identity,
    config: PeerConfig,
    on_ready: Callable[[ReadyPeer], None],
    progress: Progress,
    stop: StopRequest,
) -> None:
    swarm_key = SwarmKey.load(config.swarm_key_path) if config.swarm_key_path else None
    checkpoint = await asyncio.to_thread(open_checkpoint, config.model, revision=config.revision)
    if config.blocks.blocks is not None or config.blocks.count is not None:
        choose_blocks(config.blocks, checkpoint.num_blocks, checkpoint.num_blocks, ())  # refuse a bad range early
    digest = (await asyncio.to_thread(checkpoint.model_digest)).hex()
    dialer = Dialer()
    # Joining waits for the network and the DHT daemon; the processor has something to do meanwhile.
    examining = asyncio.create_task(_examine(config, checkpoint), name="examine the model")
    try:
        async with _joined(config, dialer, digest, swarm_key) as directory:
            lookups = RecentLookups(directory, digest, swarm_key, time.time)
            blocks = await _choose(config, checkpoint, await examining, lookups, swarm_key)
            engine = await _load(config, checkpoint, blocks, progress)
            try:
                await _serve(config, identity, swarm_key, checkpoint, digest, dialer, directory, lookups, engine,
                             on_ready, stop)  # fmt: skip
            finally:
                engine.close()
    finally:
        examining.cancel()
        await asyncio.gather(examining, return_exceptions=True)
        await dialer.close()


@asynccontextmanager
async def _joined(
    config: PeerConfig, dialer: Dialer, digest: str, swarm_key: SwarmKey | None
) -> AsyncIterator[HivemindDirectory]:
    """Be a node of the DHT, a new one or that of the initial peers."""
    from ..proto.hivemind_directory import HivemindDirectory

    initial: Sequence[str] = ()
    if config.initial_peers:
        initial = await _initial_maddrs(config.initial_peers, dialer, digest, swarm_key is not None)
    host = "0.0.0.0" if config.host == "0.0.0.0" else config.host
    directory = await HivemindDirectory.start(
        config.identity_path,
        initial,
        [f"/ip4/{host}/tcp/{config.dht_port}"],
        swarm_key,
    )
    try:
        yield directory
    finally:
        await directory.close()


async def _initial_maddrs(peers: tuple[PeerAddress, ...], dialer: Dialer, digest: str, private: bool) -> list[str]:
    """The DHT addresses of the initial peers that answer; `private`: we have the key of a private swarm.

    Raises PeerUnavailable, AuthenticationError where somebody else answers, ModelMismatch, WrongKey, WrongSwarm.
    """

    async def ask(address: PeerAddress) -> pb.PingReply:
        reply, _, _ = await ping(dialer.stub(address), address, JOIN_PING_SECONDS)
        return reply

    answers = await asyncio.gather(*(ask(address) for address in peers), return_exceptions=True)
    replies = [answer for answer in answers if isinstance(answer, pb.PingReply)]
    if not replies:
        for answer in answers:
            if isinstance(answer, AuthenticationError):
                raise answer
        raise PeerUnavailable(
            f"none of the initial peers answers: {', '.join(map(str, peers))}",
            hint="Check the addresses and that one of them runs; --new-swarm begins a swarm without any.",
        )
    _check_privacy(replies, private)
    others = [reply for reply in replies if reply.model_digest and reply.model_digest != digest]
    if len(others) == len(replies):
        raise ModelMismatch(
            f"the initial peers serve {others[0].model_name} ({others[0].model_digest[:12]}), not this model"
            f" ({digest[:12]})"
        )
    return [maddr for reply in replies for maddr in reply.dht_addresses]


def _check_privacy(replies: Sequence[pb.PingReply], private: bool) -> None:
    """The peers of a private swarm do not tell strangers their model. Raises WrongKey, WrongSwarm."""
    public = [bool(reply.model_digest) for reply in replies]
    if not private and not any(public):
        raise WrongKey("the initial peers belong to a private swarm, and no swarm key was given")
    if private and all(public):
        raise WrongSwarm(
            "the initial peers belong to a public swarm, and the key of a private one was given",
            hint="Leave --swarm-key out, or name peers of the private swarm.",
        )


async def _examine(config: PeerConfig, checkpoint: Checkpoint) -> Need:
    """Whether the model may be served, and what a block of it needs. Raises UnsupportedModel."""
    from .engine.load import examine_model  # brings torch

    weights, kv_per_token = await asyncio.to_thread(examine_model, checkpoint.config, config.dtype, config.threads)
    return Need(weights, kv_per_token * config.kv_tokens, config.replay_bytes)


async def _choose(
    config: PeerConfig, checkpoint: Checkpoint, need: Need, lookups: RecentLookups, swarm_key: SwarmKey | None
) -> BlockRange:
    """The blocks to host: those asked for, or as many as fit, where the swarm needs them most."""
    free = free_memory_bytes()
    asked = len(config.blocks.blocks) if config.blocks.blocks is not None else config.blocks.count
    if asked is not None:
        fits = checkpoint.num_blocks
        if need.total(asked) > free:
            logger.warning("there is not enough memory for full use: %s", explain(need, free, asked))
    else:
        fits = count_that_fits(need, free, checkpoint.num_blocks)
        logger.info("--blocks auto: %s", explain(need, free, fits))
    present = []
    for record in await lookups.records():
        try:
            present.append(open_peer_record(record, swarm_key).spec)
        except SwarmError as error:
            logger.debug("a record is ignored: %s", error)
    return choose_blocks(config.blocks, checkpoint.num_blocks, fits, present)


async def _load(config: PeerConfig, checkpoint: Checkpoint, blocks: BlockRange, progress: Progress) -> Engine:
    """Fetch and load the blocks."""
    from .engine.load import load_engine  # brings torch

    return await asyncio.to_thread(load_engine, checkpoint, blocks, config.dtype, progress)


async def _serve(
    config: PeerConfig,
    identity: Identity,
    swarm_key: SwarmKey | None,
    checkpoint: Checkpoint,
    digest: str,
    dialer: Dialer,
    directory: HivemindDirectory,
    lookups: RecentLookups,
    engine: Engine,
    on_ready: Callable[[ReadyPeer], None],
    stop: StopRequest,
) -> None:
    blocks = engine.blocks
    hashes = await asyncio.to_thread(checkpoint.block_hashes, blocks)
    cost = await engine.submit(lambda: calibrate(engine, time.perf_counter))
    sessions = SessionTable(config.kv_tokens * len(blocks))
    maddrs = list(await directory.visible_maddrs())
    service = PeerService(
        PeerParts(
            identity=identity,
            engine=engine,
            sessions=sessions,
            replay=ReplayStore(config.replay_bytes),
            hellos=HelloChecker(identity.peer_id, time.time, swarm_key, config.allowed_peers),
            dialer=dialer,
            model_digest=digest,
            model_name=config.model_name,
            swarm_key=swarm_key,
            lookup=lookups.lookup,
            dht_addresses=lambda: maddrs,
        )
    )
    server, port = await serve(identity, service.handlers, config.host, config.port)
    incarnation = time.time_ns()

    def record(state: PeerState) -> PeerRecord:
        spec = PeerSpec(
            id=identity.peer_id,
            blocks=blocks,
            cost=cost,
            state=state,
            memory_bytes=float(len(blocks) * engine.stage.block_bytes),
            kv_tokens_total=sessions.kv_token_blocks_total,
            kv_tokens_free=sessions.kv_token_blocks_free,
            block_hashes=hashes,
            numeric_format=config.dtype,
        )
        return PeerRecord(
            model_digest=digest,
            spec=spec,
            addresses=config.addresses(port),
            dht_maddrs=tuple(maddrs[:4]),
            incarnation=incarnation,
            protocol_version=PROTOCOL_VERSION,
            public_name=config.name,
        )

    announcer = Announcer(directory, identity, swarm_key, record, time.time, random.Random(incarnation))
    await announcer.change(PeerState.SERVING)
    refreshing = asyncio.create_task(announcer.run(), name="announce")
    stop.serving = True
    try:
        on_ready(ReadyPeer(PeerAddress(identity.peer_id, config.addresses(port)[0]), blocks, checkpoint.num_blocks,
                           cost, config.kv_tokens, digest))  # fmt: skip
        await stop.gently.wait()
        service.drain()
        if service.open_sessions:
            logger.info("stopping: %d sessions end first; a second signal stops at once", service.open_sessions)
        await _announce_quickly(announcer, PeerState.DRAINING)
        try:
            await asyncio.wait_for(service.wait_idle(), DRAIN_SECONDS)
        except TimeoutError:
            logger.warning("sessions are still open after %.0f s and are ended", DRAIN_SECONDS)
    finally:
        refreshing.cancel()
        await asyncio.gather(refreshing, return_exceptions=True)
        await _announce_quickly(announcer, PeerState.LEAVING)
        await server.stop(grace=0)


async def _announce_quickly(announcer: Announcer, state: PeerState) -> None:
    """A goodbye is a courtesy: the record runs out by itself."""
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            await announcer.change(state)
    except (SwarmError, TimeoutError) as error:
        logger.info("could not announce %s: %s", state.value, error)
