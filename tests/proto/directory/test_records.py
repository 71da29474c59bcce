"""Records prove themselves: nobody but the owner can make one, change one, move one or let one live for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import time

import pytest
from blockswarm.proto import record_pb2 as pb
from blockswarm.proto.directory.records import (
    MAX_BLOCKS,
    MAX_CENTROIDS,
    MAX_DEVICE_CLASS_CHARS,
    MAX_KV_TOKEN_BLOCKS,
    MAX_REACH_BYTES,
    MAX_RELAY_PLACES,
    MAX_RELAYS,
    MAX_TOKENS_SERVED,
    PeerRecord,
    decode_peer_record,
    encode_peer_record,
    open_peer_record,
    sign_peer_record,
)
from blockswarm.proto.directory.signed import (
    MAX_RECORD_BYTES,
    SignedRecord,
    sign_record,
    verify_record,
)
from blockswarm.proto.directory.swarm_key import SwarmKey, dht_id, swarm_key_name
from blockswarm.proto.errors import (
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    WrongKey,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.precision import STREAM_FORMATS
from blockswarm.routing.releases import MAX_RELEASES
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, KvRelease, MoveClaim, PeerSpec, PeerState
from hypothesis import given, settings
from hypothesis import strategies as st

ALICE, BOB = Identity.generate(), Identity.generate()
DIGEST = hashlib.sha256(b"a model").hexdigest()
OTHER_DIGEST = hashlib.sha256(b"another model").hexdigest()
KEY = dht_id(swarm_key_name(DIGEST, None))
NOW = 1.7e9

seconds = st.floats(0, 1e6)
tokens = st.integers(0, MAX_KV_TOKEN_BLOCKS)
coordinates = st.builds(
    Coordinate,
    vector=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8).map(tuple),
    height=st.floats(0, 1e3, width=32),
    error=st.floats(0, 1, width=32),
)
plain = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=16)
addresses = st.builds("{}:{}".format, plain | st.just("[2001:db8::1]"), st.integers(1, 65535))


@st.composite
def peer_records(draw: st.DrawFn) -> PeerRecord:
    start = draw(st.integers(0, 500))
    blocks = draw(st.none() | st.integers(1, 64).map(lambda count: BlockRange(start, start + count)))
    hosted = len(blocks) if blocks else 0
    total = draw(tokens)
    moments = sorted(draw(st.lists(st.floats(0, 1e12), max_size=8)))
    spec = PeerSpec(
        id=ALICE.peer_id,
        blocks=blocks,
        cost=draw(st.builds(ComputeCost, *[seconds] * 6)),
        state=draw(st.sampled_from(PeerState)),
        memory_bytes=draw(st.floats(0, 1e18)),
        block_bytes=draw(st.just(0.0) | st.floats(1, 1e15)),
        kv_bytes_per_token=draw(st.just(0.0) | st.floats(1, 1e15)),
        load_seconds=draw(st.floats(0, 1e6)),
        size_fixed=draw(st.booleans()),
        kv_tokens_total=total,
        kv_tokens_free=draw(st.integers(0, total)),
        releases=tuple(KvRelease(moment, draw(tokens)) for moment in moments),
        coordinate=draw(st.none() | coordinates),
        client_centroids=tuple(draw(st.lists(coordinates, max_size=4))),
        concurrency=draw(st.floats(0, 1e6)),
        block_hashes=tuple(hashlib.sha256(b"%d" % i).digest()[:8] for i in range(hosted)),
        numeric_format=draw(plain),
        stream_format=draw(st.sampled_from(STREAM_FORMATS)),
        max_blocks=draw(st.none() | st.integers(1, 1000)),
        blocks_fixed=draw(st.booleans()),
        claim=draw(st.none() | st.builds(MoveClaim, st.floats(0, 1e12), st.just(BlockRange(3, 9)))),
        issued_seconds=draw(st.floats(0, 1e12)),
    )
    return PeerRecord(
        model_digest=DIGEST,
        spec=spec,
        addresses=tuple(draw(st.lists(addresses, max_size=6))),
        relays=(BOB.peer_id,) * draw(st.integers(0, 2)),
        relay_places=draw(st.integers(0, MAX_RELAY_PLACES)),
        dht_maddrs=tuple(draw(st.lists(st.just("/ip4/10.0.0.1/tcp/4001"), max_size=6))),
        incarnation=draw(st.integers(0, 2**64 - 1)),
        protocol_version=draw(st.integers(0, 2**32 - 1)),
        software_version=draw(plain),
        public_name=draw(st.sampled_from(["", "Ada's GPU", "ユウキ"])),
        device_class=draw(st.sampled_from(["", "cpu, 2 threads", "NVIDIA GeForce RTX 3060, 12 GiB"])),
        tokens_served=draw(st.none() | st.integers(0, MAX_TOKENS_SERVED)),
    )


def test_a_peer_that_serves_announces_a_hash_for_each_block() -> None:
    """One without hashes contradicts nobody, so it could never be left out. Until its blocks are loaded it has none."""
    spec = PeerSpec(ALICE.peer_id, BlockRange(0, 4), ComputeCost(0.01))
    for state in (PeerState.JOINING, PeerState.LEAVING):
        assert PeerRecord(DIGEST, dataclasses.replace(spec, state=state)).spec.block_hashes == ()
    for state in (PeerState.SERVING, PeerState.DRAINING):
        with pytest.raises(ValueError, match="0 block hashes for 4 blocks"):
            PeerRecord(DIGEST, dataclasses.replace(spec, state=state))


def a_record(**changes: object) -> PeerRecord:
    spec = PeerSpec(id=ALICE.peer_id, blocks=BlockRange(0, 4), cost=ComputeCost(0.01), block_hashes=(b"12345678",) * 4)
    record = PeerRecord(model_digest=DIGEST, spec=spec, addresses=("192.0.2.1:4000",))
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def signed(payload: bytes = b"payload", expires_at: float = NOW + 60, owner: Identity = ALICE) -> SignedRecord:
    return sign_record(owner, KEY, payload, expires_at)


# --- the payload ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@given(record=peer_records())
def test_what_is_announced_is_what_is_read(record: PeerRecord) -> None:
    assert decode_peer_record(ALICE.peer_id, encode_peer_record(record)) == record


def test_an_old_peer_says_nothing_of_its_device_and_its_tokens() -> None:
    """That is not the same as no tokens."""
    message = pb.PeerRecordMessage.FromString(encode_peer_record(a_record(device_class="cpu", tokens_served=0)))
    read = decode_peer_record(ALICE.peer_id, message.SerializeToString())
    assert (read.device_class, read.tokens_served) == ("cpu", 0)
    message.ClearField("device_class")
    message.ClearField("tokens_served")
    old = decode_peer_record(ALICE.peer_id, message.SerializeToString())
    assert (old.device_class, old.tokens_served) == ("", None)


def test_a_peer_that_says_nothing_of_its_stream_has_float32() -> None:
    message = pb.PeerRecordMessage.FromString(encode_peer_record(a_record()))
    message.ClearField("stream_format")
    assert decode_peer_record(ALICE.peer_id, message.SerializeToString()).spec.stream_format == "float32"


@pytest.mark.parametrize("holder", [PeerSpec, PeerRecord])
def test_no_field_is_forgotten(holder: type) -> None:
    """A field that is added to the vocabulary has to be announced, too: here every field differs from its default."""
    spec = PeerSpec(
        id=ALICE.peer_id,
        blocks=BlockRange(1, 2),
        cost=ComputeCost(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        state=PeerState.DRAINING,
        memory_bytes=1.0,
        block_bytes=2.0,
        kv_bytes_per_token=3.0,
        load_seconds=4.0,
        size_fixed=True,
        kv_tokens_total=2,
        kv_tokens_free=1,
        releases=(KvRelease(1.0, 1),),
        coordinate=Coordinate((1.0,), 2.0, 0.5),
        client_centroids=(Coordinate((3.0,)),),
        concurrency=1.5,
        block_hashes=(b"12345678",),
        numeric_format="int8",
        stream_format="bfloat16",
        max_blocks=3,
        blocks_fixed=True,
        claim=MoveClaim(4.0, BlockRange(5, 6)),
        issued_seconds=7.0,
    )
    record = PeerRecord(
        model_digest=DIGEST,
        spec=spec,
        addresses=("host:1",),
        relays=(BOB.peer_id,),
        relay_places=5,
        dht_maddrs=("/ip4/10.0.0.1/tcp/1",),
        incarnation=1,
        protocol_version=2,
        software_version="3",
        public_name="four",
        device_class="five",
        tokens_served=6,
    )
    read = decode_peer_record(ALICE.peer_id, encode_peer_record(record))
    value = read if holder is PeerRecord else read.spec
    assert read == record
    for field in dataclasses.fields(holder):
        assert field.default is dataclasses.MISSING or getattr(value, field.name) != field.default, field.name


@pytest.mark.long
@given(record=peer_records(), private=st.booleans())
def test_signed_round_trip(record: PeerRecord, private: bool) -> None:
    swarm_key = SWARM_KEY if private else None
    sent = sign_peer_record(ALICE, record, swarm_key, NOW + 60)
    received = SignedRecord.decode(sent.encode())
    verify_record(received, NOW)
    assert received == sent
    assert open_peer_record(received, swarm_key) == record


def large_record(num_blocks: int, num_releases: int, **changes: object) -> PeerRecord:
    """A peer with many blocks that knows all there is to say; numbers as they are measured, not round ones."""
    where = Coordinate((0.0123, 0.0234, 0.0345), 0.00512, 0.123)
    spec = PeerSpec(
        id=ALICE.peer_id,
        blocks=BlockRange(0, num_blocks),
        cost=ComputeCost(0.0123, 0.00123, 1.23e-6, 0.0234, 1.23e-4, 0.00234),
        memory_bytes=1.7e10,
        block_bytes=123_456_789.0,
        kv_bytes_per_token=8192.0,
        load_seconds=1.234,
        kv_tokens_total=16_384 * num_blocks,
        kv_tokens_free=12_345 * num_blocks,
        releases=tuple(KvRelease(NOW + 1.234 * i, 2048 * num_blocks) for i in range(num_releases)),
        coordinate=where,
        client_centroids=(where,) * 4,
        concurrency=2.345,
        block_hashes=(b"12345678",) * num_blocks,
        max_blocks=num_blocks,
        issued_seconds=NOW + 0.123,
    )
    record = PeerRecord(
        DIGEST, spec, addresses=("203.0.113.77:31337",), dht_maddrs=("/ip4/203.0.113.77/tcp/31338",),
        incarnation=time.time_ns(), protocol_version=3, software_version="1.12.3",
    )  # fmt: skip
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def test_the_record_of_a_usual_peer_has_at_most_a_kilobyte() -> None:
    """A look-up brings one of each peer, and a node keeps hundreds."""
    for swarm_key in (None, SWARM_KEY):
        assert len(sign_peer_record(ALICE, large_record(32, 8), swarm_key, NOW + 60).encode()) <= 1024


def test_every_record_within_its_bounds_can_be_announced() -> None:
    """All fields at their longest forms: a peer that cannot announce itself is invisible."""
    far = Coordinate((999.123,) * 8, 999.123, 0.123)
    worst = large_record(MAX_BLOCKS, 0)
    worst = dataclasses.replace(
        worst,
        spec=dataclasses.replace(
            worst.spec,
            blocks=BlockRange(100_000 - MAX_BLOCKS, 100_000),
            kv_tokens_total=MAX_KV_TOKEN_BLOCKS,
            kv_tokens_free=MAX_KV_TOKEN_BLOCKS,
            releases=(KvRelease(0.9e12, MAX_KV_TOKEN_BLOCKS),) * MAX_RELEASES,
            coordinate=far,
            client_centroids=(far,) * MAX_CENTROIDS,
            numeric_format="x" * 32,
            max_blocks=2**32 - 1,
            claim=MoveClaim(0.9e12, BlockRange(100_000 - MAX_BLOCKS, 100_000)),
            blocks_fixed=True,
            size_fixed=True,
        ),
        addresses=(f"{'a' * (MAX_REACH_BYTES - 15 * 9 - 6)}:31337", *(["host:4000"] * 7)),
        relays=(BOB.peer_id,) * MAX_RELAYS,
        relay_places=MAX_RELAY_PLACES,
        dht_maddrs=("/dns/a/bc",) * 8,
        incarnation=2**64 - 1,
        protocol_version=2**32 - 1,
        software_version="x" * 32,
        public_name="é" * 32 + "x" * 32,
        device_class="x" * MAX_DEVICE_CLASS_CHARS,
        tokens_served=MAX_TOKENS_SERVED,
    )
    assert len(sign_peer_record(ALICE, worst, SWARM_KEY, NOW + 60).encode()) <= MAX_RECORD_BYTES


def mutate(**fields: object) -> bytes:
    """The payload of a good record with some fields of the message set to bad values."""
    message = pb.PeerRecordMessage.FromString(encode_peer_record(a_record()))
    for name, value in fields.items():
        target = message
        *path, last = name.split("__")
        for step in path:
            target = getattr(target, step)
        if isinstance(value, list):
            del getattr(target, last)[:]
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)
    return message.SerializeToString()


@pytest.mark.parametrize(
    "fields",
    [
        {"model_digest": b"abc"},
        {"model_digest": b""},
        {"state": 0},
        {"state": 77},
        {"first_block": 5},
        {"stop_block": 5},
        {"first_block": 200_000, "stop_block": 200_004},
        {"stop_block": 300, "block_hashes": b"12345678" * 299},
        {"block_hashes": b""},
        {"block_hashes": b"123"},
        {"block_hashes": b"1" * 40},
        {"numeric_format": ""},
        {"numeric_format": "int8\n"},
        {"stream_format": "int8"},
        {"stream_format": "auto"},
        {"cost__decode_fixed": math.nan},
        {"cost__decode_fixed": -1.0},
        {"cost__prefill_per_token": math.inf},
        {"cost__prefill_per_token": 1e300},
        {"cost__visit": math.nan},
        {"cost__visit": -1.0},
        {"cost__visit": 1e300},
        {"memory_bytes": math.nan},
        {"issued_seconds": math.nan},
        {"claim__at_seconds": math.nan, "claim__stop_block": 4},
        {"claim__at_seconds": 1.0},
        {"claim__stop_block": 200_000},
        {"memory_bytes": -1.0},
        {"block_bytes": 1e-300},
        {"kv_bytes_per_token": math.nan},
        {"load_seconds": -1.0},
        {"kv_tokens_total": 2**60},
        {"kv_tokens_free": 1},
        {"release_seconds": [2.0, 1.0], "release_tokens": [1, 1]},
        {"release_seconds": [math.nan], "release_tokens": [1]},
        {"release_seconds": [1.0], "release_tokens": [2**60]},
        {"release_seconds": [1.0] * (MAX_RELEASES + 1), "release_tokens": [1] * (MAX_RELEASES + 1)},
        {"release_seconds": [1.0]},
        {"release_tokens": [1]},
        {"coordinate__height": 1.0},
        {"coordinate__vector": [math.nan]},
        {"coordinate__vector": [1e9]},
        {"coordinate__vector": [0.0] * 9},
        {"coordinate__vector": [0.0], "coordinate__error": 2.0},
        {"client_centroids": [pb.CoordinateMessage(vector=[0.0])] * 5},
        {"concurrency": math.nan},
        {"addresses": ["nowhere"]},
        {"addresses": ["host:0"]},
        {"addresses": ["host:70000"]},
        {"addresses": ["user@host:80"]},
        {"addresses": ["unix:/tmp/socket"]},
        {"addresses": ["host:80\n"]},
        {"addresses": ["host:80"] * 9},
        {"relays": ["me"]},
        {"relays": [ALICE.peer_id]},
        {"relays": [BOB.peer_id] * 3},
        {"relay_places": 1025},
        {"dht_maddrs": ["host:80"]},
        {"dht_maddrs": ["/ip4/1.2.3.4/tcp/1 /x"]},
        {"software_version": "1.0\x1b[2J"},
        {"public_name": "bad\x1b[2Jname"},
        {"public_name": "x" * 65},
        {"public_name": "ユ" * 33},
        {"device_class": "x" * 49},
        {"device_class": " cpu"},
        {"device_class": "cpu\n"},
        {"device_class": "<b>cpu</b>"},
        {"device_class": "=1+1"},
        {"device_class": "cpü"},
        {"tokens_served": 2**53},
        {"tokens_served": 2**64 - 1},
        {"addresses": ["x" * 200 + ":80"] * 2},
        {"dht_maddrs": ["/dns/" + "x" * 200 + "/tcp/1"], "addresses": ["x" * 200 + ":80"]},
    ],
    ids=lambda fields: str(fields).replace(ALICE.peer_id, "ALICE").replace(BOB.peer_id, "BOB"),
)
def test_a_field_out_of_bounds_is_the_remote_sides_fault(fields: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_peer_record(ALICE.peer_id, mutate(**fields))


@given(payload=st.binary(max_size=200))
def test_random_bytes_are_no_announcement(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_peer_record(ALICE.peer_id, payload)


@pytest.mark.long
@settings(max_examples=300)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_unexpected(position: int, value: int) -> None:
    data = bytearray(encode_peer_record(a_record()))
    data[position % len(data)] = value
    with contextlib.suppress(RemoteProtocolError):
        decode_peer_record(ALICE.peer_id, bytes(data))


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
    later = encode_peer_record(a_record()) + b"\xfa\x7d\x03new"
    assert decode_peer_record(ALICE.peer_id, later) == a_record()


# --- under whose name, sealed for whom -----------------------------------------------------------------------------


def test_a_record_of_one_model_is_not_taken_under_the_key_of_another() -> None:
    payload = encode_peer_record(a_record(model_digest=OTHER_DIGEST))
    with pytest.raises(RemoteProtocolError, match="another"):
        open_peer_record(signed(payload), None)


def test_a_node_announces_itself_only() -> None:
    with pytest.raises(LocalProtocolError):
        sign_peer_record(BOB, a_record(), None, NOW + 60)


def test_a_strangers_key_opens_nothing() -> None:
    record = sign_peer_record(ALICE, a_record(public_name="Ada's GPU"), SWARM_KEY, NOW + 60)
    assert b"Ada" not in record.encode()
    assert b"192.0.2.1" not in record.encode()
    with pytest.raises(WrongKey):
        open_peer_record(record, OTHER_SWARM_KEY)
    with pytest.raises(ProtocolError):
        open_peer_record(record, None)


def test_a_sealed_payload_cannot_be_moved_or_changed() -> None:
    record = sign_peer_record(ALICE, a_record(), SWARM_KEY, NOW + 60)
    tampered = bytearray(record.payload)
    tampered[-1] ^= 1
    for moved in (
        sign_record(BOB, record.key, record.payload, NOW + 60),
        sign_record(ALICE, dht_id("elsewhere"), record.payload, NOW + 60),
        sign_record(ALICE, record.key, bytes(tampered), NOW + 60),
        sign_record(ALICE, record.key, b"", NOW + 60),
        sign_record(ALICE, record.key, record.payload[:20], NOW + 60),
    ):
        with pytest.raises(WrongKey):
            open_peer_record(moved, SWARM_KEY)


SWARM_KEY, OTHER_SWARM_KEY = SwarmKey.generate(), SwarmKey.generate()
