"""Records prove themselves: nobody but the owner can make one, change one, move one or let one live for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import stat
from pathlib import Path

import pytest
from blockswarm.proto import record_pb2 as pb
from blockswarm.proto.directory.records import (
    MAX_RECORD_BYTES,
    PeerRecord,
    Relay,
    SignatureCache,
    SignedRecord,
    SwarmKey,
    decode_peer_record,
    dht_id,
    encode_peer_record,
    newest_per_peer,
    next_expiry,
    open_peer_record,
    sign_peer_record,
    sign_record,
    swarm_key_name,
    verify_record,
)
from blockswarm.proto.errors import (
    AuthenticationError,
    ClockSkew,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    SwarmError,
    UsageError,
    WrongKey,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.timing import CLOCK_TOLERANCE_SECONDS, MAX_RECORD_LIFETIME_SECONDS, RECORD_LIFETIME_SECONDS
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
tokens = st.integers(0, 2**53)
coordinates = st.builds(
    Coordinate,
    vector=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8).map(tuple),
    height=st.floats(0, 1e3),
    error=st.floats(0, 1),
)
plain = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=32)
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
        cost=draw(st.builds(ComputeCost, seconds, seconds, seconds, seconds, seconds)),
        state=draw(st.sampled_from(PeerState)),
        memory_bytes=draw(st.floats(0, 1e18)),
        kv_tokens_total=total,
        kv_tokens_free=draw(st.integers(0, total)),
        releases=tuple(KvRelease(moment, draw(tokens)) for moment in moments),
        coordinate=draw(st.none() | coordinates),
        client_centroids=tuple(draw(st.lists(coordinates, max_size=4))),
        concurrency=draw(st.floats(0, 1e6)),
        block_hashes=draw(st.just(()) | st.just(tuple(hashlib.sha256(b"%d" % i).digest()[:8] for i in range(hosted)))),
        numeric_format=draw(plain),
        max_blocks=draw(st.none() | st.integers(1, 1000)),
        blocks_fixed=draw(st.booleans()),
        claim=draw(st.none() | st.builds(MoveClaim, st.floats(0, 1e12), st.just(BlockRange(3, 9)))),
        issued_seconds=draw(st.floats(0, 1e12)),
    )
    return PeerRecord(
        model_digest=DIGEST,
        spec=spec,
        addresses=tuple(draw(st.lists(addresses, max_size=8))),
        relays=tuple(Relay(BOB.peer_id, draw(addresses)) for _ in range(draw(st.integers(0, 2)))),
        dht_maddrs=tuple(draw(st.lists(st.just("/ip4/10.0.0.1/tcp/4001"), max_size=8))),
        incarnation=draw(st.integers(0, 2**64 - 1)),
        protocol_version=draw(st.integers(0, 2**32 - 1)),
        software_version=draw(plain),
        public_name=draw(st.sampled_from(["", "Ada's GPU", "ユウキ"])),
    )


def a_record(**changes: object) -> PeerRecord:
    spec = PeerSpec(id=ALICE.peer_id, blocks=BlockRange(0, 4), cost=ComputeCost(0.01), block_hashes=(b"12345678",) * 4)
    record = PeerRecord(model_digest=DIGEST, spec=spec, addresses=("192.0.2.1:4000",))
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def signed(payload: bytes = b"payload", expires_at: float = NOW + 60, owner: Identity = ALICE) -> SignedRecord:
    return sign_record(owner, KEY, payload, expires_at)


# --- the payload ---------------------------------------------------------------------------------------------------


@given(record=peer_records())
def test_what_is_announced_is_what_is_read(record: PeerRecord) -> None:
    assert decode_peer_record(ALICE.peer_id, encode_peer_record(record)) == record


@pytest.mark.parametrize("holder", [PeerSpec, PeerRecord])
def test_no_field_is_forgotten(holder: type) -> None:
    """A field that is added to the vocabulary has to be announced, too: here every field differs from its default."""
    spec = PeerSpec(
        id=ALICE.peer_id,
        blocks=BlockRange(1, 2),
        cost=ComputeCost(1.0, 2.0, 3.0, 4.0, 5.0),
        state=PeerState.DRAINING,
        memory_bytes=1.0,
        kv_tokens_total=2,
        kv_tokens_free=1,
        releases=(KvRelease(1.0, 1),),
        coordinate=Coordinate((1.0,), 2.0, 0.5),
        client_centroids=(Coordinate((3.0,)),),
        concurrency=1.5,
        block_hashes=(b"12345678",),
        numeric_format="int8",
        max_blocks=3,
        blocks_fixed=True,
        claim=MoveClaim(4.0, BlockRange(5, 6)),
        issued_seconds=7.0,
    )
    record = PeerRecord(
        model_digest=DIGEST,
        spec=spec,
        addresses=("host:1",),
        relays=(Relay(BOB.peer_id, "host:2"),),
        dht_maddrs=("/ip4/10.0.0.1/tcp/1",),
        incarnation=1,
        protocol_version=2,
        software_version="3",
        public_name="four",
    )
    read = decode_peer_record(ALICE.peer_id, encode_peer_record(record))
    value = read if holder is PeerRecord else read.spec
    assert read == record
    for one in dataclasses.fields(holder):
        assert one.default is dataclasses.MISSING or getattr(value, one.name) != one.default, one.name


@given(record=peer_records(), private=st.booleans())
def test_signed_round_trip(record: PeerRecord, private: bool) -> None:
    swarm_key = SWARM_KEY if private else None
    try:
        sent = sign_peer_record(ALICE, record, swarm_key, NOW + 60)
    except LocalProtocolError:
        assert len(encode_peer_record(record)) > MAX_RECORD_BYTES - 300
        return
    received = SignedRecord.decode(sent.encode())
    verify_record(received, NOW)
    assert received == sent
    assert open_peer_record(received, swarm_key) == record


def test_a_large_peer_fits() -> None:
    """80 blocks, full release table, all centroids: the largest peer of a 70B model still announces itself."""
    where = Coordinate((0.01, 0.02, 0.03, 0.04), 0.005, 0.1)
    spec = PeerSpec(
        id=ALICE.peer_id,
        blocks=BlockRange(0, 80),
        cost=ComputeCost(0.01, 0.001, 1e-6, 0.02, 1e-4),
        kv_tokens_total=10**7,
        kv_tokens_free=10**6,
        releases=tuple(KvRelease(NOW + i, 10**5) for i in range(MAX_RELEASES)),
        coordinate=where,
        client_centroids=(where,) * 4,
        block_hashes=(b"12345678",) * 80,
    )
    record = a_record(spec=spec, addresses=("192.0.2.1:4000", "[2001:db8::1]:4000"), public_name="x" * 64)
    assert len(sign_peer_record(ALICE, record, SWARM_KEY, NOW + 60).encode()) < MAX_RECORD_BYTES


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
        {"model_digest": "abc"},
        {"model_digest": DIGEST.upper()},
        {"state": 0},
        {"state": 77},
        {"first_block": 5},
        {"stop_block": 5},
        {"first_block": 200_000, "stop_block": 200_004},
        {"stop_block": 300, "block_hashes": b""},
        {"block_hashes": b"123"},
        {"block_hashes": b"1" * 40},
        {"numeric_format": ""},
        {"numeric_format": "int8\n"},
        {"cost__decode_fixed": math.nan},
        {"cost__decode_fixed": -1.0},
        {"cost__prefill_per_token": math.inf},
        {"cost__prefill_per_token": 1e300},
        {"memory_bytes": math.nan},
        {"issued_seconds": math.nan},
        {"claim__at_seconds": math.nan, "claim__stop_block": 4},
        {"claim__at_seconds": 1.0},
        {"claim__stop_block": 200_000},
        {"memory_bytes": -1.0},
        {"kv_tokens_total": 2**60},
        {"kv_tokens_free": 1},
        {"releases": [pb.ReleaseMessage(at_seconds=2, tokens=1), pb.ReleaseMessage(at_seconds=1, tokens=1)]},
        {"releases": [pb.ReleaseMessage(at_seconds=math.nan, tokens=1)]},
        {"releases": [pb.ReleaseMessage(at_seconds=1, tokens=2**60)]},
        {"releases": [pb.ReleaseMessage(at_seconds=1, tokens=1)] * (MAX_RELEASES + 1)},
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
        {"relays": [pb.RelayMessage(peer_id="me", address="host:80")]},
        {"dht_maddrs": ["host:80"]},
        {"dht_maddrs": ["/ip4/1.2.3.4/tcp/1 /x"]},
        {"software_version": "1.0\x1b[2J"},
        {"public_name": "bad\x1b[2Jname"},
        {"public_name": "x" * 65},
    ],
    ids=str,
)
def test_a_field_out_of_bounds_is_the_remote_sides_fault(fields: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_peer_record(ALICE.peer_id, mutate(**fields))


@given(payload=st.binary(max_size=200))
def test_random_bytes_are_no_announcement(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_peer_record(ALICE.peer_id, payload)


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


# --- the signature -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forged",
    [
        dataclasses.replace(signed(), payload=b"another"),
        dataclasses.replace(signed(), key=dht_id("another key")),
        dataclasses.replace(signed(), peer_id=BOB.peer_id),
        dataclasses.replace(signed(), expires_at_seconds=NOW + 61),
        dataclasses.replace(signed(), signature=bytes(64)),
        dataclasses.replace(signed(), signature=b""),
        dataclasses.replace(signed(), signature=signed(owner=BOB).signature),
    ],
    ids=["payload", "key", "owner", "expiry", "zero signature", "no signature", "signed by another"],
)
def test_nothing_of_a_record_can_be_changed(forged: SignedRecord) -> None:
    cache = SignatureCache()
    verify_record(signed(), NOW, cache=cache)
    for _ in range(2):
        with pytest.raises(AuthenticationError):
            verify_record(forged, NOW, cache=cache)


@settings(max_examples=300)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_changed_bit_of_the_stored_form_verifies(position: int, bit: int) -> None:
    data = bytearray(signed().encode())
    data[position % len(data)] ^= 1 << bit
    with pytest.raises((RemoteProtocolError, AuthenticationError)):
        verify_record(SignedRecord.decode(bytes(data)), NOW)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_as_a_record(data: bytes) -> None:
    with pytest.raises(SwarmError):
        verify_record(SignedRecord.decode(data), NOW)


def test_a_record_has_one_stored_form_only() -> None:
    data = signed().encode()
    with pytest.raises(RemoteProtocolError):
        SignedRecord.decode(data + b"\xfa\x7d\x03pad")


@pytest.mark.parametrize("expires_at", [math.nan, math.inf, -math.inf])
def test_odd_expiries_are_refused(expires_at: float) -> None:
    with pytest.raises(RemoteProtocolError):
        verify_record(SignedRecord.decode(signed(expires_at=expires_at).encode()), NOW)


def test_records_end_and_may_not_live_long() -> None:
    cache = SignatureCache()
    record = signed(expires_at=NOW + 60)
    verify_record(record, NOW, cache=cache)
    with pytest.raises(RemoteProtocolError, match="over"):
        verify_record(record, NOW + 60, cache=cache)
    with pytest.raises(RemoteProtocolError, match="too long"):
        verify_record(record, NOW - MAX_RECORD_LIFETIME_SECONDS, cache=cache)
    verify_record(signed(expires_at=NOW + MAX_RECORD_LIFETIME_SECONDS + CLOCK_TOLERANCE_SECONDS), NOW)


def test_oversize_is_refused_on_both_sides() -> None:
    with pytest.raises(LocalProtocolError):
        signed(payload=bytes(MAX_RECORD_BYTES))
    message = pb.SignedRecordMessage(key=KEY, peer_id=ALICE.peer_id, payload=bytes(MAX_RECORD_BYTES))
    with pytest.raises(RemoteProtocolError, match="4096"):
        SignedRecord.decode(message.SerializeToString())


def test_the_cache_is_bounded_and_saves_signature_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockswarm.proto.directory import records as module

    checked = []
    genuine = module.verify_signature
    monkeypatch.setattr(module, "verify_signature", lambda record: (checked.append(record), genuine(record)))
    cache = SignatureCache(max_entries=2)
    first, second, third = (signed(payload=b"%d" % i) for i in range(3))
    for record in (first, first, second, first, third, first):
        verify_record(record, NOW, cache=cache)
    assert checked == [first, second, third]
    verify_record(second, NOW, cache=cache)
    assert checked == [first, second, third, second]
    assert len(cache._digests) == 2


def test_the_expiry_grows_across_restarts() -> None:
    first = next_expiry(None, NOW)
    assert first == NOW + RECORD_LIFETIME_SECONDS
    assert next_expiry(first, NOW) > first
    assert next_expiry(first, NOW - 10) > first
    assert next_expiry(first, NOW + 20) == NOW + 20 + RECORD_LIFETIME_SECONDS
    with pytest.raises(ClockSkew):
        next_expiry(first, NOW - 3600)


def test_the_newest_record_of_each_peer_wins_whatever_the_order() -> None:
    old, new, other = signed(expires_at=NOW + 1), signed(expires_at=NOW + 2), signed(owner=BOB)
    tie = signed(payload=b"tie", expires_at=NOW + 2)
    expected = newest_per_peer([old, new, other, tie])
    assert expected == newest_per_peer([tie, other, new, old, new])
    assert {record.peer_id for record in expected} == {ALICE.peer_id, BOB.peer_id}
    assert all(record.expires_at_seconds > NOW + 1 for record in expected)


# --- names and private swarms --------------------------------------------------------------------------------------


def test_a_record_of_one_model_is_not_taken_under_the_key_of_another() -> None:
    payload = encode_peer_record(a_record(model_digest=OTHER_DIGEST))
    with pytest.raises(RemoteProtocolError, match="another"):
        open_peer_record(signed(payload), None)


def test_a_node_announces_itself_only() -> None:
    with pytest.raises(LocalProtocolError):
        sign_peer_record(BOB, a_record(), None, NOW + 60)


def test_names_tell_models_and_swarms_apart() -> None:
    names = {
        swarm_key_name(digest, key) for digest in (DIGEST, OTHER_DIGEST) for key in (None, SWARM_KEY, OTHER_SWARM_KEY)
    }
    assert len(names) == 6
    assert not any(DIGEST in name for name in names - {swarm_key_name(DIGEST, None)})


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


def test_proofs_need_the_key_and_the_message() -> None:
    proof = SWARM_KEY.proof(b"session 1")
    assert SWARM_KEY.check(b"session 1", proof)
    assert not SWARM_KEY.check(b"session 2", proof)
    assert not OTHER_SWARM_KEY.check(b"session 1", proof)
    assert not SWARM_KEY.check(b"session 1", b"")


def test_swarm_key_file(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    SWARM_KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SwarmKey.load(path).check(b"m", SWARM_KEY.proof(b"m"))
    with pytest.raises(UsageError, match="exists"):
        OTHER_SWARM_KEY.save(path)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="0644"):
        SwarmKey.load(path)


@pytest.mark.parametrize("text", [b"", b"not base64!", b"QUJD", b"\xff" * 44, b"A" * 2000])
def test_what_is_no_swarm_key_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "swarm.key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not a swarm key"):
        SwarmKey.load(path)


def test_missing_swarm_key_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        SwarmKey.load(tmp_path / "nothing")


def test_the_secret_is_not_shown() -> None:
    assert repr(SWARM_KEY) == "SwarmKey(...)"


SWARM_KEY, OTHER_SWARM_KEY = SwarmKey.generate(), SwarmKey.generate()
