"""Derives events from two looks: peers that came, left, fell silent or moved, and whether all blocks have a server."""

from __future__ import annotations

from dataclasses import dataclass

from ....proto.directory.records import PeerRecord
from ....proto.errors import describe_blocks
from ....routing.swarm import PeerId
from .sighting import Sighting

MOST_CHANGES = 100
"""The most events per look; further ones are only counted."""


@dataclass(frozen=True, slots=True)
class Change:
    """One event; `peer` is "" if it concerns the whole swarm."""

    kind: str
    peer: str = ""
    name: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One peer as a look has seen it."""

    record: PeerRecord
    answers: bool


def changes(
    before: Sighting, after: Sighting, missing_before: tuple[int, ...], missing: tuple[int, ...]
) -> list[Change]:
    """Return the changes of the swarm first, then those of peers ordered by id, at most `MOST_CHANGES`.

    `missing_before` and `missing`: the blocks that no peer serves.
    """
    found = []
    if missing != missing_before:
        found.append(gap_change(missing))
    old, new = _peers(before), _peers(after)
    for peer in sorted(old.keys() | new.keys()):
        found += _of_peer(peer, old.get(peer), new.get(peer))
    if len(found) > MOST_CHANGES:
        rest = len(found) - MOST_CHANGES
        found = [*found[:MOST_CHANGES], Change("more", detail=f"{rest} further events in one look")]
    return found


def gap_change(missing: tuple[int, ...]) -> Change:
    """Return the event that these blocks have no server any more; without any, that all have one again."""
    if missing:
        return Change("incomplete", detail=f"no peer serves {describe_blocks(missing)}")
    return Change("complete", detail="every block has a server")


def _peers(sighting: Sighting) -> dict[PeerId, _Seen]:
    known = {peer: _Seen(each.record, True) for peer, each in sighting.prepared.known.items()}
    return known | {peer: _Seen(record, False) for peer, record in sighting.silent.items()}


def _of_peer(peer: PeerId, old: _Seen | None, new: _Seen | None) -> list[Change]:
    if new is None:
        assert old is not None
        return [Change("left", peer, old.record.public_name, _where(old.record))]
    name, spec = new.record.public_name, new.record.spec
    if old is None:
        return [Change("joined" if new.answers else "silent", peer, name, _where(new.record))]
    found = []
    if old.answers != new.answers:
        found.append(Change("answers" if new.answers else "silent", peer, name, _where(new.record)))
    if old.record.incarnation != new.record.incarnation:
        found.append(Change("restarted", peer, name, _where(new.record)))
    was = old.record.spec
    if was.state is not spec.state:
        found.append(Change("state", peer, name, f"{was.state.value} to {spec.state.value}"))
    if was.blocks != spec.blocks:
        found.append(Change("moved", peer, name, f"from {was.blocks or 'no blocks'} to {spec.blocks or 'no blocks'}"))
    if spec.claim is not None and (was.claim is None or was.claim.blocks != spec.claim.blocks):
        found.append(Change("claims", peer, name, f"intends to move to {spec.claim.blocks}"))
    return found


def _where(record: PeerRecord) -> str:
    return f"blocks {record.spec.blocks}" if record.spec.blocks is not None else "no blocks"
