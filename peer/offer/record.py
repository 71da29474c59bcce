"""The record that a peer announces of itself: a pure function of facts, each of which has one owner.

The facts come in frozen parts.  Their owners: the start of the program (`IdentityFacts`), what is hosted
(`HostingFacts`), the cost that was taken last, the admission table (`RoomFacts`), the network (`ReachFacts`,
coordinate), the sessions (`ClientFacts`), the placement agent (claim), the announcer (state, issued_seconds).  Every
field of `PeerSpec` and `PeerRecord` is set here and means what their docstrings say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from ...proto.directory.records import (
    MAX_ADDRESSES,
    MAX_DEVICE_CLASS_CHARS,
    MAX_REACH_BYTES,
    PeerRecord,
    in_single_precision,
)
from ...proto.errors import LocalProtocolError
from ...proto.wire.handshake import PROTOCOL_VERSION
from ...routing.swarm import (
    BlockRange,
    ComputeCost,
    Coordinate,
    KvRelease,
    MoveClaim,
    PeerId,
    PeerSpec,
    PeerState,
)


@dataclass(frozen=True, slots=True)
class IdentityFacts:
    """The peer as such, settled when it starts."""

    peer_id: PeerId
    model_digest: str
    incarnation: int
    """Grows with every start of the peer."""
    public_name: str = ""
    device_class: str = ""
    """As `device_class_of` returns it; empty: the operator does not want it announced."""


@dataclass(frozen=True, slots=True)
class HostingFacts:
    """The blocks that the peer hosts, and those that it could host."""

    blocks: BlockRange | None
    block_hashes: tuple[bytes, ...]
    numeric_format: str
    stream_format: str
    """The dtype of the hidden states between the blocks."""
    memory_bytes: int
    """Offered for weights and attention caches together; does not depend on what is hosted now."""
    block_bytes: int
    """Weights of one block in this peer's format."""
    kv_bytes_per_token: int
    """Attention cache of one token in one block, likewise."""
    max_blocks: int | None
    """The operator's limit."""
    blocks_fixed: bool
    """The operator chose the range of blocks, or a move has failed recently."""
    size_fixed: bool = False
    """The operator chose the number of blocks."""
    load_seconds: float = 0.0
    """Measured time to fetch and load one block; 0: not measured."""


@dataclass(frozen=True, slots=True)
class RoomFacts:
    """Room for attention caches, in tokens x blocks."""

    total: int
    free: int
    releases: tuple[KvRelease, ...]
    """In Unix time."""


@dataclass(frozen=True, slots=True)
class ReachFacts:
    """How the peer is reached."""

    addresses: tuple[str, ...]
    """host:port of the data plane, best first."""
    dht_maddrs: tuple[str, ...] = ()
    """Without this peer's id."""
    relays: tuple[PeerId, ...] = ()
    """The relays through which it is reached, nearest first."""
    relay_places: int = 0
    """The number of other peers for which it would relay."""

    @classmethod
    def of(
        cls,
        addresses: tuple[str, ...],
        visible_maddrs: Sequence[str],
        relays: tuple[PeerId, ...] = (),
        relay_places: int = 0,
    ) -> ReachFacts:
        """The facts of a peer whose DHT node is seen at `visible_maddrs`; those that do not fit are left out."""
        room = MAX_REACH_BYTES - sum(map(len, addresses))
        fitting: list[str] = []
        for maddr in visible_maddrs:
            bare = maddr.partition("/p2p/")[0]
            if len(fitting) < MAX_ADDRESSES and len(bare) <= room:
                fitting.append(bare)
                room -= len(bare)
        return cls(addresses, tuple(fitting), relays, relay_places)


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """Observations of the last ten minutes."""

    concurrency: float
    """Mean number of parallel sessions."""
    centroids: tuple[Coordinate, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """Everything that a record says."""

    state: PeerState
    issued_seconds: float
    """Unix time of the announcement."""
    identity: IdentityFacts
    hosting: HostingFacts
    cost: ComputeCost
    room: RoomFacts
    reach: ReachFacts
    clients: ClientFacts
    coordinate: Coordinate | None = None
    claim: MoveClaim | None = None
    tokens_served: int = 0
    """Tokens computed for sessions since the start. Affects no decision, so a change is not announced by itself."""


def device_class_of(gpu_name: str | None, memory_bytes: int | None, threads: int) -> str:
    """The class of a device, as a record announces it: "cpu, 2 threads", "NVIDIA GeForce RTX 3060, 12 GiB".

    `gpu_name`: None for a processor, whose model is not announced; `memory_bytes`: a GPU's memory in all. The result
    contains no number, name or address of this machine.
    """
    if gpu_name is None:
        return f"cpu, {threads} thread{'s' * (threads != 1)}"
    memory = f", {memory_bytes / 2**30:.0f} GiB" if memory_bytes is not None else ""
    plain = re.sub(r"[^A-Za-z0-9.()/+_-]+", " ", gpu_name).strip(" .()/+_-") or "GPU"
    return plain[: MAX_DEVICE_CLASS_CHARS - len(memory)].rstrip() + memory


def record_of(facts: RecordFacts) -> PeerRecord:
    """The record that states these facts. Raises LocalProtocolError if one is outside the record's bounds."""
    try:
        return _record_of(facts)
    except ValueError as error:
        raise LocalProtocolError(f"this peer cannot be announced: {error}") from None


def _record_of(facts: RecordFacts) -> PeerRecord:
    identity, hosting, room, reach, clients = facts.identity, facts.hosting, facts.room, facts.reach, facts.clients
    spec = PeerSpec(
        id=identity.peer_id,
        blocks=hosting.blocks,
        cost=facts.cost,
        state=facts.state,
        memory_bytes=float(hosting.memory_bytes),
        block_bytes=float(hosting.block_bytes),
        kv_bytes_per_token=float(hosting.kv_bytes_per_token),
        load_seconds=hosting.load_seconds,
        size_fixed=hosting.size_fixed,
        kv_tokens_total=room.total,
        kv_tokens_free=room.free,
        releases=room.releases,
        coordinate=facts.coordinate and in_single_precision(facts.coordinate),
        client_centroids=tuple(map(in_single_precision, clients.centroids)),
        concurrency=clients.concurrency,
        block_hashes=hosting.block_hashes,
        numeric_format=hosting.numeric_format,
        stream_format=hosting.stream_format,
        max_blocks=hosting.max_blocks,
        blocks_fixed=hosting.blocks_fixed,
        claim=facts.claim,
        issued_seconds=facts.issued_seconds,
    )
    return PeerRecord(
        model_digest=identity.model_digest,
        spec=spec,
        addresses=reach.addresses,
        relays=reach.relays,
        relay_places=reach.relay_places,
        dht_maddrs=reach.dht_maddrs,
        incarnation=identity.incarnation,
        protocol_version=PROTOCOL_VERSION,
        software_version=version("blockswarm"),
        public_name=identity.public_name,
        device_class=identity.device_class,
        tokens_served=facts.tokens_served,
    )
