"""A session and its peers as a state machine: what a user may do, what the world may do, and the truth.

The client's and the peers' real code, with the toy engine, in-memory streams and virtual time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from blockswarm.client.chain.machine.events import HopChoice, Layout
from blockswarm.client.chain.prefixes import PageNames
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.config import SessionConfig, SessionEvent
from blockswarm.client.timing import PATIENCE_SECONDS
from blockswarm.peer.session.parts import PeerParts
from blockswarm.peer.session.replay_store import ReplayStore
from blockswarm.peer.session.service import PeerService
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.errors import NoChainError, PeerUnavailable, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.handshake import HelloChecker
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.admit.table import SessionTable
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec, RequestSpec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.memory_net import CLIENT, MemoryNet
from support.toy_engine import TOKEN_BYTES, ToyCodec, ToyEngine, ToyKv, pack, unpack
from support.virtual_time import VirtualTimeLoop

NUM_BLOCKS = 6
RANGES = (BlockRange(0, 2), BlockRange(2, 4), BlockRange(4, 6))
KV_TOKENS, MAX_ROWS = 4000, 5
DIGEST = "ab" * 32
MOMENTS = (0.0001, 0.02, 0.1, 0.5)


class Peer:
    """A peer that can die and come back, empty, under the same id."""

    def __init__(self, machine: SessionMachine, blocks: BlockRange, replay_bytes: int) -> None:
        self.identity = Identity.generate()
        self.blocks = blocks
        self.alive = False
        self.draining = False
        self._machine = machine
        self._replay_bytes = replay_bytes
        self.start()

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    def start(self) -> None:
        machine = self._machine
        engine = ToyEngine(self.blocks, machine.streams)
        self.parts = PeerParts(
            identity=self.identity,
            engine=engine,
            hosting=engine,
            sessions=SessionTable(KV_TOKENS * len(self.blocks)),
            replay=ReplayStore(self._replay_bytes),
            hellos=HelloChecker(self.id, machine.clock, None),
            dialer=machine.net.dialer(self.id),
            model_digest=DIGEST,
            model_name="toy",
            swarm_key=None,
            lookup=lambda name: NotImplemented,
            dht_addresses=list,
            clock=machine.clock,
        )
        self.service = PeerService(self.parts)
        machine.net.add(self.id, self.service.handlers)
        self.alive = True
        self.draining = False

    def drain(self) -> None:
        self.service.drain()
        self.draining = True

    def record(self) -> bytes:
        spec = PeerSpec(self.id, self.blocks, ComputeCost(0.01), block_hashes=(b"8" * 8,) * len(self.blocks))
        record = PeerRecord(DIGEST, spec, addresses=("10.0.0.1:1",))
        return sign_peer_record(self.identity, record, None, self._machine.clock() + 60).encode()

    def choice(self, blocks: BlockRange) -> HopChoice:
        stream = self._machine.streams[blocks.start]
        return HopChoice(PeerAddress(self.id, "10.0.0.1:1"), blocks, self.record(), stream_format=stream)


class Router:
    """The first living peer that hosts the next range; a ban ends when nobody else is left."""

    def __init__(self, machine: SessionMachine) -> None:
        self._machine = machine
        self._banned: set[PeerId] = set()

    async def fill(
        self,
        kept: Layout,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
        *,
        check: bool = False,
    ) -> tuple[HopChoice, ...]:
        used = excluded | {peer for peer, _ in kept}
        chain = []
        for part in RANGES:
            if any(blocks.covers(part) for _, blocks in kept):
                continue
            hosts = [
                p
                for p in self._machine.peers
                if p.blocks.covers(part) and p.alive and not p.draining and p.id not in used
            ]
            if not hosts:
                raise NoChainError(tuple(part))
            host = next((p for p in hosts if p.id not in self._banned), hosts[0])
            chain.append(host.choice(part))
        return tuple(chain)

    def pardon(self, peers: frozenset[PeerId]) -> None:
        self._banned -= peers

    async def reaches_anybody(self, seconds: float) -> bool:
        return any(p.alive for p in self._machine.peers)

    def record(self, peer: PeerId) -> bytes | None:
        return next(candidate for candidate in self._machine.peers if candidate.id == peer).record()

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        self._banned.add(peer)

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        return next(candidate for candidate in self._machine.peers if candidate.id == peer).draining

    def seen_whole(self, min_precision: str | None = None) -> bool:
        return False

    async def refresh(self) -> None:
        if self._machine.is_offline():
            await asyncio.sleep(3.0)
            raise PeerUnavailable("nobody answers")
        self._banned.clear()

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        return 0.01 * len(chain) * tokens

    def clock_offset_seconds(self, peer: PeerId) -> float:
        return 0.0


class SessionMachine(RuleBasedStateMachine):
    patience_seconds = PATIENCE_SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.errors: list[Any] = []
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self.net = MemoryNet()
        self.events: list[SessionEvent] = []
        self.streams: dict[int, str] = {}
        """Block -> the stream of all peers that have it: a replacement computes as its predecessor did."""
        self.told: list[list[int]] = []
        self.next_token = 1

    def clock(self) -> float:
        return 1_800_000_000.0 + self.loop.time()

    def is_offline(self) -> bool:
        """Whether the client's own network is away."""
        return self.loop.time() < self.net.link(CLIENT, CLIENT).held_until

    def whole(self) -> ToyKv:
        return ToyKv(BlockRange(0, NUM_BLOCKS), KV_TOKENS, MAX_ROWS, streams=self.streams)

    @initialize(
        small_buffers=st.sets(st.integers(0, 5)),
        prefixes=st.booleans(),
        streams=st.tuples(*[st.sampled_from(["float32", "bfloat16"])] * 3),
        wire_format=st.sampled_from(["auto", "float32"]),
    )
    def begin(self, small_buffers: set[int], prefixes: bool, streams: Sequence[str], wire_format: str) -> None:
        self.streams = {block: stream for blocks, stream in zip(RANGES, streams, strict=True) for block in blocks}
        self.truth = self.whole()

        async def start() -> None:
            self.peers = [
                Peer(self, RANGES[index % 3], 40 * TOKEN_BYTES if index in small_buffers else 1 << 20)
                for index in range(6)
            ]
            identity = Identity.generate()
            self.config = SessionConfig(
                identity=identity,
                dialer=self.net.dialer(CLIENT),
                router=Router(self),
                model_digest=DIGEST,
                num_blocks=NUM_BLOCKS,
                wire_format=wire_format,
                codec=ToyCodec(),
                page_names=PageNames(identity, DIGEST, wire_format, TOKEN_BYTES) if prefixes else None,
                patience_seconds=self.patience_seconds,
                on_event=self.events.append,
                clock=self.clock,
            )
            self.session = ChainSession(self.config, KV_TOKENS, MAX_ROWS)

        self.loop.run(start())

    def note(self, plan: StepPlan, tokens: list[int]) -> None:
        """Keep the tokens that every row was fed with."""
        if plan.source_rows is not None:
            self.told = [list(self.told[source]) for source in plan.source_rows]
        rest = iter(tokens)
        for piece in plan.rows:
            if piece.row == len(self.told):
                self.told.append([])
            self.told[piece.row][piece.start :] = itertools.islice(rest, piece.count)

    # --- what a user does ---

    @rule(data=st.data(), source=st.one_of(st.none(), st.lists(st.integers(0, MAX_ROWS - 1), min_size=1, max_size=3)))
    def step(self, data: st.DataObject, source: list[int] | None) -> None:
        """Append, after a fork, reorder or drop of rows, and a crop of some."""
        lengths = list(self.truth.table.lengths)
        source_rows = None
        if source is not None and lengths:
            source_rows = tuple(row % len(lengths) for row in source)
            lengths = [lengths[row] for row in source_rows]
        if len(lengths) < MAX_ROWS - 1 and (not lengths or data.draw(st.integers(0, 3)) == 0):
            lengths.append(0)
        named = data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1))
        if lengths[-1] == 0:
            named |= {len(lengths) - 1}
        pieces = []
        for row in sorted(named):
            start = data.draw(st.integers(max(0, lengths[row] - 6), lengths[row]))
            count = data.draw(st.one_of(st.just(1), st.integers(1, 4), st.just(300)))
            if sum(lengths) + count > 1500:
                start, count = 0, 1
            pieces.append(RowSlice(row, start, count, data.draw(st.integers(0, count))))
            lengths[row] = start + count
        self.check(StepPlan(tuple(pieces), source_rows))

    def check(self, plan: StepPlan, tokens: list[int] | None = None) -> None:
        if tokens is None:
            tokens = list(range(self.next_token, self.next_token + plan.tokens))
            self.next_token += plan.tokens
        self.note(plan, tokens)
        answer = self.compute(plan, tokens)
        whole = unpack(self.truth.step(plan, pack(tokens)).data)
        expected, offset = [], 0
        for piece in plan.rows:
            offset += piece.count
            expected += whole[offset - piece.answers : offset]
        assert answer == expected

    def compute(self, plan: StepPlan, tokens: list[int]) -> list[int]:
        """The session's answers."""
        return unpack(self.loop.run(self.session.run(plan, pack(tokens))))

    def close_session(self) -> None:
        self.loop.run(self.session.close())

    @precondition(lambda self: self.truth.table.tokens)
    @rule(data=st.data(), row=st.integers(0, MAX_ROWS - 1), more=st.sampled_from([0, 1, 64, 200]), kill=st.booleans())
    def begin_another_session_like_this(self, data: st.DataObject, row: int, more: int, kill: bool) -> None:
        """With what one of the rows had fed to block 0, or a part of it, and some tokens more."""
        told = self.told[row % len(self.told)]
        tokens = told[: data.draw(st.integers(0, len(told)))] + list(range(self.next_token, self.next_token + more))
        self.next_token += more
        self.close_session()
        self.session = ChainSession(self.config, KV_TOKENS, MAX_ROWS)
        self.truth, self.told = self.whole(), []
        if not tokens:
            return
        plan = StepPlan((RowSlice(0, 0, len(tokens), data.draw(st.integers(0, min(3, len(tokens))))),))
        if kill:
            self.kill_soon(data.draw(st.integers(0, len(self.peers) - 1)), data.draw(st.sampled_from(MOMENTS)))
        self.check(plan, tokens)

    def kill_soon(self, index: int, seconds: float) -> None:
        """A peer dies, and is back at once with nothing."""
        victim = self.peers[index]

        def die() -> None:
            if victim.alive:
                self.net.kill(victim.id)
                victim.start()

        self.in_loop(lambda: self.loop.call_later(seconds, die))

    # --- what the world does ---

    @property
    def chain_is_whole(self) -> bool:
        """Whether every block has its peer: not before the first step, nor while a repair goes on behind the user."""
        return sum(len(blocks) for _, blocks in self.session.chain) == NUM_BLOCKS

    def links(self) -> list[tuple[PeerId, PeerId]]:
        path = [CLIENT, *(peer for peer, _ in self.session.chain)]
        return list(itertools.pairwise(path))

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(0, 2))
    def kill_a_peer_in_use(self, index: int) -> None:
        victim = next(peer for peer in self.peers if peer.id == self.session.chain[index][0])
        if victim.alive:
            self.in_loop(lambda: self.net.kill(victim.id))
            victim.alive = False
        if not self.others(victim):
            self.in_loop(victim.start)

    def others(self, peer: Peer) -> list[Peer]:
        """The peers that can take the place of a peer."""
        return [p for p in self.peers if p.alive and not p.draining and p.blocks == peer.blocks and p is not peer]

    @rule()
    def revive_all(self) -> None:
        for peer in self.peers:
            if not peer.alive:
                self.in_loop(peer.start)

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(0, 2), count=st.integers(1, 2))
    def swallow_steps(self, index: int, count: int) -> None:
        self.net.link(*self.links()[index]).swallow = count

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(0, 2), count=st.integers(1, 3))
    def repeat_steps(self, index: int, count: int) -> None:
        self.net.link(*self.links()[index]).repeat = count

    @precondition(lambda self: self.chain_is_whole)
    @rule(sender=st.integers(0, 3), receiver=st.integers(0, 2), seconds=st.sampled_from([0.0, 0.05, 0.4, 2.0]))
    def delay_a_link(self, sender: int, receiver: int, seconds: float) -> None:
        path = [CLIENT, *(peer for peer, _ in self.session.chain)]
        self.net.link(path[sender], path[receiver + 1]).delay_seconds = seconds

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(0, 2))
    def make_a_link_half_open(self, index: int) -> None:
        """Whatever is sent is lost without a word; new streams work."""
        source, target = self.links()[index]
        self.in_loop(lambda: self.net.deafen(source, target))

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(0, 2), seconds=st.sampled_from([1.0, 4.0, 12.0]))
    def pause_a_peer(self, index: int, seconds: float) -> None:
        """It says nothing, and then all at once: late answers of a hop that was given up among them."""
        peer = self.session.chain[index][0]
        self.in_loop(lambda: self.net.hold(peer, seconds))

    @precondition(lambda self: self.chain_is_whole)
    @rule(seconds=st.sampled_from([2.0, 8.0, 20.0]), breaks=st.booleans())
    def take_the_clients_network_away(self, seconds: float, breaks: bool) -> None:
        """For less than the session's patience; the streams break meanwhile, or come through late."""

        def away() -> None:
            self.net.hold(CLIENT, seconds)
            if breaks:
                self.loop.call_later(seconds / 2, lambda: self.net.vanish(CLIENT))

        self.in_loop(away)

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(1, 2))
    def cut_a_push_link(self, index: int) -> None:
        source, target = self.links()[index]
        self.in_loop(lambda: self.net.cut(source, target))

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(0, 2), seconds=st.sampled_from([0.001, 0.5, 5.0]), plan=st.integers(1, 300))
    def kill_during_a_step(self, index: int, seconds: float, plan: int) -> None:
        """The peer dies while a long or short step is on its way."""
        victim = next(peer for peer in self.peers if peer.id == self.session.chain[index][0])
        if not victim.alive:
            return
        for source, target in self.links():
            self.net.link(source, target).delay_seconds = 0.3

        def die() -> None:
            if victim.alive:
                self.net.kill(victim.id)
                victim.start()

        self.in_loop(lambda: self.loop.call_later(seconds, die))
        lengths = self.truth.table.lengths
        room = 1500 - sum(lengths)
        self.check(
            StepPlan((RowSlice(0, lengths[0], max(1, min(plan, room)), 1),))
            if lengths
            else StepPlan((RowSlice(0, 0, plan, 1),))
        )

    def drain(self, index: int) -> Peer | None:
        """The peer in use is about to leave; None if it is the last one of its range, or gone already."""
        peer = next(peer for peer in self.peers if peer.id == self.session.chain[index][0])
        if not peer.alive or not self.others(peer):
            return None
        self.loop.run(asyncio.sleep(self.config.timing.chain.handover_pause_seconds))
        self.in_loop(peer.drain)
        return peer

    @precondition(lambda self: self.chain_is_whole)
    @rule(indices=st.sets(st.integers(0, 2), min_size=1, max_size=2), seconds=st.sampled_from([0.0, 0.02, 0.3]))
    def drain_peers_in_use(self, indices: set[int], seconds: float) -> None:
        """Their caches move while the next steps go on; the slower the links, the more of these."""
        for index in indices:
            old = self.drain(index)
            for peer in (old, *self.others(old)) if old is not None else ():
                self.net.link(CLIENT, peer.id).delay_seconds = seconds

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(0, 2), seconds=st.sampled_from([0.0, 0.1, 4.9, 5.1, 20.0]), dies=st.booleans())
    def drain_and_rest(self, index: int, seconds: float, dies: bool) -> None:
        """A session at rest moves, too, as far as there is time; then perhaps the one dies that was to take over."""
        old = self.drain(index)
        if old is None:
            return
        self.loop.run(asyncio.sleep(seconds))
        other = self.others(old)[0]
        if dies and other.alive:
            self.net.kill(other.id)
            other.start()

    @precondition(lambda self: self.chain_is_whole)
    @rule(index=st.integers(0, 2), stays=st.booleans(), seconds=st.sampled_from([0.001, 0.05, 0.15, 0.3, 0.45, 0.8]))
    def kill_during_a_handover(self, index: int, stays: bool, seconds: float) -> None:
        """The peer that leaves or the one that stays dies while the session moves from one to the other."""
        old = self.drain(index)
        if old is None:
            return
        victim = self.others(old)[0] if stays else old
        for peer in (old, victim):
            self.net.link(CLIENT, peer.id).delay_seconds = 0.1

        def die() -> None:
            if victim.alive:
                self.net.kill(victim.id)
                victim.start()

        self.in_loop(lambda: self.loop.call_later(seconds, die))
        lengths = self.truth.table.lengths
        piece = RowSlice(0, lengths[0], 1, 1) if lengths else RowSlice(0, 0, 40, 1)
        self.check(StepPlan((piece,)))

    def in_loop(self, action: Any) -> None:
        async def call() -> None:
            action()

        self.loop.run(call())

    @invariant()
    def nothing_fails_in_the_background(self) -> None:
        assert not self.errors, self.errors[:2]

    def teardown(self) -> None:
        async def finish() -> None:
            await asyncio.sleep(60)
            for peer in self.peers:
                if peer.alive:
                    assert peer.parts.sessions.sessions == 0
                    assert peer.parts.replay.nbytes == 0

        if hasattr(self, "session"):
            self.close_session()
            self.loop.run(finish())
        self.loop.close()
