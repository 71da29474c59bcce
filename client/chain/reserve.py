"""Waiting for room on the peers of a chain: one peer after the other, in ascending order of their ids.

All sessions take the peers in the same order, so no two of them can each hold what the other waits for.  What is held
already while a session waits for the next peer is a lease: after `ClientTiming.lease_seconds` all of it is given back,
and the session may begin anew; peers remember its arrival.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

from ...proto.errors import PeerBusy, SwarmError
from ..config import SessionEvent
from ..timing import ClientTiming
from .hop import HopStream, QueuePlace


class NotAdmitted(Exception):
    """A peer did not give room; everything that was taken has to be given back."""

    def __init__(self, error: SwarmError, waited: bool) -> None:
        """`waited`: the session had a place in the queue, and keeps its rank if it comes again."""
        super().__init__(str(error))
        self.error = error
        self.waited = waited


async def take_in_order(
    hops: Sequence[HopStream],
    open_hop: Callable[[HopStream, float], Awaitable[None]],
    *,
    wait_seconds: float,
    timing: ClientTiming,
    changed: asyncio.Event,
    check: Callable[[], None],
    on_event: Callable[[SessionEvent], None],
) -> None:
    """Open the hops one after the other and wait for each to have room, `wait_seconds` for all of them together.

    `open_hop` sends a hop its opening with the time for which it may wait; `changed` is set when anything is new of a
    hop; `check` raises if the session is in no state to go on.  Raises NotAdmitted; the hops stay as they are then.
    """
    loop = asyncio.get_running_loop()
    patience_ends, lease_ends = loop.time() + wait_seconds, math.inf
    taken: list[HopStream] = []
    for hop in sorted(hops, key=lambda hop: hop.peer):
        until = min(patience_ends, lease_ends)
        left = until - loop.time()
        if left <= 0:
            raise NotAdmitted(PeerBusy(1.0, "the peers of the chain had no room in time"), waited=True)
        await open_hop(hop, left)
        taken.append(hop)
        await _admitted(hop, taken, until, timing.answer_seconds, changed, check, on_event)
        lease_ends = min(lease_ends, loop.time() + timing.lease_seconds)


async def _admitted(
    hop: HopStream,
    taken: Sequence[HopStream],
    until: float,
    answer_seconds: float,
    changed: asyncio.Event,
    check: Callable[[], None],
    on_event: Callable[[SessionEvent], None],
) -> None:
    """Wait until `hop` has room. Raises NotAdmitted if it refuses or any hop that was taken fails."""
    told: QueuePlace | None = None
    answer_by = asyncio.get_running_loop().time() + answer_seconds
    while True:
        check()
        for held in taken:
            if held.error is not None:
                raise NotAdmitted(held.error, waited=told is not None)
        if hop.opened:
            return
        if hop.queued is not None and hop.queued != told:
            told = hop.queued
            on_event(SessionEvent("queued", hop.peer, describe_place(told)))
        changed.clear()
        try:
            async with asyncio.timeout_at(answer_by if told is None else until + answer_seconds):
                await changed.wait()
        except TimeoutError:
            hop.fail_silent()


def describe_place(queued: QueuePlace) -> str:
    """A place in a queue, for people."""
    return f"place {queued.place}, about {queued.estimate_seconds:.0f} s"
