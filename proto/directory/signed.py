"""Signed records: bounded and expiring, so that any node may store and serve them.

A `SignedRecord` is (key, owner, payload, expiry, signature); its encoded form is the same in the DHT, in the answers of
peers and in memory.  The signature covers all of it, so a record cannot be changed, moved under another key or given
to another owner; of two records of one owner the later expiry wins.  `records.py` defines the payload.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from ...routing.swarm import PeerId
from .. import record_pb2 as pb
from ..errors import AuthenticationError, LocalProtocolError, RemoteProtocolError
from ..identity import SIGNATURE_BYTES, Identity, verify
from ..wire.messages.limits import MAX_RECORD_BYTES
from ..wire.timing import CLOCK_TOLERANCE_SECONDS, MAX_RECORD_LIFETIME_SECONDS, RECORD_LIFETIME_SECONDS

KEY_BYTES = 20
"""Length of a DHT id."""
CHECKS_AT_ONCE = 8
"""Number of records that are checked before the event loop's other work gets its turn: about a millisecond."""

_RECORD_TAG = b"blockswarm-record-1\0"


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A payload under a DHT id, owned and signed by a peer. Only `verify_record` checks its signature."""

    key: bytes
    """20 bytes, `dht_id(name)`."""
    peer_id: PeerId
    payload: bytes
    expires_at_seconds: float
    """Unix time."""
    signature: bytes = field(repr=False)

    def signed_bytes(self) -> bytes:
        """The bytes that the signature covers: every other field, each with an unambiguous length."""
        owner = self.peer_id.encode()
        lengths = struct.pack("<III", len(self.key), len(owner), len(self.payload))
        return _RECORD_TAG + lengths + self.key + owner + self.payload + struct.pack("<d", self.expires_at_seconds)

    def encode(self) -> bytes:
        """The form that is stored and sent."""
        message = pb.SignedRecordMessage(
            key=self.key,
            peer_id=self.peer_id,
            payload=self.payload,
            expires_at_seconds=self.expires_at_seconds,
            signature=self.signature,
        )
        return message.SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes) -> SignedRecord:
        """Read the stored form. Raises RemoteProtocolError if it is too large, malformed or not in canonical form."""
        if len(data) > MAX_RECORD_BYTES:
            raise RemoteProtocolError(f"a record has at most {MAX_RECORD_BYTES} bytes, not {len(data)}")
        try:
            message = pb.SignedRecordMessage.FromString(data)
        except DecodeError:
            raise RemoteProtocolError("a record is malformed") from None
        record = cls(
            message.key, PeerId(message.peer_id), message.payload, message.expires_at_seconds, message.signature
        )
        # One record has one form, so a node cannot make "other" records by padding this one.
        if record.encode() != data or len(record.key) != KEY_BYTES or not math.isfinite(record.expires_at_seconds):
            raise RemoteProtocolError("a record is malformed")
        return record


class SignatureCache:
    """Remembers which records were verified, up to `max_entries` (32 bytes each); the oldest are forgotten first.

    `verify` is called for records that are not remembered, and raises if one is invalid.
    """

    def __init__(self, max_entries: int = 8192, verify: Callable[[SignedRecord], None] | None = None) -> None:
        self._max_entries = max_entries
        self._verify = verify or verify_signature
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, record: SignedRecord) -> None:
        """Like `verify_signature`; a record that was verified before costs a hash instead of a signature check."""
        digest = hashlib.sha256(record.signature + record.signed_bytes()).digest()
        if digest in self._digests:
            self._digests.move_to_end(digest)
            return
        self._verify(record)
        self._digests[digest] = None
        if len(self._digests) > self._max_entries:
            self._digests.popitem(last=False)


def sign_record(identity: Identity, key: bytes, payload: bytes, expires_at_seconds: float) -> SignedRecord:
    """A record of `identity` under the DHT id `key` until `expires_at_seconds` (Unix time, see `next_expiry`).

    Raises LocalProtocolError if it is larger than any node would store.
    """
    unsigned = SignedRecord(key, identity.peer_id, payload, expires_at_seconds, b"")
    record = SignedRecord(key, identity.peer_id, payload, expires_at_seconds, identity.sign(unsigned.signed_bytes()))
    if len(key) != KEY_BYTES or len(record.encode()) > MAX_RECORD_BYTES:
        raise LocalProtocolError(f"a record has a key of {KEY_BYTES} bytes and {MAX_RECORD_BYTES} bytes at most")
    return record


def verify_signature(record: SignedRecord) -> None:
    """Raise AuthenticationError if the record is not signed by its owner. Ignores the times."""
    if len(record.signature) != SIGNATURE_BYTES:
        raise AuthenticationError("a record has a signature of 64 bytes")
    verify(record.peer_id, record.signature, record.signed_bytes())


def verify_record(
    record: SignedRecord,
    now: float,
    cache: SignatureCache | None = None,
) -> None:
    """Check that a decoded record is signed by its owner, not expired, and not too long-lived; `now` in Unix seconds.

    Raises AuthenticationError for the signature, RemoteProtocolError for the times.
    """
    if record.expires_at_seconds <= now:
        raise RemoteProtocolError(f"the record of {record.peer_id} is over")
    if lives_too_long(record.expires_at_seconds, now):
        raise RemoteProtocolError(f"the record of {record.peer_id} claims to live too long")
    if cache is not None:
        cache.check(record)
    else:
        verify_signature(record)


def lives_too_long(expires_at_seconds: float, now: float) -> bool:
    """Whether a record expires too late to be stored; written so that NaN counts as too late."""
    return not expires_at_seconds <= now + MAX_RECORD_LIFETIME_SECONDS + CLOCK_TOLERANCE_SECONDS


def next_expiry(previous: float | None, now: float, lifetime_seconds: float = RECORD_LIFETIME_SECONDS) -> float:
    """The expiry of a peer's next record: `lifetime_seconds` from now, and later than that of its previous one.

    The previous record may be from an earlier run of the peer.  It is ignored if it expires so late that no node would
    accept it now: the clock was ahead when it was made, and others have refused it.
    """
    expiry = now + lifetime_seconds
    if previous is None or lives_too_long(previous + 0.001, now):
        return expiry
    return max(expiry, previous + 0.001)


def newest_per_peer(records: Sequence[SignedRecord]) -> tuple[SignedRecord, ...]:
    """The record with the latest expiry of each owner, in ascending order of owner."""
    newest: dict[PeerId, SignedRecord] = {}
    for record in records:
        known = newest.get(record.peer_id)
        # Two records with one expiry are the owner's mistake; the signature decides, so that every node picks the same.
        if known is None or _rank(record) > _rank(known):
            newest[record.peer_id] = record
    return tuple(newest[peer_id] for peer_id in sorted(newest))


def _rank(record: SignedRecord) -> tuple[float, bytes]:
    return record.expires_at_seconds, record.signature
