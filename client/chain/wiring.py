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
from contextlib import suppress
from dataclasses import dataclass

from ...proto import swarm_pb2 as pb
from ...proto.errors import DeadlineExceeded, PeerBusy, SwarmError
from ...proto.wire.frames import Rebuild, WireStep, replay_steps
from ...proto.wire.handshake import Grant, sign_capability, sign_hello
from ...proto.wire.prefixes import Digests, encode_prefixes
from ...proto.wire.replay import ReplayBuffer
from ...routing.swarm import BlockRange, PeerId
from ..config import SessionConfig, SessionEvent
from .hop import Hop, HopChoice
from .reserve import NotAdmitted, take_in_order

CAPABILITY_SECONDS = 86400.0
REROUTE_SECONDS = 10.0
PROBE_SECONDS = 3.0
HANDOVER_SECONDS = 20.0
"""An attention cache that takes longer than this is replaced by a replay, which moves less and computes more."""
HANDOVER_WAIT_SECONDS = 10.0
"""A session that could go on waits no longer than this for room at a replacement."""
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

    @property
    def is_empty(self) -> bool:
        """Whether a peer that was just opened is in this state: no step, and nothing that the first one begins with."""
        return self.next_seq == 1 and not any(self.permuted)


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
        self.prefixes: tuple[Digests, ...] = ()
        """The pages of the rows that the first operation computes, until that has begun (`PageNames.chain`)."""
        self._relayed_links: set[tuple[PeerId, PeerId]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._taking: Sequence[Hop] = ()
        """Opened beside the chain, not yet part of it."""

    @property
    def layout(self) -> tuple[tuple[PeerId, BlockRange], ...]:
        """The peers in use now, and the blocks each computes."""
        return tuple((hop.peer, hop.blocks) for hop in self.hops)

    @property
    def numeric_formats(self) -> tuple[str, ...]:
        """What each peer in use computes in."""
        return tuple(hop.numeric_format for hop in self.hops)

    async def close(self) -> None:
        """End the session on every peer."""
        hops, self.hops = [*self.hops, *self._taking], []
        await asyncio.gather(*(hop.close() for hop in hops), *self._closing, return_exceptions=True)

    async def remember(self, prefixes: Sequence[Digests], timeout_seconds: float) -> None:
        """Have the peers keep the beginnings of their rows for later sessions; the session ends there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                names = [self._named_at(self.hops[:index], prefixes) for index in range(len(self.hops))]
                await asyncio.gather(*(hop.leave(named) for hop, named in zip(self.hops, names, strict=True)))

    def adoptable(self) -> tuple[int, ...]:
        """Per row of `prefixes`, how many of its first tokens every peer holds."""
        return tuple(
            min((hop.held_tokens[row] if row < len(hop.held_tokens) else 0 for hop in self.hops), default=0)
            for row in range(len(self.prefixes))
        )

    # --- watching ---

    @property
    def refused(self) -> bool:
        """Whether the chain broke only because peers were full."""
        errors = [hop.error for hop in self.hops if hop.error is not None]
        return bool(errors) and all(isinstance(error, PeerBusy) for error in errors)

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

    def release(self) -> None:
        """Give the room on every peer back; nothing that was computed there is needed."""
        self._discard(self.hops)
        self.hops = []

    async def reserve(self, chain: Sequence[Hop | HopChoice], wait_seconds: float) -> list[Hop]:
        """Open what is new of `chain` beside the present one, waiting for room; it is to be connected next.

        The new hops know their neighbours and send nothing to them yet. Raises NotAdmitted, with the room given back,
        or ChainBroken if a hop that stays fails meanwhile.
        """
        self.epoch += 1
        hops = [one if isinstance(one, Hop) else self._new_hop(one) for one in chain]
        new = [hop for hop in hops if hop not in self.hops]

        def check() -> None:
            if any(hop.error is not None for hop in hops if hop not in new):
                raise ChainBroken

        async def open_hop(hop: Hop, seconds: float) -> None:
            index = hops.index(hop)
            before, after = hops[index - 1] if index else None, hops[index + 1] if index + 1 < len(hops) else None
            capability = self._capability(hop, before, after)
            await self._open(hop, hops[:index], capability, b"", relay=True, wait_seconds=seconds)

        self._taking = new
        try:
            await take_in_order(
                new,
                open_hop,
                wait_seconds=wait_seconds,
                changed=self.changed,
                check=check,
                on_event=self._config.on_event,
            )
        except BaseException:
            self.report_failed(new)
            self._discard(new)
            raise
        finally:
            self._taking = ()
        return hops

    def report_failed(self, hops: Sequence[Hop]) -> SwarmError | None:
        """Tell the router and the user of those that failed; the last of their errors."""
        error = None
        for hop in hops:
            if hop.error is not None:
                error = hop.error
                self._config.on_event(SessionEvent(_loss(error), hop.peer, str(error)))
                self._config.router.ban(hop.peer, error)
        return error

    async def connect(self, chain: Sequence[Hop | HopChoice]) -> None:
        """Make `chain` the chain: open what is new, give the rest its new neighbours, in a new epoch.

        Raises ChainBroken if a hop fails meanwhile.
        """
        self.epoch += 1
        kept = [one for one in chain if isinstance(one, Hop)]
        changes = any(hop in kept for hop in self.hops)
        self._discard([hop for hop in self.hops if hop not in kept])
        self.hops = [one if isinstance(one, Hop) else self._new_hop(one) for one in chain]
        await asyncio.gather(*(self._introduce(index, hop in kept) for index, hop in enumerate(self.hops)))
        self._config.on_event(SessionEvent("rerouted" if changes else "opened", None, describe(self.layout)))
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
            await self._open(hop, self.hops[:index], capability, record, relay)

    async def _open(
        self,
        hop: Hop,
        hops_before: Sequence[Hop],
        capability: pb.Signed,
        record: bytes,
        relay: bool,
        wait_seconds: float = 0.0,
    ) -> None:
        """With `wait_seconds` the session waits for room, without it is refused where there is none."""
        config = self._config
        hello = sign_hello(config.identity, hop.peer, self._session_id, config.clock(), config.swarm_key)
        message = pb.Open(hello=hello, capability=capability, successor_record=record, relay=relay)
        message.prefixes.extend(encode_prefixes(self._named_at(hops_before, self.prefixes)))
        if wait_seconds > 0:
            message.wait, message.wait_seconds = True, wait_seconds
        await hop.open(config.dialer.stub(hop.address), message)

    def _named_at(self, hops_before: Sequence[Hop], prefixes: Sequence[Digests]) -> list[Digests]:
        """The prefixes by the names that they have at the peer behind `hops_before`."""
        names = self._config.page_names
        formats = [hop.numeric_format for hop in hops_before]
        return [names.at_peer(pages, formats) for pages in prefixes] if names is not None else []

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
        waits = any(choice.wait_seconds > 0 for choice in choices)
        if len(choices) > 1:
            await self._replace_by_many(old, choices, waits, state)
            return
        new, epoch = self._new_hop(choices[0]), self.epoch
        self._taking = [new]
        try:
            new.built = await self._move_cache(old, new, waits, state)
            if not new.opened:
                new.fail(DeadlineExceeded(f"{new.address} does not answer"))
            if new.error is None:
                await self._replace(old, [new], state)
            else:
                self.report_failed([new])
                self.epoch = epoch  # the others have heard of no newer one
        finally:
            self._taking = ()
            if new not in self.hops:
                self._discard([new])

    async def _replace_by_many(self, old: Hop, choices: Sequence[HopChoice], waits: bool, state: Rollback) -> None:
        if not waits:
            await self._replace(old, choices, state)
            return
        epoch = self.epoch
        try:
            hops = await self.reserve(self._with_replaced(old, choices), HANDOVER_WAIT_SECONDS)
        except NotAdmitted:
            self.epoch = epoch
            return
        await self._replace(old, [hop for hop in hops if hop not in self.hops], state)

    def _with_replaced(self, old: Hop, replacement: Sequence[Hop | HopChoice]) -> list[Hop | HopChoice]:
        index = self.hops.index(old)
        return [*self.hops[:index], *replacement, *self.hops[index + 1 :]]

    async def _replace(self, old: Hop, replacement: Sequence[Hop | HopChoice], state: Rollback) -> None:
        await self.connect(self._with_replaced(old, replacement))
        await self.rebuild(state)
        self._config.on_event(SessionEvent("handed-over", old.peer, describe(self.layout)))

    async def _move_cache(self, old: Hop, new: Hop, waits: bool, state: Rollback) -> bool:
        """Open `new` and have the cache of `old` loaded there; whether it is. The errors are left in the hops.

        `waits`: it may take a while until `new` has room.
        """
        self.epoch += 1
        epoch = self.epoch
        try:
            async with asyncio.timeout(HANDOVER_SECONDS):
                capability = self._capability(new, *self._neighbours(old))
                wait_seconds = HANDOVER_WAIT_SECONDS if waits else 0.0
                await self._open(new, (), capability, b"", True, wait_seconds)
                if waits:
                    await self._until_either_fails(old, new, lambda: new.opened)
                    if not new.opened:
                        return False
                await old.export_to(new, state.next_seq - 1, state.before, HANDOVER_SECONDS)
                await self._until_either_fails(old, new, lambda: new.rebuilt_epoch == epoch)
        except TimeoutError:
            pass
        finally:
            old.stop_export()
        return new.rebuilt_epoch == epoch

    async def _until_either_fails(self, old: Hop, new: Hop, done: Callable[[], bool]) -> None:
        while not done() and new.error is None and old.error is None:
            self.changed.clear()
            await self.changed.wait()

    # --- rebuilding ---

    async def rebuild(self, state: Rollback) -> None:
        """Bring every hop that is not `built` to `state`. Raises ChainBroken."""
        if state.is_empty:
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
        # Before the first step no peer can replay the tokens that it begins with.
        while source >= 0 and (state.next_seq == 1 or not _buffer_of(self.hops[source])):
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


def _loss(error: SwarmError) -> str:
    return "refused" if isinstance(error, PeerBusy) else "hop-lost"


def _applied_by(hop: Hop) -> int:
    return hop.state.applied_seq if hop.state else 0


def _buffer_of(hop: Hop) -> bool:
    """Whether the hop can be the source of a replay."""
    return hop.built and hop.state is not None and hop.state.buffer_complete


def describe(layout: Sequence[tuple[PeerId, BlockRange]]) -> str:
    """A chain for people: "0:4 at ...abcdef, 4:8 at ...ghijkl"."""
    return ", ".join(f"{blocks} at ...{peer[-6:]}" for peer, blocks in layout)
