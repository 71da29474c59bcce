"""Replacing a peer that still works but is about to leave.

A single replacement gets the attention cache of the old peer, through the client, before the neighbours hear of it;
where that cannot be, it is rebuilt like the replacement of a peer that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ..config import SessionEvent
from .hop import HopChoice, HopStream
from .rebuild import Rollback, rebuild
from .reserve import NotAdmitted
from .wiring import Chain, describe


async def hand_over(chain: Chain, old: HopStream, choices: Sequence[HopChoice], state: Rollback) -> None:
    """Put `choices` in the place of `old`, which works but is about to leave; `state` is that of every hop now.

    A single replacement is opened beside the chain and gets the cache of `old` before the neighbours are told, so
    that nothing changes if the peer refuses. Where the cache cannot be moved the replacement is rebuilt.
    Raises ChainBroken.
    """
    has_to_wait = any(choice.wait_seconds > 0 for choice in choices)
    if len(choices) > 1:
        await _replace_by_several(chain, old, choices, has_to_wait, state)
        return
    new, epoch = chain.new_hop(choices[0]), chain.epoch
    with chain.opening([new]):
        try:
            new.built = await _move_cache(chain, old, new, has_to_wait, state)
            if not new.opened:
                new.fail_silent()
            if new.error is None:
                await _replace(chain, old, [new], state)
            else:
                chain.report_failed([new])
                chain.epoch = epoch  # the others have heard of no newer one
        finally:
            if new not in chain.hops:
                chain.discard([new])


async def _replace_by_several(
    chain: Chain, old: HopStream, choices: Sequence[HopChoice], has_to_wait: bool, state: Rollback
) -> None:
    if not has_to_wait:
        await _replace(chain, old, choices, state)
        return
    epoch = chain.epoch
    try:
        hops = await chain.reserve(_with_replaced(chain, old, choices), chain.config.timing.handover_wait_seconds)
    except NotAdmitted:
        chain.epoch = epoch
        return
    await _replace(chain, old, [hop for hop in hops if hop not in chain.hops], state)


async def _replace(chain: Chain, old: HopStream, replacement: Sequence[HopStream | HopChoice], state: Rollback) -> None:
    await chain.connect(_with_replaced(chain, old, replacement))
    await rebuild(chain, state)
    chain.tell(SessionEvent("handed-over", old.peer, describe(chain.layout)))


def _with_replaced(
    chain: Chain, old: HopStream, replacement: Sequence[HopStream | HopChoice]
) -> list[HopStream | HopChoice]:
    index = chain.hops.index(old)
    return [*chain.hops[:index], *replacement, *chain.hops[index + 1 :]]


async def _move_cache(chain: Chain, old: HopStream, new: HopStream, has_to_wait: bool, state: Rollback) -> bool:
    """Open `new` and have the cache of `old` loaded there; whether it is. The errors are left in the hops.

    `has_to_wait`: it may take a while until `new` has room.
    """
    chain.epoch += 1
    epoch = chain.epoch
    timing = chain.config.timing
    try:
        async with asyncio.timeout(timing.handover_seconds):
            neighbours = chain.neighbours(old)
            await chain.open_hop(new, neighbours, wait_seconds=timing.handover_wait_seconds if has_to_wait else 0.0)
            if has_to_wait:
                await _until_either_fails(chain, old, new, lambda: new.opened)
                if not new.opened:
                    return False
            await old.export_to(
                new, state.next_seq - 1, state.before, timing.handover_seconds, timing.transfer_slack_seconds
            )
            await _until_either_fails(chain, old, new, lambda: new.rebuilt_epoch == epoch)
    except TimeoutError:
        pass
    finally:
        old.stop_export()
    return new.rebuilt_epoch == epoch


async def _until_either_fails(chain: Chain, old: HopStream, new: HopStream, done: Callable[[], bool]) -> None:
    while not done() and new.error is None and old.error is None:
        chain.changed.clear()
        await chain.changed.wait()
