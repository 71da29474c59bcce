"""The record states every fact, and a resting swarm of such records is a fixed point of the placement rule."""

from __future__ import annotations

import itertools
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
    device_class_of,
    record_of,
)
from blockswarm.proto.directory.records import PeerRecord, open_peer_record, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord, next_expiry, verify_record
from blockswarm.proto.errors import LocalProtocolError
from blockswarm.proto.identity import Identity
from blockswarm.routing.place.moves import ReplanPolicy, after_move
from blockswarm.routing.place.rule import decide
from blockswarm.routing.place.view import PlanningView
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
EIGHT_BILLION_INT8 = Model(32, 219_000_000, 8_192, ComputeCost(0.003, 0.0004, 1e-7, 0.003, 0.0004))
"""On a processor: int8 weights, the cache in float32."""
EIGHT_BILLION_FLOAT32 = Model(32, 872_448_000, 8_192, ComputeCost(0.009, 0.0006, 1e-7, 0.009, 0.0006))


def facts_of(
    model: Model, owner: Identity, asked: str, blocks: str, *, kv_tokens: int = 16_384, **changes: object
) -> RecordFacts:
    """The facts of a real peer that was started with `--blocks ASKED` and hosts `blocks`."""
    request, hosted = BlockRequest.parse(asked), BlockRange.parse(blocks)
    offer = MemoryOffer.of(len(hosted), kv_tokens, model.block_bytes, model.kv_bytes_per_token)
    room = offer.room(len(hosted))
    facts = RecordFacts(
        state=PeerState.SERVING,
        issued_seconds=NOW,
        identity=IdentityFacts(owner.peer_id, DIGEST, incarnation=1),
        hosting=HostingFacts(
            blocks=hosted,
            block_hashes=tuple(block.to_bytes(8, "big") for block in hosted),
            numeric_format="float16",
            stream_format="float16",
            memory_bytes=offer.total_bytes,
            block_bytes=offer.block_bytes,
            kv_bytes_per_token=offer.kv_bytes_per_token,
            load_seconds=2.5,
            max_blocks=request.count,
            blocks_fixed=request.blocks is not None,
            size_fixed=request.count is not None,
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


def snapshot(peers: Sequence[tuple[Model, str, str]], kv_tokens: int = 16_384) -> Swarm:
    """The swarm as a reader of all records sees it; peers are (model in its format, asked, hosted)."""
    specs = []
    for model, asked, blocks in peers:
        identity = Identity.generate()
        specs.append(travelled(identity, facts_of(model, identity, asked, blocks, kv_tokens=kv_tokens)).spec)
    return Swarm(ModelSpec(peers[0][0].num_blocks), tuple(sorted(specs, key=lambda peer: peer.id)), NOW + 2)


def test_every_field_travels() -> None:
    identity, relay = Identity.generate(), Identity.generate().peer_id
    here = Coordinate((0.1, 0.2, 0.3), height=0.01, error=0.5)
    facts = facts_of(
        SMALL, identity, "8", "8:16",
        state=PeerState.DRAINING,
        identity=IdentityFacts(identity.peer_id, DIGEST, 77, "the kitchen", "cpu, 2 threads"),
        room=RoomFacts(1000, 400, (KvRelease(NOW + 5, 100),)),
        reach=ReachFacts(("10.0.0.1:4000",), ("/ip4/10.0.0.1/tcp/4001",), (relay,), 3),
        clients=ClientFacts(2.5, (here,)),
        claim=MoveClaim(NOW - 3, BlockRange(0, 8)),
        tokens_served=12,
    )  # fmt: skip
    record = travelled(identity, facts)
    assert record == record_of(facts)
    spec = record.spec
    assert (spec.max_blocks, spec.blocks_fixed, spec.issued_seconds) == (8, False, NOW)
    assert spec.memory_bytes == 8 * (SMALL.block_bytes + 16_384 * SMALL.kv_bytes_per_token)
    assert spec.kv_tokens_total == 1000
    assert record.software_version[0].isdecimal()
    assert (record.public_name, record.device_class, record.tokens_served) == ("the kitchen", "cpu, 2 threads", 12)
    nothing = PeerSpec(PeerId(""), None, ComputeCost(0.0))
    unset = [f.name for f in fields(PeerSpec) if getattr(spec, f.name) == getattr(nothing, f.name)]
    assert unset == ["blocks_fixed"], "a fact that the record does not state"


@pytest.mark.parametrize(
    ("gpu", "memory", "told"),
    [
        (None, None, "cpu, 2 threads"),
        ("NVIDIA GeForce RTX 3060", 12_884_901_888, "NVIDIA GeForce RTX 3060, 12 GiB"),
        ("NVIDIA H200", 150_000_000_000, "NVIDIA H200, 140 GiB"),
        ("AMD Radeon™ <b>\n" + "x" * 99, 8 << 30, "AMD Radeon b " + "x" * 28 + ", 8 GiB"),
        ("  (\x1b[2J)", 1 << 30, "2J, 1 GiB"),
        ("ユ", 1 << 30, "GPU, 1 GiB"),
    ],
)
def test_any_device_has_a_class_that_a_record_may_tell(gpu: str | None, memory: int | None, told: str) -> None:
    found = device_class_of(gpu, memory, 2)
    assert found == told
    identity = Identity.generate()
    facts = facts_of(SMALL, identity, "8", "8:16", identity=IdentityFacts(identity.peer_id, DIGEST, 1, "", found))
    assert travelled(identity, facts).device_class == told


def test_one_thread_is_no_threads() -> None:
    assert device_class_of(None, None, 1) == "cpu, 1 thread"


def test_a_fact_beyond_the_bounds_is_no_record_and_no_crash() -> None:
    """The announcer logs what it cannot announce and tries again; anything but a SwarmError would end the peer."""
    late = RoomFacts(1000, 400, (KvRelease(1e13, 100),))
    with pytest.raises(LocalProtocolError, match="a release has a time"):
        record_of(facts_of(SMALL, Identity.generate(), "8", "8:16", room=late))


def test_the_addresses_of_the_dht_are_those_that_fit() -> None:
    visible = [f"/ip4/192.0.2.{i}/tcp/4001/p2p/12D3KooWme" for i in range(100)]
    reach = ReachFacts.of(("peer.example.org:4000",), visible)
    assert reach.dht_maddrs == tuple(f"/ip4/192.0.2.{i}/tcp/4001" for i in range(8))
    long = ReachFacts.of(("x" * 240 + ":4000",), visible)
    assert len(long.dht_maddrs) == 3


def test_what_the_operator_asked_for() -> None:
    identity = Identity.generate()
    asked = {text: travelled(identity, facts_of(SMALL, identity, text, "8:16")).spec for text in ("8:16", "8", "auto")}
    assert {text: (spec.max_blocks, spec.size_fixed, spec.blocks_fixed) for text, spec in asked.items()} == {
        "8:16": (None, False, True),
        "8": (8, True, False),
        "auto": (None, False, False),
    }


def all_of(model: Model, *peers: tuple[str, str]) -> list[tuple[Model, str, str]]:
    return [(model, asked, blocks) for asked, blocks in peers]


QUARTERS = ("0:8", "8:16", "16:24", "24:32")
PLACEMENTS: dict[str, list[tuple[Model, str, str]]] = {
    "four fixed ranges": all_of(SEVEN_BILLION, *((blocks, blocks) for blocks in QUARTERS)),
    "four numbers": all_of(SEVEN_BILLION, *(("8", blocks) for blocks in QUARTERS)),
    "four that took what fits": all_of(EIGHT_BILLION, *(("auto", blocks) for blocks in QUARTERS)),
    "each block twice": all_of(EIGHT_BILLION, ("16", "0:16"), ("16", "0:16"), ("16", "16:32"), ("16", "16:32")),
    "unequal machines": all_of(EIGHT_BILLION, ("20", "0:20"), ("12", "20:32"), ("4", "0:4")),
    "whole models": all_of(SMALL, ("auto", "0:24"), ("auto", "0:24")),
    "three formats": [
        (EIGHT_BILLION, "8", "0:8"),
        (EIGHT_BILLION_INT8, "16", "8:24"),
        (EIGHT_BILLION_FLOAT32, "8:16", "24:32"),
    ],
    "an int8 peer beside float32": [
        (EIGHT_BILLION_FLOAT32, "16", "0:16"),
        (EIGHT_BILLION_FLOAT32, "16", "16:32"),
        (EIGHT_BILLION_INT8, "auto", "0:32"),
    ],
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_resting_swarm_of_real_records_stays_as_it_is(name: str) -> None:
    """With weights alone for `memory_bytes`, or with one format for all, the rule would have peers give blocks up."""
    swarm = snapshot(PLACEMENTS[name])
    assert decide(swarm) is None
    view = PlanningView.of(swarm, ReplanPolicy())
    assert view is not None
    for peer, size in zip(view.peers, view.sizes, strict=True):
        assert peer.blocks is not None
        assert size >= len(peer.blocks), "the peer would be shrunk"


@pytest.mark.long
def test_peers_that_take_what_fits_come_to_rest_in_any_mixture_of_formats() -> None:
    formats = (EIGHT_BILLION, EIGHT_BILLION_INT8, EIGHT_BILLION_FLOAT32)
    for first, second, third in itertools.product(formats, repeat=3):
        swarm = snapshot([(first, "auto", "0:12"), (second, "auto", "8:24"), (third, "auto", "20:32")])
        for _ in swarm.peers:
            if (move := decide(swarm)) is not None:
                swarm = after_move(swarm, move)
        assert decide(swarm) is None
        for peer in swarm.peers:
            assert peer.blocks is not None
            assert len(peer.blocks) * peer.block_bytes < peer.memory_bytes


@pytest.mark.parametrize("kv_tokens", [16, 512, 100_000])
def test_a_chosen_number_of_blocks_is_kept(kv_tokens: int) -> None:
    """Also where the room is too small for a planned request, and where there is room for more blocks."""
    for peers in (PLACEMENTS["four numbers"], [(EIGHT_BILLION_INT8, "8", blocks) for blocks in QUARTERS]):
        swarm = snapshot(peers, kv_tokens)
        view = PlanningView.of(swarm, ReplanPolicy())
        assert view is not None
        assert view.sizes.tolist() == [8] * 4
        assert decide(swarm) is None
