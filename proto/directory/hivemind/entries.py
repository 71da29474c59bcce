"""How hivemind packs records under a key: read with bounds before anything is made of it, and checked in its form.

A record is the value of its owner's subkey; all records under a key travel as one dictionary, in a msgpack extension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgpack

from ...errors import RemoteProtocolError
from ...wire.messages.limits import MAX_RECORD_BYTES, MAX_RECORDS_PER_KEY
from ..shards import belongs_under
from ..signed import SignedRecord
from .places import Kept

MAX_ENTRIES = MAX_RECORDS_PER_KEY + 100
"""The most entries that are read of one dictionary."""
DICTIONARY_TAG = b""
"""The subkey of a whole dictionary."""
_DICTIONARY_CODE = 0x50
_MAX_VALUE_BYTES = MAX_RECORD_BYTES + 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A record under some key as it came, not checked."""

    owner: str
    value: bytes
    expires_at_seconds: float


def value_of(record: SignedRecord) -> bytes:
    """The value under the owner's subkey."""
    value: bytes = msgpack.packb(record.encode(), use_bin_type=True)
    return value


def encoded_in(value: bytes) -> bytes | None:
    """The encoded record in a value; None if there can be none."""
    try:
        encoded = msgpack.unpackb(value)
    except ValueError:
        return None
    return encoded if isinstance(encoded, bytes) else None


def entries_of(records: Mapping[str, Kept]) -> list[Entry]:
    """Kept records in the form in which others' come."""
    return [Entry(owner, kept.value, kept.expires_at_seconds) for owner, kept in records.items()]


def pack_dictionary(records: Mapping[str, Kept]) -> bytes:
    """All records under a key."""
    items = [[owner, kept.value, kept.expires_at_seconds] for owner, kept in records.items()]
    latest = max((kept.expires_at_seconds for kept in records.values()), default=0.0)
    inner = msgpack.packb([float("inf"), latest, items], use_bin_type=True)
    packed: bytes = msgpack.packb(msgpack.ExtType(_DICTIONARY_CODE, inner))
    return packed


def unpack_dictionary(data: bytes) -> list[Entry]:
    """The entries of a dictionary. Raises RemoteProtocolError."""
    try:
        outer = msgpack.unpackb(data)  # unlike hivemind's own reader it makes plain values only
        if not isinstance(outer, msgpack.ExtType) or outer.code != _DICTIONARY_CODE:
            raise ValueError
        _, _, items = msgpack.unpackb(outer.data, max_array_len=MAX_ENTRIES)
        return [_entry(*item) for item in items]
    except (ValueError, TypeError):
        raise RemoteProtocolError("a dictionary of the DHT is malformed or too long") from None


def unpack_single(tag: bytes, value: bytes, expires_at_seconds: float) -> Entry:
    """The entry of one subkey. Raises RemoteProtocolError."""
    try:
        return _entry(msgpack.unpackb(tag), value, expires_at_seconds)
    except (ValueError, TypeError):
        raise RemoteProtocolError("a subkey of the DHT is malformed") from None


def _entry(owner: object, value: object, expires_at_seconds: object) -> Entry:
    if not isinstance(owner, str) or not isinstance(value, bytes) or not isinstance(expires_at_seconds, float):
        raise ValueError
    if len(owner) > 64 or len(value) > _MAX_VALUE_BYTES:
        raise ValueError
    return Entry(owner, value, expires_at_seconds)


def read_record(key: bytes, entry: Entry) -> SignedRecord:
    """The record in an entry under `key`, whose signature is still to be checked. Raises RemoteProtocolError."""
    encoded = encoded_in(entry.value)
    if encoded is None:
        raise RemoteProtocolError("a value of the DHT is no record")
    record = SignedRecord.decode(encoded)
    said = (record.peer_id, record.expires_at_seconds)
    if said != (entry.owner, entry.expires_at_seconds) or value_of(record) != entry.value:
        raise RemoteProtocolError("a record is of another owner or expiry than its entry")
    if not belongs_under(key, record.key, record.peer_id):
        raise RemoteProtocolError("a record is under another key than its own and those of its shards")
    return record
