"""The chain of one session: its hops, the epoch they agree on, and what tells which of them has failed.

A change of the chain raises the epoch on every hop, so nothing of the old chain can interfere.  A hop that is new has
an empty cache: `rebuild.py` fills it from the hop before, `handover.py` from the hop that it replaces.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ...proto.errors import DeadlineExceeded, PeerBusy, SwarmError
from ...proto.wire.frames import WireStep
from ...proto.wire.prefixes import Digests
from ...routing.swarm import BlockRange, PeerId
from ..config import SessionConfig, SessionEvent
from ..tasks import OwnedTasks, beside, together
from .hop import HopChoice, HopStatus, HopStream
from .opening import Introduction, Neighbours
from .reserve import take_in_order


class ChainBroken(Exception):
    """The chain has to be repaired before the operation can go on."""


class Chain:
    """The hops of one session."""

    def __init__(
        self,
        config: SessionConfig,
        session_id: bytes,
        kv_tokens: int,
        max_rows: int,
        on_answer: Callable[[HopStream, WireStep], None],
    ) -> None:
        self.config = config
        self.hops: list[HopStream] = []
        self.epoch = 0
        self.changed = asyncio.Event()
        """Set when anything is new of a hop."""
        self.prefixes: tuple[Digests, ...] = ()
        """The pages of the rows that the first operation computes, until that has begun (`PageNames.chain`)."""
        self._introduction = Introduction(config, session_id, kv_tokens, max_rows)
        self._on_answer = on_answer
        self._relayed_links: set[tuple[PeerId, PeerId]] = set()
        self._opening: Sequence[HopStream] = ()
        """Opened beside the chain, not yet part of it."""
        self._closing = OwnedTasks()

    @property
    def layout(self) -> tuple[tuple[PeerId, BlockRange], ...]:
        """The peers in use now, and the blocks each computes."""
        return tuple((hop.peer, hop.blocks) for hop in self.hops)

    def tell(self, event: SessionEvent) -> None:
        """Tell the session's user."""
        self.config.on_event(event)

    async def close(self) -> None:
        """End the session on every peer; returns when that is done."""
        hops, self.hops = [*self.hops, *self._opening], []
        self.discard(hops)
        await self._closing.finish()

    async def remember(self, prefixes: Sequence[Digests], timeout_seconds: float) -> None:
        """Have the peers keep the beginnings of their rows for later sessions; the session ends there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                names = [self._named_at(self.hops[:index], prefixes) for index in range(len(self.hops))]
                await together(*(hop.leave(named) for hop, named in zip(self.hops, names, strict=True)))

    def adoptable(self) -> tuple[int, ...]:
        """Per row of `prefixes`, the number of its first tokens that every peer holds."""
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
        self.tell(SessionEvent("stalled", None, f"step {seq}"))
        statuses = await self._probe()
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

    async def _probe(self) -> list[HopStatus]:
        """Where each hop is. Raises ChainBroken if a hop does not say."""
        nonce = int.from_bytes(os.urandom(6), "little")

        def statuses() -> list[HopStatus]:
            return [hop.status for hop in self.hops if hop.status is not None and hop.status.nonce == nonce]

        async with beside(together(*(hop.probe(nonce) for hop in self.hops))):
            if not await self.wait(lambda: len(statuses()) == len(self.hops), self.config.timing.probe_seconds):
                for hop in self.hops:
                    if hop.status is None or hop.status.nonce != nonce:
                        hop.fail_silent()
        self.raise_if_broken()
        return statuses()

    def _relay(self, hop: HopStream, successor: HopStream) -> None:
        self._relayed_links.add((hop.peer, successor.peer))
        self.tell(SessionEvent("relayed", hop.peer, f"to {successor.peer}"))

    # --- changing ---

    def release(self) -> None:
        """Give the room on every peer back; nothing that was computed there is needed."""
        self.discard(self.hops)
        self.hops = []

    def discard(self, hops: Sequence[HopStream]) -> None:
        """End the session on peers that are not needed any more, without waiting for it."""
        for hop in hops:
            self._closing.start(hop.close(), name=f"closing the stream to {hop.peer}")

    @contextmanager
    def opening(self, hops: Sequence[HopStream]) -> Iterator[None]:
        """`hops` are opened beside the chain while the block runs; `close` ends them too."""
        self._opening = hops
        try:
            yield
        finally:
            self._opening = ()

    async def reserve(self, chain: Sequence[HopStream | HopChoice], wait_seconds: float) -> list[HopStream]:
        """Open what is new of `chain` beside the present one, waiting for room; it is to be connected next.

        The new hops know their neighbours and send nothing to them yet. Raises NotAdmitted, with the room given back,
        or ChainBroken if a hop that stays fails meanwhile.
        """
        self.epoch += 1
        hops = [hop if isinstance(hop, HopStream) else self.new_hop(hop) for hop in chain]
        new = [hop for hop in hops if hop not in self.hops]

        def check() -> None:
            if any(hop.error is not None for hop in hops if hop not in new):
                raise ChainBroken

        async def open_hop(hop: HopStream, seconds: float) -> None:
            await self.open_hop(hop, _neighbours(hops, hop), hops_before=hops[: hops.index(hop)], wait_seconds=seconds)

        with self.opening(new):
            try:
                await take_in_order(
                    new,
                    open_hop,
                    wait_seconds=wait_seconds,
                    timing=self.config.timing,
                    changed=self.changed,
                    check=check,
                    on_event=self.tell,
                )
            except BaseException:
                self.report_failed(new)
                self.discard(new)
                raise
        return hops

    def report_failed(self, hops: Sequence[HopStream]) -> SwarmError | None:
        """Tell the router and the user of those that failed; the last of their errors."""
        error = None
        for hop in hops:
            if hop.error is not None:
                error = hop.error
                kind = "refused" if isinstance(error, PeerBusy) else "hop-lost"
                self.tell(SessionEvent(kind, hop.peer, str(error)))
                self.config.router.ban(hop.peer, error)
        return error

    async def connect(self, chain: Sequence[HopStream | HopChoice]) -> None:
        """Make `chain` the chain: open what is new, give the rest its new neighbours, in a new epoch.

        Raises ChainBroken if a hop fails meanwhile.
        """
        self.epoch += 1
        kept = [hop for hop in chain if isinstance(hop, HopStream)]
        changes = any(hop in kept for hop in self.hops)
        self.discard([hop for hop in self.hops if hop not in kept])
        self.hops = [hop if isinstance(hop, HopStream) else self.new_hop(hop) for hop in chain]
        await together(*(self._introduce(hop, hop in kept) for hop in self.hops))
        self.tell(SessionEvent("rerouted" if changes else "opened", None, describe(self.layout)))
        epoch = self.epoch
        timeout = self.config.timing.reroute_seconds
        if not await self.wait(lambda: all(hop.state and hop.state.epoch == epoch for hop in kept), timeout):
            for hop in kept:
                if hop.state is None or hop.state.epoch < epoch:
                    hop.fail(DeadlineExceeded(f"{hop.address} does not take its new neighbours"))
        self.raise_if_broken()

    def new_hop(self, choice: HopChoice) -> HopStream:
        """The stream to a chosen peer, not opened yet."""
        last = choice.blocks.stop == self.config.num_blocks
        return HopStream(choice, last, self.config.token_bytes, self._on_step, self.changed.set)

    async def open_hop(
        self,
        hop: HopStream,
        neighbours: Neighbours,
        *,
        hops_before: Sequence[HopStream] = (),
        successor_record: bytes = b"",
        relay: bool = True,
        wait_seconds: float = 0.0,
    ) -> None:
        """Open a hop, which pushes to nobody if `relay`; with `wait_seconds` the session waits for room there."""
        message = self._introduction.opening(
            hop,
            neighbours,
            self.epoch,
            pages=self._named_at(hops_before, self.prefixes),
            successor_record=successor_record,
            relay=relay,
            wait_seconds=wait_seconds,
        )
        await hop.open(self.config.dialer.stub(hop.address), message)

    def neighbours(self, hop: HopStream) -> Neighbours:
        """The hops before and after a hop of the chain."""
        return _neighbours(self.hops, hop)

    async def _introduce(self, hop: HopStream, kept: bool) -> None:
        neighbours, after = self.neighbours(hop), self.neighbours(hop).after
        relay = self.config.relay_always or (after is not None and (hop.peer, after.peer) in self._relayed_links)
        # A record lasts a minute and a session longer: the successor needs to be introduced with its newest one.
        record = (self.config.router.record(after.peer) or after.record) if after else b""
        if kept:
            await hop.reroute(
                self._introduction.rerouting(hop, neighbours, self.epoch, successor_record=record, relay=relay)
            )
        else:
            before = self.hops[: self.hops.index(hop)]
            await self.open_hop(hop, neighbours, hops_before=before, successor_record=record, relay=relay)

    def _named_at(self, hops_before: Sequence[HopStream], prefixes: Sequence[Digests]) -> list[Digests]:
        """The prefixes by the names that they have at the peer behind `hops_before`."""
        names = self.config.page_names
        formats = [hop.numeric_format for hop in hops_before]
        return [names.at_peer(pages, formats) for pages in prefixes] if names is not None else []

    async def _on_step(self, hop: HopStream, step: WireStep) -> None:
        """Take an answer from the last hop; pass on what another hop sends."""
        if step.epoch != self.epoch or hop not in self.hops:
            return
        if hop.last:
            self._on_answer(hop, step)
        else:
            await self.hops[self.hops.index(hop) + 1].send(step)


def _neighbours(hops: Sequence[HopStream], hop: HopStream) -> Neighbours:
    index = hops.index(hop)
    return Neighbours(hops[index - 1] if index else None, hops[index + 1] if index + 1 < len(hops) else None)


def describe(layout: Sequence[tuple[PeerId, BlockRange]]) -> str:
    """A chain for people: "0:4 at ...abcdef, 4:8 at ...ghijkl"."""
    return ", ".join(f"{blocks} at ...{peer[-6:]}" for peer, blocks in layout)
