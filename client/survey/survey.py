"""Looks at a swarm without taking part in it: its peers, the chain that would be chosen, the pulse of a peer.

No weights are loaded here; only the model's digest and number of blocks are needed.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ...proto.directory.signed import SignedRecord
from ...proto.errors import PeerUnavailable
from ...proto.identity import Identity
from ...proto.network.address import PeerAddress, Reach
from ...proto.network.dialling import rule_for
from ...proto.network.transport import Dialer, introduction, ping
from ...proto.wire.messages.calls import PingReply
from ...proto.wire.timing import RECORD_LIFETIME_SECONDS
from ...routing.outlook import Outlook, outlook_of
from ...routing.route.predict import predict_step
from ...routing.swarm import BlockRange, ModelSpec, PeerId, PeerSpec, PeerState, RequestSpec, Swarm
from ...routing.trust import contradicted
from ..chain.machine.events import HopChoice
from ..chain.machine.facts import unproven_of
from ..program.options import SwarmOptions
from ..swarm.absence import printable
from ..swarm.known import KnownPeer
from ..swarm.place import PINGS_A_LOOK
from ..swarm.router import ViewRouter
from ..swarm.snapshot import PreparedSwarm
from ..swarm.view import SwarmView
from ..timing import ClientTiming

PINGS = 5
EVERYBODY = 1_000_000
"""A limit that no swarm reaches: a survey pings all peers, where a client would ping some."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model's identity in the swarm, and its number of blocks."""

    digest: str
    num_blocks: int
    proven: Mapping[int, bytes]
    """The hashes of blocks that this machine's own files prove."""


@dataclass(frozen=True, slots=True)
class PeerLine:
    """One peer, as `swarm-client peers` shows it."""

    peer: PeerId
    name: str
    blocks: BlockRange | None
    state: str
    numeric_format: str
    decode_seconds_per_block: float
    kv_tokens_free: int
    """In tokens x blocks, like `kv_tokens_total`; if the peer answers, its present value, else the announced one."""
    kv_tokens_total: int
    rtt_seconds: float | None
    """None: it does not answer."""
    address: str
    age_seconds: float | None
    """The age of its record; None: it does not answer."""
    sessions: int
    """The present number; 0 if it does not answer."""
    weights: str
    """Why its weights are believed, or "doubted"; "" if it does not answer."""
    device_class: str
    """The kind of its device, by its own account; "": it does not say."""
    tokens_served: int | None
    """Tokens computed for sessions since its start, by its own account in its record; None: it does not say."""


@dataclass(frozen=True, slots=True)
class PredictedHop:
    """One hop of the chain that would be chosen; `way_seconds` is the network time to it from the node before, and
    `visit_seconds` its fixed cost per step beside computing."""

    peer: PeerId
    name: str
    address: str
    blocks: BlockRange
    way_seconds: float
    visit_seconds: float
    compute_seconds: float
    weights: str
    """Why its weights are believed."""


@dataclass(frozen=True, slots=True)
class PredictedChain:
    """The chain that would be chosen now, and the predicted time of one decode step."""

    hops: tuple[PredictedHop, ...]
    return_seconds: float
    unproven_seconds: float = 0.0
    """Upper bound on how much faster the request might be on another chain; 0: this one is proven to be the best."""

    @property
    def step_seconds(self) -> float:
        at_hops = sum(hop.way_seconds + hop.visit_seconds + hop.compute_seconds for hop in self.hops)
        return at_hops + self.return_seconds


@dataclass(frozen=True, slots=True)
class Pulse:
    """The answers of a peer to a few pings."""

    address: str
    name: str
    """The model's name; empty in a private swarm."""
    digest: str
    rtt_seconds: tuple[float, ...]
    clock_offset_seconds: float
    """Its clock minus ours, from the shortest round trip."""
    status: PingReply

    @property
    def best_rtt_seconds(self) -> float:
        return min(self.rtt_seconds)

    @property
    def median_rtt_seconds(self) -> float:
        return statistics.median(self.rtt_seconds)


def model_name(model: str, revision: str | None, progress: Callable[[int, int], None]) -> ModelName:
    """Return the identity of a checkpoint. Raises UsageError, UnsupportedModel, RetryElsewhere.

    The weights of a local folder are hashed the first time: `progress` is called with the bytes done and in all.
    """
    from ...proto.model.checkpoint import open_checkpoint  # brings torch

    checkpoint = open_checkpoint(model, revision=revision)
    return ModelName(checkpoint.model_digest(progress).hex(), checkpoint.num_blocks, checkpoint.proven_hashes())


@asynccontextmanager
async def survey_view(model: ModelName, options: SwarmOptions, most_pings: int = EVERYBODY) -> AsyncIterator[SwarmView]:
    """Yield the view of a model's swarm after its first look. Raises SwarmError."""
    async with _survey(model, options, most_pings) as (view, _):
        yield view


@asynccontextmanager
async def _survey(
    model: ModelName, options: SwarmOptions, most_pings: int = EVERYBODY
) -> AsyncIterator[tuple[SwarmView, Dialer]]:
    async with open_caller(options) as caller:
        view = caller.view(model, most_pings=most_pings)
        try:
            await view.start()
            yield view, caller.dialer
        finally:
            await view.close()


@dataclass(frozen=True)
class Caller:
    """The identity and the connections that looking at swarms needs."""

    identity: Identity
    dialer: Dialer
    options: SwarmOptions

    def view(self, model: ModelName, timing: ClientTiming | None = None, most_pings: int = EVERYBODY) -> SwarmView:
        """Return a view of the model's swarm that has not looked yet."""
        options = self.options
        return SwarmView(
            self.identity, self.dialer, options.initial_peers, model.digest, model.num_blocks, options.swarm_key,
            options.push, proven=model.proven, timing=timing, most_pings=most_pings,
        )  # fmt: skip


@asynccontextmanager
async def open_caller(options: SwarmOptions) -> AsyncIterator[Caller]:
    """Yield a caller whose connections are closed at the end of the block."""
    identity = Identity.load_or_create(options.identity) if options.identity else Identity.generate()
    rule = rule_for(private=options.swarm_key is not None, lan=options.lan)
    introduce = introduction(identity, options.swarm_key)
    dialer = Dialer(rule=rule, named=options.initial_peers, introduce=introduce)
    try:
        yield Caller(identity, dialer, options)
    finally:
        await dialer.close()


async def list_peers(model: ModelName, options: SwarmOptions) -> tuple[PeerLine, ...]:
    """Return all peers that announce the model, ordered by first block. Raises SwarmError."""
    async with survey_view(model, options) as view:
        believed = view.trust.believed
        lines = [
            _answering(known, time.time(), believed[peer].value if peer in believed else "doubted")
            for peer, known in view.peers.items()
        ]
        lines += [
            PeerLine(
                peer, record.public_name, record.spec.blocks, record.spec.state.value, record.spec.numeric_format,
                record.spec.cost.decode_seconds(), record.spec.kv_tokens_free, record.spec.kv_tokens_total, None,
                ", ".join(record.addresses), None, 0, "", record.device_class, record.tokens_served,
            )
            for peer, record in view.silent.items()
        ]  # fmt: skip
    return tuple(sorted(lines, key=lambda line: (line.blocks or BlockRange(0, 1), line.peer)))


async def live_snapshot(model: ModelName, options: SwarmOptions) -> Mapping[PeerId, tuple[PeerSpec, float]]:
    """Return the serving peers that announce the size of a block, each with its round trip in seconds.

    Raises SwarmError; PeerUnavailable if there are none.
    """
    async with survey_view(model, options) as view:
        found = {peer: (known.record.spec, known.rtt_seconds) for peer, known in sorted(view.peers.items())}
    staying = {
        peer: (spec, rtt) for peer, (spec, rtt) in found.items() if spec.state is PeerState.SERVING and spec.block_bytes
    }
    if not staying:
        raise PeerUnavailable("no peer of this model serves")
    return staying


async def swarm_outlook(model: ModelName, options: SwarmOptions) -> Outlook:
    """Return the outlook on the peers that answer and those that are joining; its bounds hold for this client, too.

    Raises SwarmError; PeerUnavailable if all peers are about to leave.
    """
    async with survey_view(model, options) as view:
        joining = [record.spec for record in view.silent.values() if record.spec.state is PeerState.JOINING]
        prepared = view.current().prepared
        peers, rtts = counted(prepared, joining), prepared.client_rtts
    swarm = Swarm.of_announced(ModelSpec(model.num_blocks), peers, time.time())
    outlook = await asyncio.to_thread(outlook_of, swarm, rtts=rtts)
    if outlook is None:
        raise PeerUnavailable("all peers of this model are about to leave")
    return outlook


def counted(routed: PreparedSwarm, joining: Sequence[PeerSpec]) -> list[PeerSpec]:
    """Return the peers that an outlook counts: the router's, and joining ones whose weights contradict none of them."""
    peers, num_blocks = routed.announced, routed.finder.swarm.model.num_blocks
    believed = [spec for spec in joining if not any(contradicted(spec, other) for other in peers)]
    return [spec for spec in (*peers, *believed) if _fits(spec, num_blocks)]


def _fits(spec: PeerSpec, num_blocks: int) -> bool:
    claimed = spec.claim.blocks if spec.claim is not None else None
    return all(blocks is None or blocks.stop <= num_blocks for blocks in (spec.blocks, claimed))


def _answering(known: KnownPeer, now: float, weights: str) -> PeerLine:
    spec = known.record.spec
    return PeerLine(
        peer=spec.id,
        name=known.record.public_name,
        blocks=spec.blocks,
        state=spec.state.value,
        numeric_format=spec.numeric_format,
        decode_seconds_per_block=spec.cost.decode_seconds(),
        kv_tokens_free=known.status.kv_tokens_free,
        kv_tokens_total=spec.kv_tokens_total,
        rtt_seconds=known.rtt_seconds,
        address=known.address.target,
        age_seconds=max(0.0, now + RECORD_LIFETIME_SECONDS - SignedRecord.decode(known.encoded).expires_at_seconds),
        sessions=known.status.sessions,
        weights=weights,
        device_class=known.record.device_class,
        tokens_served=known.record.tokens_served,
    )


async def predicted_chain(model: ModelName, options: SwarmOptions, request: RequestSpec) -> PredictedChain:
    """Return the chain that the request would get now. Raises NoChainError and other SwarmErrors."""
    async with survey_view(model, options, PINGS_A_LOOK) as view:
        swarm = view.current().prepared
        chain = await ViewRouter(view).choose(BlockRange(0, model.num_blocks), frozenset(), request)
        return predict(chain, swarm, options.push)


def predict(chain: Sequence[HopChoice], swarm: PreparedSwarm, push: bool) -> PredictedChain:
    """Predict a decode step of one row with an empty context, from announced costs and measured round trips."""
    known = {hop.peer: swarm.known[hop.peer] for hop in chain}
    times = predict_step(
        [(swarm.spec(hop.peer), hop.blocks) for hop in chain],
        tokens=1,
        client_rtt_seconds={peer: hop.rtt_seconds for peer, hop in known.items()},
        peer_rtt_seconds=swarm.rtts if push else None,
    )
    hops = (
        PredictedHop(
            hop_times.peer,
            known[hop_times.peer].record.public_name,
            hop.address.target,
            hop.blocks,
            hop_times.way_seconds,
            hop_times.visit_seconds,
            hop_times.compute_seconds,
            hop.weights.value,
        )
        for hop, hop_times in zip(chain, times.hops, strict=True)
    )
    return PredictedChain(tuple(hops), times.return_seconds, unproven_of(chain))


async def take_pulses(addresses: Sequence[PeerAddress]) -> tuple[Pulse, ...]:
    """Ping the given peers a few times each. Raises SwarmError if one does not answer."""
    dialer = Dialer(named=addresses)
    try:
        return await _pulses(dialer, addresses)
    finally:
        await dialer.close()


async def pulses_of_model(model: ModelName, options: SwarmOptions) -> tuple[Pulse, ...]:
    """Ping the peers of a model that answer a look a few times each. Raises SwarmError."""
    async with _survey(model, options) as (view, dialer):
        return await _pulses(dialer, [known.address for _, known in sorted(view.peers.items())])


async def _pulses(dialer: Dialer, addresses: Sequence[Reach]) -> tuple[Pulse, ...]:
    return tuple(await asyncio.gather(*(_take_pulse(dialer, address) for address in addresses)))


async def _take_pulse(dialer: Dialer, address: Reach) -> Pulse:
    stub = dialer.stub(address)
    timeout = ClientTiming().survey_ping_seconds
    await ping(stub, address, timeout)  # opens the connection
    answers = [await ping(stub, address, timeout) for _ in range(PINGS)]
    status, _, offset = min(answers, key=lambda answer: answer[1])
    rtts = tuple(rtt for _, rtt, _ in answers)
    return Pulse(str(address), printable(status.model_name), printable(status.model_digest), rtts, offset, status)
