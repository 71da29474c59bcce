"""Signed records: nothing of them can be changed, and they end in time."""

from __future__ import annotations

import dataclasses
import math

import pytest
from blockswarm.proto import record_pb2 as pb
from blockswarm.proto.directory.signed import (
    MAX_RECORD_BYTES,
    SignatureCache,
    SignedRecord,
    newest_per_peer,
    next_expiry,
    sign_record,
    verify_record,
)
from blockswarm.proto.directory.swarm_key import dht_id
from blockswarm.proto.errors import (
    AuthenticationError,
    LocalProtocolError,
    RemoteProtocolError,
    SwarmError,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.timing import CLOCK_TOLERANCE_SECONDS, MAX_RECORD_LIFETIME_SECONDS, RECORD_LIFETIME_SECONDS
from hypothesis import given, settings
from hypothesis import strategies as st

ALICE, BOB = Identity.generate(), Identity.generate()
KEY = dht_id("a name")
NOW = 1.7e9


def signed(payload: bytes = b"payload", expires_at: float = NOW + 60, owner: Identity = ALICE) -> SignedRecord:
    return sign_record(owner, KEY, payload, expires_at)


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


@pytest.mark.long
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
    with pytest.raises(RemoteProtocolError, match=f"{MAX_RECORD_BYTES} bytes"):
        SignedRecord.decode(message.SerializeToString())


def test_the_cache_is_bounded_and_saves_signature_checks() -> None:
    checked: list[SignedRecord] = []
    cache = SignatureCache(max_entries=2, verify=checked.append)
    first, second, third = (signed(payload=b"%d" % i) for i in range(3))
    for record in (first, first, second, first, third, first):
        verify_record(record, NOW, cache=cache)
    assert checked == [first, second, third]
    verify_record(second, NOW, cache=cache)
    assert checked == [first, second, third, second]
    assert len(cache) == 2


def test_the_expiry_grows_across_restarts() -> None:
    first = next_expiry(None, NOW)
    assert first == NOW + RECORD_LIFETIME_SECONDS
    assert next_expiry(first, NOW) > first
    assert next_expiry(first, NOW - 10) > first
    assert next_expiry(first, NOW + 20) == NOW + 20 + RECORD_LIFETIME_SECONDS


@pytest.mark.parametrize("set_by", [-3600.0, -121.0, -66.0, -65.0, -64.0, -10.0, 0.0, 10.0, 3600.0])
def test_a_record_is_valid_at_once_when_the_clock_was_set(set_by: float) -> None:
    """A clock set back by an hour made a peer invisible for that hour: each record had to end after the last."""
    now = NOW + set_by
    expiry = next_expiry(next_expiry(None, NOW), now)
    verify_record(signed(expires_at=expiry), now)
    assert expiry >= now + RECORD_LIFETIME_SECONDS


def test_the_newest_record_of_each_peer_wins_whatever_the_order() -> None:
    old, new, other = signed(expires_at=NOW + 1), signed(expires_at=NOW + 2), signed(owner=BOB)
    tie = signed(payload=b"tie", expires_at=NOW + 2)
    expected = newest_per_peer([old, new, other, tie])
    assert expected == newest_per_peer([tie, other, new, old, new])
    assert {record.peer_id for record in expected} == {ALICE.peer_id, BOB.peer_id}
    assert all(record.expires_at_seconds > NOW + 1 for record in expected)
