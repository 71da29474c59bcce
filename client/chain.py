"""The chain of one session: its hops, the epoch they agree on, and the rebuilding of replacements.

A change of the chain raises the epoch on every hop, so nothing of the old chain can interfere.  A hop that is new has
an empty cache; it is rebuilt from the replay buffer of the hop before it, or, where that was evicted, that hop is
rebuilt as well from the one before, back to the client, which keeps what it fed to block 0.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..proto import swarm_pb2 as pb
from ..proto.errors import DeadlineExceeded
from ..proto.frames import Rebuild, WireStep, replay_steps
from ..proto.handshake import Grant, sign_capability, sign_hello
from ..proto.replay import ReplayBuffer
from ..routing.swarm import BlockRange, PeerId
from .config import SessionConfig, SessionEvent
from .hop import Hop, HopChoice

CAPABILITY_SECONDS = 86400.0
REROUTE_SECONDS = 10.0
PROBE_SECONDS = 3.0
HANDOVER_SECONDS = 20.0
"""An attention cache that takes longer than this is replaced by a replay, which moves less and computes more."""
MIN_REBUILD_SECONDS = 10.0


class ChainBroken(Exception):
    """The chain has to be repaired before the operation can go on."""


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


class Chain:
    """The hops of one session."""

    def __init__(
        self,
        config: SessionConfig,
        session_id: bytes,
        kv_tokens: int,
        max_rows: int,
        on_answer: Callable[[Hop, WireStep], None],
    ) -> None:
        self.hops: list[Hop] = []
        self.epoch = 0
        self.changed = asyncio.Event()
        self._config = config
        self._session_id = session_id
        self._kv_tokens = kv_tokens
        self._max_rows = max_rows
        self._on_answer = on_answer
        self._relayed_links: set[tuple[PeerId, PeerId]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def layout(self) -> tuple[tuple[PeerId, BlockRange], ...]:
        """The peers in use now, and the blocks each computes."""
        return tuple((hop.peer, hop.blocks) for hop in self.hops)

    async def close(self) -> None:
        """End the session on every peer."""
        hops, self.hops = self.hops, []
        await asyncio.gather(*(hop.close() for hop in hops), *self._closing, return_exceptions=True)

    # --- watching ---

    def raise_if_broken(self) -> None:
        """Raises ChainBroken if a hop has failed or a link cannot push; such a link is relayed from then on."""
        unpushable = [pair for pair in itertools.pairwise(self.hops) if pair[0].push_failed_epoch == self.epoch]
        for hop, successor in unpushable:
            self._relay(hop, successor)
        if unpushable or any(hop.error is not None for hop in self.hops):
            raise ChainBroken

    async def wait(self, condition: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait until `condition` holds; False if it does not in time. Raises ChainBroken."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    self.raise_if_broken()
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    async def examine(self, seq: int, last_chance: bool) -> None:
        """Step `seq` was not answered in time: find the hop or link to blame. Raises ChainBroken if there is one.

        Hops that do not answer a probe have failed. A link that swallowed the step is relayed. A hop that answers but
        is stuck in the step is blamed only at the `last_chance`.
        """
        self._config.on_event(SessionEvent("stalled", None, f"step {seq}"))
        nonce = int.from_bytes(os.urandom(6), "little")

        def silent() -> list[Hop]:
            return [hop for hop in self.hops if hop.status is None or hop.status.nonce != nonce]

        probes = asyncio.gather(*(hop.probe(nonce) for hop in self.hops))
        try:
            if not await self.wait(lambda: not silent(), PROBE_SECONDS):
                for hop in silent():
                    hop.fail(DeadlineExceeded(f"{hop.address} does not answer"))
        finally:
            probes.cancel()
        self.raise_if_broken()
        statuses = [hop.status or pb.Status() for hop in self.hops]
        for (hop, successor), (sent, arrived) in zip(
            itertools.pairwise(self.hops), itertools.pairwise(statuses), strict=True
        ):
            if sent.applied_seq >= seq > arrived.received_seq:
                self._relay(hop, successor)
                raise ChainBroken
        if last_chance:
            stuck = (hop for hop, status in zip(self.hops, statuses, strict=True) if status.applied_seq < seq)
            next(stuck, self.hops[-1]).fail(DeadlineExceeded("the peer is stuck in a step"))
            raise ChainBroken

    def _relay(self, hop: Hop, successor: Hop) -> None:
        self._relayed_links.add((hop.peer, successor.peer))
        self._config.on_event(SessionEvent("relayed", hop.peer, f"to {successor.peer}"))

    # --- changing ---

    async def connect(self, chain: Sequence[Hop | HopChoice]) -> None:
        """Make `chain` the chain: open what is new, give the rest its new neighbours, in a new epoch.

        Raises ChainBroken if a hop fails meanwhile.
        """
        self.epoch += 1
        kept = [one for one in chain if isinstance(one, Hop)]
        self._discard([hop for hop in self.hops if hop not in kept])
        self.hops = [one if isinstance(one, Hop) else self._new_hop(one) for one in chain]
        await asyncio.gather(*(self._introduce(index, hop in kept) for index, hop in enumerate(self.hops)))
        self._config.on_event(SessionEvent("rerouted" if kept else "opened", None, describe(self.layout)))
        epoch = self.epoch
        behind = [hop for hop in kept if hop.state is None or hop.state.epoch < epoch]
        if not await self.wait(lambda: all(hop.state and hop.state.epoch == epoch for hop in kept), REROUTE_SECONDS):
            for hop in behind:
                if hop.state is None or hop.state.epoch < epoch:
                    hop.fail(DeadlineExceeded(f"{hop.address} does not take its new neighbours"))
        self.raise_if_broken()

    def _new_hop(self, choice: HopChoice) -> Hop:
        last = choice.blocks.stop == self._config.num_blocks
        return Hop(choice, last, self._config.token_bytes, self._on_step, self.changed.set)

    async def _introduce(self, index: int, kept: bool) -> None:
        config, hop = self._config, self.hops[index]
        before, after = self._neighbours(hop)
        relay = config.relay_always or (after is not None and (hop.peer, after.peer) in self._relayed_links)
        capability = self._capability(hop, before, after)
        # A record lasts a minute and a session longer: the successor needs to be introduced with its newest one.
        record = (config.router.record(after.peer) or after.record) if after else b""
        if kept:
            await hop.reroute(pb.Reroute(capability=capability, successor_record=record, relay=relay))
        else:
            await self._open(hop, capability, record, relay)

    async def _open(self, hop: Hop, capability: pb.Signed, record: bytes, relay: bool) -> None:
        config = self._config
        hello = sign_hello(config.identity, hop.peer, self._session_id, config.clock(), config.swarm_key)
        message = pb.Open(hello=hello, capability=capability, successor_record=record, relay=relay)
        await hop.open(config.dialer.stub(hop.address), message)

    def _neighbours(self, hop: Hop) -> tuple[Hop | None, Hop | None]:
        index = self.hops.index(hop)
        before = self.hops[index - 1] if index else None
        return before, self.hops[index + 1] if index + 1 < len(self.hops) else None

    def _capability(self, hop: Hop, before: Hop | None, after: Hop | None) -> pb.Signed:
        config = self._config
        grant = Grant(
            session_id=self._session_id,
            epoch=self.epoch,
            client=config.identity.peer_id,
            peer=hop.peer,
            blocks=hop.blocks,
            kv_tokens=self._kv_tokens,
            max_rows=self._max_rows,
            predecessor=before.peer if before else None,
            successor=after.peer if after else None,
            wire_format=config.wire_format,
            expires_at_seconds=config.clock() + CAPABILITY_SECONDS,
            model_digest=config.model_digest,
        )
        return sign_capability(config.identity, grant)

    def _discard(self, hops: Sequence[Hop]) -> None:
        for hop in hops:
            task = asyncio.create_task(hop.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _on_step(self, hop: Hop, step: WireStep) -> None:
        """What a hop sends: answers, if it is the last one, else something to pass on."""
        if step.epoch != self.epoch or hop not in self.hops:
            return
        if hop.last:
            self._on_answer(hop, step)
        else:
            await self.hops[self.hops.index(hop) + 1].send(step)

    # --- handing over ---

    async def hand_over(self, old: Hop, choices: Sequence[HopChoice], state: Rollback) -> None:
        """Put `choices` in the place of `old`, which works but is about to leave; `state` is that of every hop now.

        A single replacement is opened beside the chain and gets the cache of `old` before the neighbours are told, so
        that nothing changes if the peer refuses. Where the cache cannot be moved the replacement is rebuilt.
        Raises ChainBroken.
        """
        if len(choices) > 1:
            await self._replace(old, choices, state)
            return
        new = self._new_hop(choices[0])
        try:
            new.built = await self._move_cache(old, new, state)
            if new.error is None:
                await self._replace(old, [new], state)
            else:
                self._config.router.ban(new.peer, new.error)
        finally:
            if new not in self.hops:
                self._discard([new])

    async def _replace(self, old: Hop, replacement: Sequence[Hop | HopChoice], state: Rollback) -> None:
        index = self.hops.index(old)
        await self.connect([*self.hops[:index], *replacement, *self.hops[index + 1 :]])
        await self.rebuild(state)
        self._config.on_event(SessionEvent("handed-over", old.peer, describe(self.layout)))

    async def _move_cache(self, old: Hop, new: Hop, state: Rollback) -> bool:
        """Open `new` and have the cache of `old` loaded there; whether it is. The errors are left in the hops."""
        self.epoch += 1
        epoch = self.epoch
        try:
            async with asyncio.timeout(HANDOVER_SECONDS):
                await self._open(new, self._capability(new, *self._neighbours(old)), b"", relay=True)
                await old.export_to(new, state.next_seq - 1, state.before, HANDOVER_SECONDS)
                while new.rebuilt_epoch != epoch and new.error is None and old.error is None:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            pass
        finally:
            old.stop_export()
        return new.rebuilt_epoch == epoch

    # --- rebuilding ---

    async def rebuild(self, state: Rollback) -> None:
        """Bring every hop that is not `built` to `state`. Raises ChainBroken."""
        if state.next_seq == 1:
            for hop in self.hops:
                hop.built = True
        index = 0
        while index < len(self.hops):
            if self.hops[index].built:
                index += 1
                continue
            first = index
            while index < len(self.hops) and not self.hops[index].built:
                index += 1
            await self._rebuild_run(first, index, state)

    async def _rebuild_run(self, first: int, stop: int, state: Rollback) -> None:
        """Rebuild the hops `first` to `stop`, and those before them whose buffer is gone."""
        source = first - 1
        while source >= 0 and not _buffer_of(self.hops[source]):
            source -= 1
        last = self.hops[stop - 1]
        origin = self.hops[source] if source >= 0 else None
        after_permutation = origin is None or _applied_by(origin) >= state.next_seq
        lengths = state.permuted if after_permutation else state.before
        mark = Rebuild(last.peer, state.next_seq, after_permutation)
        run = self.hops[source + 1 : stop]
        tokens = max(1, sum(lengths))
        for hop in run:
            hop.built = False
        timeout = MIN_REBUILD_SECONDS + 10 * self._config.router.predict_seconds(
            [(hop.peer, hop.blocks) for hop in run], tokens
        )
        recomputed = f", {first - source - 1} peers recomputed" if first - source > 1 else ""
        self._config.on_event(
            SessionEvent("replay", origin.peer if origin else None, f"{tokens} tokens to {last.peer}{recomputed}")
        )
        sending = asyncio.ensure_future(self._send_replay(origin, lengths, mark, timeout, state.inputs))
        try:
            done = await self.wait(lambda: last.rebuilt_epoch == self.epoch, timeout)
        finally:
            sending.cancel()
        if not done:
            for hop in run:
                hop.fail(DeadlineExceeded(f"{hop.address} was not rebuilt in time"))
            raise ChainBroken
        for hop in run:
            hop.built = True
        self._config.on_event(SessionEvent("rebuilt", last.peer, f"{tokens} tokens"))

    async def _send_replay(
        self, origin: Hop | None, lengths: tuple[int, ...], mark: Rebuild, timeout: float, inputs: ReplayBuffer
    ) -> None:
        if origin is not None:
            await origin.replay(self.epoch, lengths, mark, timeout)
            return
        for step in replay_steps(inputs, self.epoch, lengths, mark, timeout):
            await self.hops[0].send(step)


def _applied_by(hop: Hop) -> int:
    return hop.state.applied_seq if hop.state else 0


def _buffer_of(hop: Hop) -> bool:
    """Whether the hop can be the source of a replay."""
    return hop.built and hop.state is not None and hop.state.buffer_complete


def describe(layout: Sequence[tuple[PeerId, BlockRange]]) -> str:
    """A chain for people: "0:4 at ...abcdef, 4:8 at ...ghijkl"."""
    return ", ".join(f"{blocks} at ...{peer[-6:]}" for peer, blocks in layout)
