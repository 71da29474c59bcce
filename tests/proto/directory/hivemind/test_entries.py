"""Bytes from other nodes become records within bounds, and only those that are their owner's, under their own name."""

from __future__ import annotations

import time
from dataclasses import replace

import msgpack
import pytest
from blockswarm.proto.directory.hivemind.entries import (
    MAX_ENTRIES,
    Entry,
    pack_dictionary,
    read_record,
    unpack_dictionary,
    unpack_single,
    value_of,
)
from blockswarm.proto.directory.hivemind.places import Kept
from blockswarm.proto.directory.hivemind.shim import MSGPackSerializer
from blockswarm.proto.directory.shards import MAX_BITS, keys_of, prefix_of, shard_key
from blockswarm.proto.directory.signed import verify_signature
from blockswarm.proto.directory.swarm_key import dht_id
from blockswarm.proto.errors import RemoteProtocolError, SwarmError
from blockswarm.proto.identity import Identity
from hypothesis import given
from hypothesis import strategies as st
from support.directories import a_record

ALICE = Identity.generate()
NOW = time.time()
RECORD = a_record(ALICE, "name", NOW + 1e6)
ENTRY = Entry(RECORD.peer_id, value_of(RECORD), RECORD.expires_at_seconds)

plain_values = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
msgpack_values = st.recursive(plain_values, lambda inner: st.lists(inner) | st.dictionaries(plain_values, inner))
some_bytes = st.binary(max_size=200) | msgpack_values.map(MSGPackSerializer.dumps)


def a_dictionary(items: object) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([float("inf"), NOW, items])))
    return packed


def test_the_form_is_that_of_hivemind() -> None:
    """Its own code reads what is packed here, and the other way round."""
    from hivemind.dht.storage import DictionaryDHTValue

    theirs = DictionaryDHTValue()
    theirs.store(RECORD.peer_id, ENTRY.value, ENTRY.expires_at_seconds)
    assert unpack_dictionary(MSGPackSerializer.dumps(theirs)) == [ENTRY]
    assert unpack_single(MSGPackSerializer.dumps(RECORD.peer_id), ENTRY.value, ENTRY.expires_at_seconds) == ENTRY
    ours = pack_dictionary({RECORD.peer_id: Kept(ENTRY.value, ENTRY.expires_at_seconds, 0.0, 0.0, None)})
    assert {key: tuple(item) for key, item in MSGPackSerializer.loads(ours).items()} == {
        RECORD.peer_id: (ENTRY.value, ENTRY.expires_at_seconds)
    }
    assert read_record(RECORD.key, ENTRY) == RECORD


@pytest.mark.long
@given(data=some_bytes | msgpack_values.map(a_dictionary))
def test_any_bytes_are_entries_or_refused(data: bytes) -> None:
    for read in (unpack_dictionary, lambda data: [unpack_single(data, data, NOW)]):
        try:
            entries = read(data)
        except RemoteProtocolError:
            continue
        for entry in entries:
            with pytest.raises(RemoteProtocolError):
                read_record(dht_id("name"), entry)


def test_a_dictionary_is_bounded_before_it_is_read() -> None:
    item = ["peer", b"value", NOW]
    assert len(unpack_dictionary(a_dictionary([item] * MAX_ENTRIES))) == MAX_ENTRIES
    nested = b"x"
    for _ in range(2000):
        nested = msgpack.packb(msgpack.ExtType(0x50, nested))
    hostile = [
        a_dictionary([item] * (MAX_ENTRIES + 1)),
        a_dictionary([["peer", b"v" * 5000, NOW]]),
        a_dictionary([["p" * 100, b"v", NOW]]),
        a_dictionary([["peer", b"v", 1]]),
        a_dictionary(3),
        nested,
        b"\x91" * 10**5,
        msgpack.packb(msgpack.ExtType(7, b"")),
    ]
    for data in hostile:
        with pytest.raises(RemoteProtocolError):
            unpack_dictionary(data)


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\xc4\x01x", b"\xc7\x01\x50x", bytes(10**5), b"\x91" * 10**4])
def test_odd_values_are_no_records(value: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_record(RECORD.key, replace(ENTRY, value=value))


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_changed_bit_passes(position: int, bit: int) -> None:
    changed = bytearray(ENTRY.value)
    changed[position % len(changed)] ^= 1 << bit
    with pytest.raises(SwarmError):
        verify_signature(read_record(RECORD.key, replace(ENTRY, value=bytes(changed))))


def test_a_record_counts_under_its_own_key_owner_and_expiry_only() -> None:
    for key, entry in (
        (dht_id("other"), ENTRY),
        (RECORD.key, replace(ENTRY, owner=Identity.generate().peer_id)),
        (RECORD.key, replace(ENTRY, expires_at_seconds=NOW + 61)),
    ):
        with pytest.raises(RemoteProtocolError, match="another"):
            read_record(key, entry)


def test_a_record_is_read_under_its_own_shards_and_no_others() -> None:
    """A node that is asked to keep it there cannot know of what model it is, and need not."""
    assert all(read_record(key, ENTRY) == RECORD for key in keys_of(RECORD.key, RECORD.peer_id))
    for bits in range(1, MAX_BITS + 1):
        other = prefix_of(RECORD.key, RECORD.peer_id, bits) ^ 1
        with pytest.raises(RemoteProtocolError, match="another key"):
            read_record(shard_key(RECORD.key, bits, other), ENTRY)
    for wrong in (replace(ENTRY, owner=Identity.generate().peer_id), replace(ENTRY, expires_at_seconds=NOW)):
        with pytest.raises(RemoteProtocolError, match="another owner or expiry"):
            read_record(RECORD.key, wrong)
