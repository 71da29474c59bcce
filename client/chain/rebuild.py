"""How a peer that is new in a chain gets the attention cache of what the session has computed so far.

It is rebuilt from the replay buffer of the hop before it, or, where that was evicted, that hop is rebuilt as well from
the one before, back to the client, which keeps what it fed to block 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...proto.errors import DeadlineExceeded
from ...proto.wire.frames import Rebuild, replay_steps
from ...proto.wire.replay import ReplayBuffer
from ..config import SessionEvent
from ..tasks import beside
from .hop import HopStream
from .wiring import Chain, ChainBroken


@dataclass(frozen=True, slots=True)
class Rollback:
    """The state to which a replacement is rebuilt: just before step `next_seq`."""

    next_seq: int
    before: tuple[int, ...]
    """Row lengths before the permutation of that step..."""
    permuted: tuple[int, ...]
    """...and after its permutation and truncation."""
    inputs: ReplayBuffer
    """What the client fed to block 0, after the permutation."""

    @property
    def is_empty(self) -> bool:
        """Whether a peer that was just opened is in this state: no step, and nothing that the first one begins with."""
        return self.next_seq == 1 and not any(self.permuted)


async def rebuild(chain: Chain, state: Rollback) -> None:
    """Bring every hop that is not `built` to `state`. Raises ChainBroken."""
    hops = chain.hops
    if state.is_empty:
        for hop in hops:
            hop.built = True
    index = 0
    while index < len(hops):
        if hops[index].built:
            index += 1
            continue
        first = index
        while index < len(hops) and not hops[index].built:
            index += 1
        await _rebuild_run(chain, first, index, state)


async def _rebuild_run(chain: Chain, first: int, stop: int, state: Rollback) -> None:
    """Rebuild the hops `first` to `stop`, and those before them whose buffer is gone."""
    source = first - 1
    # Before the first step no peer can replay the tokens that it begins with.
    while source >= 0 and (state.next_seq == 1 or not _can_replay(chain.hops[source])):
        source -= 1
    origin = chain.hops[source] if source >= 0 else None
    run = chain.hops[source + 1 : stop]
    last = run[-1]
    after_permutation = origin is None or _applied_by(origin) >= state.next_seq
    lengths = state.permuted if after_permutation else state.before
    mark = Rebuild(last.peer, state.next_seq, after_permutation)
    tokens = max(1, sum(lengths))
    for hop in run:
        hop.built = False
    timeout = _rebuild_seconds(chain, run, tokens)
    recomputed = f", {first - source - 1} peers recomputed" if first - source > 1 else ""
    chain.tell(SessionEvent("replay", origin.peer if origin else None, f"{tokens} tokens to {last.peer}{recomputed}"))
    async with beside(_send_replay(chain, origin, lengths, mark, timeout, state.inputs)):
        done = await chain.wait(lambda: last.rebuilt_epoch == chain.epoch, timeout)
    if not done:
        for hop in run:
            hop.fail(DeadlineExceeded(f"{hop.address} was not rebuilt in time"))
        raise ChainBroken
    for hop in run:
        hop.built = True
    chain.tell(SessionEvent("rebuilt", last.peer, f"{tokens} tokens"))


def _rebuild_seconds(chain: Chain, run: Sequence[HopStream], tokens: int) -> float:
    predicted = chain.config.router.predict_seconds([(hop.peer, hop.blocks) for hop in run], tokens)
    return chain.config.timing.min_rebuild_seconds + chain.config.timing.rebuild_factor * predicted


async def _send_replay(
    chain: Chain,
    origin: HopStream | None,
    lengths: tuple[int, ...],
    mark: Rebuild,
    timeout_seconds: float,
    inputs: ReplayBuffer,
) -> None:
    """Have `origin` replay its buffer, or send the client's own inputs if there is no origin."""
    if origin is not None:
        await origin.replay(chain.epoch, lengths, mark, timeout_seconds)
        return
    for step in replay_steps(inputs, chain.epoch, lengths, mark, timeout_seconds):
        await chain.hops[0].send(step)


def _applied_by(hop: HopStream) -> int:
    return hop.state.applied_seq if hop.state else 0


def _can_replay(hop: HopStream) -> bool:
    return hop.built and hop.state is not None and hop.state.buffer_complete
