"""The record states every fact, and a resting swarm of such records is a fixed point of the placement rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import pytest
from blockswarm.peer.config import BlockRequest
from blockswarm.peer.offer.capacity import MemoryOffer
from blockswarm.peer.offer.record import (
    ClientFacts,
    HostingFacts,
    IdentityFacts,
    ReachFacts,
    RecordFacts,
    RoomFacts,
    record_of,
)
from blockswarm.proto.directory.records import PeerRecord, Relay, open_peer_record, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord, next_expiry, verify_record
from blockswarm.proto.identity import Identity
from blockswarm.routing.place.rule import PlanningView, ReplanPolicy, decide
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    Coordinate,
    KvRelease,
    ModelSpec,
    MoveClaim,
    PeerId,
    PeerSpec,
    PeerState,
    Swarm,
)

DIGEST = "ab" * 32
NOW = 1_800_000_000.0


@dataclass(frozen=True)
class Model:
    """The facts of `Examined` about a model, and the cost of its blocks on an ordinary machine."""

    num_blocks: int
    block_bytes: int
    kv_bytes_per_token: int
    cost: ComputeCost


SEVEN_BILLION = Model(32, 404_750_336, 16_384, ComputeCost(0.004, 0.0005, 1e-7, 0.004, 0.0004))
"""float16, no grouped queries."""
EIGHT_BILLION = Model(32, 436_224_000, 4_096, ComputeCost(0.004, 0.0005, 1e-7, 0.004, 0.0004))
"""float16, eight key and value heads."""
SMALL = Model(24, 30_000_000, 1_024, ComputeCost(0.0006, 0.0001, 1e-8, 0.0006, 0.00004))


def facts_of(model: Model, owner: Identity, asked: str, blocks: str, **changes: object) -> RecordFacts:
    """The facts of a real peer that was started with `--blocks ASKED` and hosts `blocks`."""
    request, hosted = BlockRequest.parse(asked), BlockRange.parse(blocks)
    offer = MemoryOffer.of(len(hosted), 16_384, model.block_bytes, model.kv_bytes_per_token)
    room = offer.room(len(hosted))
    facts = RecordFacts(
        state=PeerState.SERVING,
        issued_seconds=NOW,
        identity=IdentityFacts(owner.peer_id, DIGEST, incarnation=1),
        hosting=HostingFacts(
            blocks=hosted,
            block_hashes=tuple(block.to_bytes(8, "big") for block in hosted),
            numeric_format="float16",
            memory_bytes=offer.total_bytes,
            max_blocks=request.count,
            blocks_fixed=request.blocks is not None,
        ),
        cost=model.cost,
        room=RoomFacts(room, room, ()),
        reach=ReachFacts(("10.0.0.1:4000",)),
        clients=ClientFacts(concurrency=0.0),
        coordinate=Coordinate((0.01, 0.0, 0.0), height=0.005, error=0.2),
    )
    return replace(facts, **changes)  # type: ignore[arg-type]


def travelled(identity: Identity, facts: RecordFacts) -> PeerRecord:
    """The record as another peer reads it out of the directory."""
    signed = sign_peer_record(identity, record_of(facts), None, next_expiry(None, facts.issued_seconds))
    read = SignedRecord.decode(signed.encode())
    verify_record(read, facts.issued_seconds + 1)
    return open_peer_record(read, None)


def snapshot(model: Model, peers: Sequence[tuple[str, str]]) -> Swarm:
    """The swarm as a peer sees it that reads all records; peers are (asked, hosted)."""
    specs = []
    for asked, blocks in peers:
        identity = Identity.generate()
        specs.append(travelled(identity, facts_of(model, identity, asked, blocks)).spec)
    spec = ModelSpec(model.num_blocks, float(model.block_bytes), float(model.kv_bytes_per_token))
    return Swarm(spec, tuple(sorted(specs, key=lambda peer: peer.id)), now_seconds=NOW + 2)


def test_every_field_travels() -> None:
    identity, relay = Identity.generate(), Identity.generate().peer_id
    here = Coordinate((0.1, 0.2, 0.3), height=0.01, error=0.5)
    facts = facts_of(
        SMALL, identity, "8", "8:16",
        state=PeerState.DRAINING,
        identity=IdentityFacts(identity.peer_id, DIGEST, 77, "the kitchen"),
        room=RoomFacts(1000, 400, (KvRelease(NOW + 5, 100),)),
        reach=ReachFacts(("10.0.0.1:4000",), ("/ip4/10.0.0.1/tcp/4001",), (Relay(relay, "10.0.0.2:1"),)),
        clients=ClientFacts(2.5, (here,)),
        claim=MoveClaim(NOW - 3, BlockRange(0, 8)),
    )  # fmt: skip
    record = travelled(identity, facts)
    assert record == record_of(facts)
    spec = record.spec
    assert (spec.max_blocks, spec.blocks_fixed, spec.issued_seconds) == (8, False, NOW)
    assert spec.memory_bytes == 8 * (SMALL.block_bytes + 16_384 * SMALL.kv_bytes_per_token)
    assert spec.kv_tokens_total == 1000
    assert record.software_version[0].isdecimal()
    nothing = PeerSpec(PeerId(""), None, ComputeCost(0.0))
    unset = [f.name for f in fields(PeerSpec) if getattr(spec, f.name) == getattr(nothing, f.name)]
    assert unset == ["blocks_fixed"], "a fact that the record does not state"


def test_what_the_operator_asked_for() -> None:
    identity = Identity.generate()
    asked = {text: travelled(identity, facts_of(SMALL, identity, text, "8:16")).spec for text in ("8:16", "8", "auto")}
    assert {text: (spec.max_blocks, spec.blocks_fixed) for text, spec in asked.items()} == {
        "8:16": (None, True),
        "8": (8, False),
        "auto": (None, False),
    }


PLACEMENTS: dict[str, tuple[Model, list[tuple[str, str]]]] = {
    "four fixed ranges": (SEVEN_BILLION, [("0:8", "0:8"), ("8:16", "8:16"), ("16:24", "16:24"), ("24:32", "24:32")]),
    "four numbers": (SEVEN_BILLION, [("8", "0:8"), ("8", "8:16"), ("8", "16:24"), ("8", "24:32")]),
    "four that took what fits": (
        EIGHT_BILLION,
        [("auto", "0:8"), ("auto", "8:16"), ("auto", "16:24"), ("auto", "24:32")],
    ),
    "each block twice": (EIGHT_BILLION, [("16", "0:16"), ("16", "0:16"), ("16", "16:32"), ("16", "16:32")]),
    "unequal machines": (EIGHT_BILLION, [("20", "0:20"), ("12", "20:32"), ("4", "0:4")]),
    "whole models": (SMALL, [("auto", "0:24"), ("auto", "0:24")]),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_resting_swarm_of_real_records_stays_as_it_is(name: str) -> None:
    """With weights alone for `memory_bytes`, the rule would have every peer give blocks up for room."""
    model, peers = PLACEMENTS[name]
    swarm = snapshot(model, peers)
    assert decide(swarm) is None
    view = PlanningView.of(swarm, ReplanPolicy())
    assert view is not None
    for peer, size in zip(view.peers, view.sizes, strict=True):
        assert peer.blocks is not None
        assert size >= len(peer.blocks), "the peer would be shrunk"
