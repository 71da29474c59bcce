"""The peers of a model as rows, ordered by first block, with measured values where known, else their own claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....proto.directory.records import PeerRecord
from ....proto.network.address import RelayedAddress
from ....routing.swarm import BlockRange, PeerId, PeerState, short_id
from ...swarm.known import KnownPeer
from ..watch.sighting import ModelFacts, Sighting

SILENT = "silent"
"""The state of a peer that announces itself but does not answer."""
DOUBTED = "doubted"
"""Said of a peer's weights that are not believed."""
OLDEST_START = 1_500_000_000.0
"""Unix seconds: an incarnation before this, taken as nanoseconds of Unix time, says nothing about a peer's start."""


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One peer. None means unknown."""

    peer: PeerId
    short_id: str
    name: str
    """By the peer's own account, unchecked."""
    blocks: tuple[int, int] | None
    state: str
    serves: bool
    """Whether chains may use it: it serves, its weights are believed, and the model has its blocks."""
    state_since: float
    """Unix time since which it has been in this state with these blocks..."""
    state_since_at_least: bool
    """...or true if it may be longer, because the first look found it so."""
    weights: str
    """Why its weights are believed; "doubted"; "" for a silent peer."""
    numeric_format: str
    announced_block_seconds: float
    """Time of one block for one token, by its own account."""
    measured_block_seconds: float | None
    """The same, as measured by the last probe through it; shown instead."""
    kv_tokens_free: int
    """In tokens x blocks, like `kv_tokens_total`."""
    kv_tokens_total: int
    memory_bytes: float
    sessions: int | None
    queued: int | None
    rtt_seconds: float | None
    """From this node."""
    relayed: bool | None
    """Whether it is reached through a relay."""
    version: str
    started_at: float | None
    """Unix time of its start, by its own account."""
    steps_answered: int | None
    """Since its start, by its own account."""
    device_class: str
    """The kind of its device, by its own account; "": it does not say."""
    tokens_served: int | None
    """Tokens computed for sessions since its start, by its own account in its record. None: it does not say."""
    moving_to: tuple[int, int] | None
    """The blocks that it claims to move to."""

    @property
    def block_seconds(self) -> float:
        return self.announced_block_seconds if self.measured_block_seconds is None else self.measured_block_seconds


def peer_rows(
    facts: ModelFacts, sighting: Sighting, measured_block_seconds: Mapping[PeerId, float]
) -> tuple[PeerRow, ...]:
    """Return all peers, ordered by first block, then by id; announced blocks beyond the model are not cut."""
    measured = measured_block_seconds
    rows = [
        _row(known.record, known, facts, sighting, measured.get(peer))
        for peer, known in sighting.prepared.known.items()
    ]
    rows += [_row(record, None, facts, sighting, measured.get(peer)) for peer, record in sighting.silent.items()]
    return tuple(sorted(rows, key=lambda row: (row.blocks or (facts.num_blocks, 0), row.peer)))


def _row(
    record: PeerRecord, known: KnownPeer | None, facts: ModelFacts, sighting: Sighting, measured: float | None
) -> PeerRow:
    spec, since = record.spec, sighting.since[record.spec.id]
    evidence = sighting.prepared.trust.believed.get(spec.id)
    fits = spec.blocks is not None and spec.blocks.stop <= facts.num_blocks
    serves = known is not None and spec.state is PeerState.SERVING and evidence is not None and fits
    status = known.status if known is not None else None
    return PeerRow(
        peer=spec.id,
        short_id=short_id(spec.id),
        name=record.public_name,
        blocks=pair(spec.blocks),
        state=spec.state.value if known is not None else SILENT,
        serves=serves,
        state_since=since.at_seconds,
        state_since_at_least=since.at_least,
        weights="" if known is None else DOUBTED if evidence is None else evidence.value,
        numeric_format=spec.numeric_format,
        announced_block_seconds=spec.cost.decode_seconds(),
        measured_block_seconds=measured,
        kv_tokens_free=spec.kv_tokens_free,
        kv_tokens_total=spec.kv_tokens_total,
        memory_bytes=spec.memory_bytes,
        sessions=status.sessions if status is not None else None,
        queued=status.queued if status is not None else None,
        rtt_seconds=known.rtt_seconds if known is not None else None,
        relayed=isinstance(known.address, RelayedAddress) if known is not None else None,
        version=record.software_version,
        started_at=started_at(record.incarnation, sighting.at_seconds),
        steps_answered=status.steps_answered if status is not None else None,
        device_class=record.device_class,
        tokens_served=record.tokens_served,
        moving_to=pair(spec.claim.blocks) if spec.claim is not None else None,
    )


def pair(blocks: BlockRange | None) -> tuple[int, int] | None:
    """Return the range as (first block, block after the last)."""
    return (blocks.start, blocks.stop) if blocks is not None else None


def started_at(incarnation: int, now: float) -> float | None:
    """Return the Unix time of an incarnation, which peers take from their clock in ns; None if it is implausible."""
    seconds = incarnation / 1e9
    return seconds if OLDEST_START <= seconds <= now + 60 else None
