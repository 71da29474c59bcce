"""Records: what a peer announces of itself, signed, bounded and expiring, so that anybody may store and serve them.

A `SignedRecord` is (key, owner, payload, expiry, signature); its encoded form is the same in the DHT, in the answers of
peers and in memory.  The signature covers all of it, so a record cannot be changed, moved under another key or given
to another owner; of two records of one owner the later expiry wins.  The payload of a peer's record is a
`PeerRecord`, checked field by field here and nowhere else.

In a private swarm the key is an HMAC under the swarm key and the payload is sealed (ChaCha20-Poly1305, RFC 8439;
subkeys by HKDF, RFC 5869), so a stranger who comes by a record can neither read it nor tell which model it is about.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import os
import re
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf.message import DecodeError

from ...routing.releases import MAX_RELEASES
from ...routing.swarm import BlockRange, ComputeCost, Coordinate, KvRelease, MoveClaim, PeerId, PeerSpec, PeerState
from .. import record_pb2 as pb
from ..errors import AuthenticationError, ClockSkew, LocalProtocolError, RemoteProtocolError, UsageError, WrongKey
from ..identity import SIGNATURE_BYTES, Identity, create_secret_file, public_key_of, read_secret_file, verify
from ..network.address import HostPort
from ..wire.timing import CLOCK_TOLERANCE_SECONDS, MAX_RECORD_LIFETIME_SECONDS, RECORD_LIFETIME_SECONDS

KEY_BYTES = 20
MAX_RECORD_BYTES = 4096
"""Of an encoded SignedRecord, with everything."""

MAX_BLOCKS = 256
MAX_CENTROIDS = 4
MAX_ADDRESSES = 8
MAX_RELAYS = 2
MAX_COORDINATE_DIMENSIONS = 8
MAX_PUBLIC_NAME_CHARS = 64
BLOCK_HASH_BYTES = 8

_RECORD_TAG = b"blockswarm-record-1\0"
_NONCE_BYTES = 12
_MAX_COUNT = 2**53  # integers up to here survive as a float
_MAX_UNIX_SECONDS = 1e12
_MADDR = re.compile(r"(/[A-Za-z0-9._:-]+){2,}")
_TOKEN = re.compile(r"[A-Za-z0-9._+-]{1,32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


# --- what is announced -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relay:
    """A public peer through which a peer without a public address is reached."""

    peer_id: PeerId
    address: str
    """host:port of the relay's data plane."""

    def __post_init__(self) -> None:
        _check_peer_id(self.peer_id)
        _check_address(self.address)


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What a peer announces under the digest of its model: what it is (`spec`) and how it is reached.

    In a record the clock of `spec.releases` is Unix time. Raises ValueError if a field is outside its bounds.
    """

    model_digest: str
    """SHA-256 of the model, 64 hexadecimal digits."""
    spec: PeerSpec
    addresses: tuple[str, ...] = ()
    """host:port of the data plane, best first."""
    relays: tuple[Relay, ...] = ()
    dht_maddrs: tuple[str, ...] = ()
    """Where the DHT can be joined through this peer."""
    incarnation: int = 0
    """Grows with every start of the peer: sessions do not outlive it."""
    protocol_version: int = 0
    software_version: str = "0"
    public_name: str = ""

    def __post_init__(self) -> None:
        _check(_DIGEST.fullmatch(self.model_digest), "the model digest is 64 hexadecimal digits")
        _check_spec(self.spec)
        _check_count("addresses", self.addresses, MAX_ADDRESSES)
        for address in self.addresses:
            _check_address(address)
        _check_count("relays", self.relays, MAX_RELAYS)
        _check_count("DHT addresses", self.dht_maddrs, MAX_ADDRESSES)
        for maddr in self.dht_maddrs:
            _check(len(maddr) <= 256 and _MADDR.fullmatch(maddr), "a DHT address is a multiaddress")
        _check(0 <= self.incarnation < 2**64, "the incarnation is an unsigned 64-bit number")
        _check(0 <= self.protocol_version < 2**32, "the protocol version is an unsigned 32-bit number")
        _check(_TOKEN.fullmatch(self.software_version), "the software version has 1 to 32 plain characters")
        _check(
            len(self.public_name) <= MAX_PUBLIC_NAME_CHARS and (not self.public_name or self.public_name.isprintable()),
            f"the public name has at most {MAX_PUBLIC_NAME_CHARS} printable characters",
        )


_STATES = {
    PeerState.JOINING: pb.STATE_JOINING,
    PeerState.SERVING: pb.STATE_SERVING,
    PeerState.DRAINING: pb.STATE_DRAINING,
    PeerState.LEAVING: pb.STATE_LEAVING,
}
_STATES_BY_NUMBER = {number: state for state, number in _STATES.items()}


def encode_peer_record(record: PeerRecord) -> bytes:
    """The payload of a record, not sealed."""
    spec = record.spec
    message = pb.PeerRecordMessage(
        model_digest=record.model_digest,
        state=_STATES[spec.state],
        first_block=spec.blocks.start if spec.blocks else 0,
        stop_block=spec.blocks.stop if spec.blocks else 0,
        block_hashes=b"".join(spec.block_hashes),
        numeric_format=spec.numeric_format,
        cost=pb.CostMessage(
            decode_fixed=spec.cost.decode_fixed,
            decode_per_row=spec.cost.decode_per_row,
            decode_per_context_token=spec.cost.decode_per_context_token,
            prefill_fixed=spec.cost.prefill_fixed,
            prefill_per_token=spec.cost.prefill_per_token,
        ),
        memory_bytes=spec.memory_bytes,
        kv_tokens_total=spec.kv_tokens_total,
        kv_tokens_free=spec.kv_tokens_free,
        releases=[pb.ReleaseMessage(at_seconds=one.at_seconds, tokens=one.tokens) for one in spec.releases],
        client_centroids=[_coordinate_to_message(one) for one in spec.client_centroids],
        concurrency=spec.concurrency,
        max_blocks=spec.max_blocks or 0,
        addresses=record.addresses,
        relays=[pb.RelayMessage(peer_id=one.peer_id, address=one.address) for one in record.relays],
        dht_maddrs=record.dht_maddrs,
        incarnation=record.incarnation,
        protocol_version=record.protocol_version,
        software_version=record.software_version,
        public_name=record.public_name,
        blocks_fixed=spec.blocks_fixed,
        issued_seconds=spec.issued_seconds,
    )
    if spec.coordinate is not None:
        message.coordinate.CopyFrom(_coordinate_to_message(spec.coordinate))
    if spec.claim is not None:
        message.claim.at_seconds = spec.claim.at_seconds
        message.claim.first_block = spec.claim.blocks.start
        message.claim.stop_block = spec.claim.blocks.stop
    return message.SerializeToString()


def decode_peer_record(peer_id: PeerId, payload: bytes) -> PeerRecord:
    """The record of `peer_id` in a payload that is not sealed. Raises RemoteProtocolError if any field is wrong."""
    try:
        message = pb.PeerRecordMessage.FromString(payload)
        hashes = message.block_hashes
        _check(len(hashes) % BLOCK_HASH_BYTES == 0, "block hashes have eight bytes each")
        spec = PeerSpec(
            id=peer_id,
            blocks=_decode_blocks(message.first_block, message.stop_block),
            cost=ComputeCost(
                message.cost.decode_fixed,
                message.cost.decode_per_row,
                message.cost.decode_per_context_token,
                message.cost.prefill_fixed,
                message.cost.prefill_per_token,
            ),
            state=_decode_state(message.state),
            memory_bytes=message.memory_bytes,
            kv_tokens_total=message.kv_tokens_total,
            kv_tokens_free=message.kv_tokens_free,
            releases=tuple(KvRelease(one.at_seconds, one.tokens) for one in message.releases),
            coordinate=_coordinate_from_message(message.coordinate) if message.HasField("coordinate") else None,
            client_centroids=tuple(_coordinate_from_message(one) for one in message.client_centroids),
            concurrency=message.concurrency,
            block_hashes=tuple(hashes[i : i + BLOCK_HASH_BYTES] for i in range(0, len(hashes), BLOCK_HASH_BYTES)),
            numeric_format=message.numeric_format,
            max_blocks=message.max_blocks or None,
            blocks_fixed=message.blocks_fixed,
            claim=_decode_claim(message.claim) if message.HasField("claim") else None,
            issued_seconds=message.issued_seconds,
        )
        return PeerRecord(
            model_digest=message.model_digest,
            spec=spec,
            addresses=tuple(message.addresses),
            relays=tuple(Relay(PeerId(one.peer_id), one.address) for one in message.relays),
            dht_maddrs=tuple(message.dht_maddrs),
            incarnation=message.incarnation,
            protocol_version=message.protocol_version,
            software_version=message.software_version,
            public_name=message.public_name,
        )
    except (DecodeError, ValueError) as error:
        raise RemoteProtocolError(f"peer {peer_id} announces a malformed record: {error}") from None


# --- signed and expiring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A payload under a DHT id, owned and signed by a peer. Its signature is checked by `verify_record` only."""

    key: bytes
    """20 bytes, `dht_id(name)`."""
    peer_id: PeerId
    payload: bytes
    expires_at_seconds: float
    """Unix time."""
    signature: bytes = field(repr=False)

    def signed_bytes(self) -> bytes:
        """What the signature covers: every other field, each of unmistakable length."""
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
        """Read the stored form. Raises RemoteProtocolError if it is too large, malformed or has more than one form."""
        if len(data) > MAX_RECORD_BYTES:
            raise RemoteProtocolError(f"a record has at most {MAX_RECORD_BYTES} bytes, not {len(data)}")
        try:
            message = pb.SignedRecordMessage.FromString(data)
        except DecodeError:
            raise RemoteProtocolError("a record is malformed") from None
        record = cls(
            message.key, PeerId(message.peer_id), message.payload, message.expires_at_seconds, message.signature
        )
        # One record has one form, so nobody can make "other" records by padding this one.
        if record.encode() != data or len(record.key) != KEY_BYTES or not math.isfinite(record.expires_at_seconds):
            raise RemoteProtocolError("a record is malformed")
        return record


class SignatureCache:
    """Remembers which records verified, up to `max_entries` (32 bytes each); the oldest are forgotten first."""

    def __init__(self, max_entries: int = 8192) -> None:
        self._max_entries = max_entries
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def check(self, record: SignedRecord) -> None:
        """Like `verify_signature`; a record that verified before costs a hash instead of a signature check."""
        digest = hashlib.sha256(record.signature + record.signed_bytes()).digest()
        if digest in self._digests:
            self._digests.move_to_end(digest)
            return
        verify_signature(record)
        self._digests[digest] = None
        if len(self._digests) > self._max_entries:
            self._digests.popitem(last=False)


def sign_record(identity: Identity, key: bytes, payload: bytes, expires_at_seconds: float) -> SignedRecord:
    """A record of `identity` under the DHT id `key` until `expires_at_seconds` (Unix time, see `next_expiry`).

    Raises LocalProtocolError if it is larger than anybody would store.
    """
    unsigned = SignedRecord(key, identity.peer_id, payload, expires_at_seconds, b"")
    record = SignedRecord(key, identity.peer_id, payload, expires_at_seconds, identity.sign(unsigned.signed_bytes()))
    if len(key) != KEY_BYTES or len(record.encode()) > MAX_RECORD_BYTES:
        raise LocalProtocolError(f"a record has a key of {KEY_BYTES} bytes and {MAX_RECORD_BYTES} bytes at most")
    return record


def verify_signature(record: SignedRecord) -> None:
    """Raises AuthenticationError if the record is not its owner's. Says nothing about time."""
    if len(record.signature) != SIGNATURE_BYTES:
        raise AuthenticationError("a record has a signature of 64 bytes")
    verify(record.peer_id, record.signature, record.signed_bytes())


def verify_record(
    record: SignedRecord,
    now: float,
    cache: SignatureCache | None = None,
) -> None:
    """Check that a decoded record is its owner's and neither over nor beyond its time; `now` in Unix seconds.

    Raises AuthenticationError for the signature, RemoteProtocolError for the times.
    """
    if record.expires_at_seconds <= now:
        raise RemoteProtocolError(f"the record of {record.peer_id} is over")
    if not within_lifetime(record, now):
        raise RemoteProtocolError(f"the record of {record.peer_id} claims to live too long")
    if cache is not None:
        cache.check(record)
    else:
        verify_signature(record)


def within_lifetime(record: SignedRecord, now: float) -> bool:
    """Whether the record ends soon enough that it may be stored."""
    return record.expires_at_seconds <= now + MAX_RECORD_LIFETIME_SECONDS + CLOCK_TOLERANCE_SECONDS


def next_expiry(previous: float | None, now: float, lifetime_seconds: float = RECORD_LIFETIME_SECONDS) -> float:
    """The end of a peer's next record: `lifetime_seconds` from now, and later than that of its previous one.

    The previous record may be one of an earlier run of the peer.  Raises ClockSkew if it is so far ahead that the clock
    must have been set back since.
    """
    expiry = now + lifetime_seconds
    if previous is not None:
        expiry = max(expiry, previous + 0.001)
    if expiry > now + MAX_RECORD_LIFETIME_SECONDS:
        raise ClockSkew(f"this peer's previous record ends {expiry - now:.0f} s from now: the clock was set back")
    return expiry


def newest_per_peer(records: Sequence[SignedRecord]) -> tuple[SignedRecord, ...]:
    """Of each owner the record that ends last, in ascending order of owner."""
    newest: dict[PeerId, SignedRecord] = {}
    for record in records:
        known = newest.get(record.peer_id)
        # Two records with one expiry are the owner's mistake; the signature decides, so that everybody picks the same.
        if known is None or _rank(record) > _rank(known):
            newest[record.peer_id] = record
    return tuple(newest[peer_id] for peer_id in sorted(newest))


def _rank(record: SignedRecord) -> tuple[float, bytes]:
    return record.expires_at_seconds, record.signature


# --- names and private swarms ----------------------------------------------------------------------------------------


class SwarmKey:
    """The secret that the members of a private swarm share; every use has its own subkey."""

    SECRET_BYTES = 32

    def __init__(self, secret: bytes) -> None:
        if len(secret) != self.SECRET_BYTES:
            raise ValueError(f"a swarm key has {self.SECRET_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self._proof_key = self.subkey(b"proof")
        self._name_key = self.subkey(b"name")
        self._seal = ChaCha20Poly1305(self.subkey(b"seal"))

    @classmethod
    def generate(cls) -> SwarmKey:
        return cls(os.urandom(cls.SECRET_BYTES))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SwarmKey:
        """Read a key file (base64 text, mode 0600). Raises UsageError if it is no such file."""
        text = read_secret_file(Path(path), max_bytes=1024)
        try:
            return cls(base64.b64decode(text.strip(), validate=True))
        except (binascii.Error, ValueError):
            raise UsageError(
                f"{path} is not a swarm key: it holds 32 bytes in base64",
                hint="Ask the owner of the private swarm for the key file.",
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a new key file. Raises UsageError if the file exists or cannot be written."""
        if not create_secret_file(Path(path), base64.b64encode(self._secret) + b"\n"):
            raise UsageError(f"{path} exists already", hint="Name a new file, or use the key that is there.")

    def subkey(self, purpose: bytes) -> bytes:
        """32 bytes for one purpose; knowing one subkey tells nothing about another."""
        return HKDF(SHA256(), length=32, salt=None, info=b"blockswarm-1 " + purpose).derive(self._secret)

    def proof(self, message: bytes) -> bytes:
        """32 bytes that only a holder of the key can make for `message`."""
        return hmac.digest(self._proof_key, message, "sha256")

    def check(self, message: bytes, proof: bytes) -> bool:
        """Whether `proof` is the proof for `message`."""
        return hmac.compare_digest(self.proof(message), proof)

    def name(self, public_name: str) -> str:
        """The name under which members look up what strangers would find under `public_name`."""
        return hmac.digest(self._name_key, public_name.encode(), "sha256").hex()

    def seal(self, payload: bytes, key: bytes, peer_id: PeerId) -> bytes:
        """`payload`, readable by members only and only under that key and owner; 28 bytes longer."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._seal.encrypt(nonce, payload, key + peer_id.encode())

    def open(self, sealed: bytes, key: bytes, peer_id: PeerId) -> bytes:
        """The payload in `sealed`. Raises WrongKey if it was not sealed with this key for that key and owner."""
        try:
            return self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], key + peer_id.encode())
        except (InvalidTag, ValueError):
            raise WrongKey(f"the record of {peer_id} is not sealed with this swarm's key") from None

    def __repr__(self) -> str:
        return "SwarmKey(...)"


def swarm_key_name(model_digest: str, swarm_key: SwarmKey | None) -> str:
    """The name under which the peers that serve a model are announced and looked up."""
    public_name = f"blockswarm/1/{model_digest}"
    return public_name if swarm_key is None else f"blockswarm/1/private/{swarm_key.name(public_name)}"


def dht_id(name: str) -> bytes:
    """The 20 bytes under which the DHT keeps `name` (hivemind: SHA-1 of the name in msgpack)."""
    return hashlib.sha1(msgpack.packb(name), usedforsecurity=False).digest()


def sign_peer_record(
    identity: Identity, record: PeerRecord, swarm_key: SwarmKey | None, expires_at_seconds: float
) -> SignedRecord:
    """The signed (and in a private swarm sealed) form of what this node announces about itself.

    Raises LocalProtocolError if it is not this node's or too large.
    """
    if record.spec.id != identity.peer_id:
        raise LocalProtocolError(f"a node announces itself, not {record.spec.id}")
    key = dht_id(swarm_key_name(record.model_digest, swarm_key))
    payload = encode_peer_record(record)
    if swarm_key is not None:
        payload = swarm_key.seal(payload, key, identity.peer_id)
    return sign_record(identity, key, payload, expires_at_seconds)


def open_peer_record(record: SignedRecord, swarm_key: SwarmKey | None) -> PeerRecord:
    """What a verified record says.

    Raises RemoteProtocolError if it is malformed or about another model, WrongKey if the swarm key does not open it.
    """
    payload = record.payload
    if swarm_key is not None:
        payload = swarm_key.open(payload, record.key, record.peer_id)
    opened = decode_peer_record(record.peer_id, payload)
    if dht_id(swarm_key_name(opened.model_digest, swarm_key)) != record.key:
        raise RemoteProtocolError(f"peer {record.peer_id} announces one model under the key of another")
    return opened


# --- checks ----------------------------------------------------------------------------------------------------------


def _check(condition: object, rule: str) -> None:
    if not condition:
        raise ValueError(rule)


def _check_count(what: str, values: Sequence[object], limit: int) -> None:
    _check(len(values) <= limit, f"there are at most {limit} {what}, not {len(values)}")


def _check_address(address: str) -> None:
    try:
        HostPort.parse(address)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _check_peer_id(peer_id: str) -> None:
    try:
        public_key_of(peer_id)
    except AuthenticationError as error:
        raise ValueError(str(error)) from None


def _check_coordinate(coordinate: Coordinate) -> None:
    _check(1 <= len(coordinate.vector) <= MAX_COORDINATE_DIMENSIONS, "a coordinate has 1 to 8 dimensions")
    _check(all(abs(value) <= 1e3 for value in coordinate.vector), "a coordinate is within 1000 s")
    _check(0 <= coordinate.height <= 1e3, "the height of a coordinate is within 0 and 1000 s")
    _check(0 <= coordinate.error <= 1, "the error of a coordinate is between 0 and 1")


def _check_spec(spec: PeerSpec) -> None:
    """Bounds that keep sums and products of announced numbers finite; comparisons are written so that NaN fails."""
    _check_peer_id(spec.id)
    for blocks in (spec.blocks, spec.claim.blocks if spec.claim else None):
        if blocks is not None:
            _check(blocks.stop <= 100_000, "block numbers are below 100000")
            _check(len(blocks) <= MAX_BLOCKS, f"a peer hosts at most {MAX_BLOCKS} blocks")
    _check(spec.claim is None or 0 <= spec.claim.at_seconds <= _MAX_UNIX_SECONDS, "a claim has a time")
    _check(0 <= spec.issued_seconds <= _MAX_UNIX_SECONDS, "a record has a time of issue")
    hosted = len(spec.blocks) if spec.blocks is not None else 0
    _check(len(spec.block_hashes) in (0, hosted), f"{len(spec.block_hashes)} block hashes for {hosted} blocks")
    _check(all(len(one) == BLOCK_HASH_BYTES for one in spec.block_hashes), "a block hash has eight bytes")
    _check(all(0 <= getattr(spec.cost, name) <= 1e6 for name in ComputeCost.__slots__), "costs are below 1e6 s")
    _check(0 <= spec.memory_bytes <= 1e18, "the memory is below 1e18 bytes")
    _check(0 <= spec.kv_tokens_free <= spec.kv_tokens_total <= _MAX_COUNT, "0 <= free <= total KV tokens")
    _check_count("releases", spec.releases, MAX_RELEASES)
    moments = [release.at_seconds for release in spec.releases]
    _check(all(0 <= moment <= _MAX_UNIX_SECONDS for moment in moments), "a release has a time")
    _check(moments == sorted(moments), "releases are in order of time")
    _check(all(0 <= release.tokens <= _MAX_COUNT for release in spec.releases), "a release frees tokens")
    if spec.coordinate is not None:
        _check_coordinate(spec.coordinate)
    _check_count("client centroids", spec.client_centroids, MAX_CENTROIDS)
    for centroid in spec.client_centroids:
        _check_coordinate(centroid)
    _check(0 <= spec.concurrency <= 1e6, "the concurrency is between 0 and 1e6")
    _check(spec.max_blocks is None or 0 < spec.max_blocks < 2**32, "the limit on blocks is positive")
    _check(_TOKEN.fullmatch(spec.numeric_format), "the numeric format has 1 to 32 plain characters")


def _decode_blocks(first_block: int, stop_block: int) -> BlockRange | None:
    return None if first_block == stop_block else BlockRange(first_block, stop_block)


def _decode_claim(message: pb.ClaimMessage) -> MoveClaim:
    return MoveClaim(message.at_seconds, BlockRange(message.first_block, message.stop_block))


def _decode_state(number: int) -> PeerState:
    state = _STATES_BY_NUMBER.get(number)  # type: ignore[call-overload]
    _check(state is not None, "the state is unknown")
    return state  # type: ignore[no-any-return]


def _coordinate_to_message(coordinate: Coordinate) -> pb.CoordinateMessage:
    return pb.CoordinateMessage(vector=coordinate.vector, height=coordinate.height, error=coordinate.error)


def _coordinate_from_message(message: pb.CoordinateMessage) -> Coordinate:
    return Coordinate(tuple(message.vector), message.height, message.error)
