"""The wait of a peer that leaves, until others serve the blocks that only it has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ...proto.errors import SwarmError, describe_blocks
from ...routing.place.claims import is_succeeded, unreplaced
from ...routing.swarm import PeerId, Swarm
from ..timing import PeerTiming

logger = logging.getLogger(__name__)


async def until_replaced(peer: PeerId, look: Callable[[], Awaitable[Swarm]], timing: PeerTiming) -> None:
    """Wait until every block of the peer has another server, until nobody is about to serve those that have none, or
    for `replaced_seconds`.

    `look` gives a snapshot that contains the peer, and raises SwarmError.
    """
    told: tuple[int, ...] = ()
    try:
        async with asyncio.timeout(timing.replaced_seconds):
            while missing := await _waits_for(peer, look):
                if missing != told:
                    told = missing
                    logger.info(
                        "stopping: nobody else serves %s yet; waiting for another peer, at most %.0f s in all; a second"
                        " signal stops at once", describe_blocks(missing), timing.replaced_seconds,
                    )  # fmt: skip
                await asyncio.sleep(timing.join_turn_seconds)
    except TimeoutError:
        logger.warning("nobody has taken over %s in %.0f s", describe_blocks(told), timing.replaced_seconds)
    except SwarmError as error:
        logger.info("the swarm was not seen, so nobody is waited for: %s", error)


async def _waits_for(peer: PeerId, look: Callable[[], Awaitable[Swarm]]) -> tuple[int, ...]:
    """Return the blocks without another server if anybody is about to serve some of them, else none."""
    snapshot = await look()
    missing = unreplaced(snapshot, peer)
    if not missing:
        return ()
    if await asyncio.to_thread(is_succeeded, snapshot, peer):
        return missing
    logger.warning("nobody will serve %s when this peer has left", describe_blocks(missing))
    return ()
