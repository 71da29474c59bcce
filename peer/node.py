"""A peer from start to end: join, load, serve, announce, drain.

Stopping has stages: take no new sessions, let the open ones end, say goodbye in the directory, close. A second signal
skips the waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..proto.directory.records import open_peer_record
from ..proto.directory.swarm_key import SwarmKey
from ..proto.errors import SwarmError
from ..proto.identity import Identity
from ..proto.model.checkpoint import Checkpoint, open_checkpoint
from ..proto.network.transport import Dialer
from ..routing.swarm import BlockRange
from .config import PeerConfig
from .hosting import BlockSource
from .join import join_swarm
from .key_lock import exclusive_key
from .offer.capacity import MemoryOffer, choose_blocks, count_that_fits, explain, need_and_free
from .offer.lookups import RecentLookups
from .owner.governor import NICENESS
from .serving import PeerSetup, ReadyPeer, serve_until
from .tasks import StopRequest, cancel_all, run_to_end, until_stopped

if TYPE_CHECKING:
    from .engine.blocks.stage import Stage
    from .engine.load import Examined

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(what, bytes done, bytes in all)"""


async def run_peer(config: PeerConfig, on_ready: Callable[[ReadyPeer], None], progress: Progress) -> None:
    """Run a peer until SIGINT or SIGTERM. Raises SwarmError if it cannot start."""
    if config.nice:
        os.nice(NICENESS)  # of this thread, and of all that are started from now on
    stop = StopRequest()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop)
    await until_stopped(_run(config, on_ready, progress, stop), stop)


async def _run(
    config: PeerConfig, on_ready: Callable[[ReadyPeer], None], progress: Progress, stop: StopRequest
) -> None:
    identity = Identity.load_or_create(config.identity_path)
    with exclusive_key(config.identity_path):
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
    digest = (
        await asyncio.to_thread(checkpoint.model_digest, lambda done, total: progress("hashing", done, total))
    ).hex()
    dialer = Dialer()
    # Joining waits for the network and the DHT daemon; the processor has something to do meanwhile.
    examining = asyncio.create_task(_examine(config, checkpoint), name="examine the model")
    try:
        async with join_swarm(config, dialer, digest, swarm_key) as (directory, lookups):
            examined = await examining
            blocks = await _choose(config, checkpoint, examined, lookups, swarm_key)
            offer = MemoryOffer.of(len(blocks), config.kv_tokens, examined.block_bytes, examined.kv_bytes_per_token)
            source = _source(checkpoint, examined, progress)
            hosted = await source.hosted(blocks, offer)
            setup = PeerSetup(
                config, identity, swarm_key, checkpoint, digest, dialer, directory, lookups, examined, offer, source
            )
            await serve_until(setup, hosted, on_ready, stop)
    finally:
        await run_to_end(cancel_all([examining]))
        await dialer.close()


async def _examine(config: PeerConfig, checkpoint: Checkpoint) -> Examined:
    """Whether the model may be served, and how. Raises UnsupportedModel, UsageError."""
    from .engine.load import examine_model  # brings torch

    return await asyncio.to_thread(
        examine_model,
        checkpoint,
        config.device,
        config.dtype,
        config.quantize,
        config.threads,
        time.perf_counter,
    )


async def _choose(
    config: PeerConfig, checkpoint: Checkpoint, examined: Examined, lookups: RecentLookups, swarm_key: SwarmKey | None
) -> BlockRange:
    """The blocks to host: those asked for, or as many as fit, where the swarm needs them most."""
    need, free = need_and_free(
        config.kv_tokens,
        config.replay_bytes,
        examined.block_bytes,
        examined.kv_bytes_per_token,
        examined.device_free_bytes,
    )
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


def _source(checkpoint: Checkpoint, examined: Examined, progress: Progress) -> BlockSource:
    """Fetches and loads blocks of the model as it was examined."""

    def load(blocks: BlockRange, reuse: Stage | None) -> Stage:
        from .engine.load import load_examined  # brings torch

        return load_examined(checkpoint, blocks, examined, progress, reuse)

    return BlockSource(load, checkpoint.block_hashes)
