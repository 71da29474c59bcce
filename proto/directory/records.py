"""A peer's announcement of itself: a record, checked field by field here and nowhere else.

A record travels as the payload of a `SignedRecord` (`signed.py`), in a private swarm sealed under its key
(`swarm_key.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from ...routing.releases import MAX_RELEASES
from ...routing.swarm import BlockRange, ComputeCost, Coordinate, KvRelease, MoveClaim, PeerId, PeerSpec, PeerState
from .. import record_pb2 as pb
from ..errors import AuthenticationError, LocalProtocolError, RemoteProtocolError, UsageError
from ..identity import Identity, public_key_of
from ..network.address import HostPort
from ..wire.precision import STREAM_FORMATS
from .signed import SignedRecord, sign_record
from .swarm_key import SwarmKey, dht_id, swarm_key_name

MAX_BLOCKS = 152
"""Most blocks of one peer: with the hashes of more the record would be too large."""
MAX_CENTROIDS = 4
MAX_ADDRESSES = 8
MAX_RELAYS = 2
MAX_RELAY_PLACES = 1024
MAX_COORDINATE_DIMENSIONS = 8
MAX_REACH_BYTES = 320
"""Most bytes of all addresses of a record together."""
MAX_PUBLIC_NAME_CHARS = 64
MAX_PUBLIC_NAME_BYTES = 96
"""Length of its UTF-8 form."""
MAX_DEVICE_CLASS_CHARS = 48
MAX_TOKENS_SERVED = 2**53 - 1
"""The largest integer that every JSON reader represents exactly."""
MAX_KV_TOKEN_BLOCKS = 2**42
"""Most KV tokens x blocks of one peer."""
BLOCK_HASH_BYTES = 8

_MAX_UNIX_TIME = 1e12
_MADDR = re.compile(r"(/[A-Za-z0-9._:-]+){2,}")
_TOKEN = re.compile(r"[A-Za-z0-9._+-]{1,32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DEVICE_CLASS = re.compile(rf"[A-Za-z0-9][A-Za-z0-9 ,.()/+_-]{{0,{MAX_DEVICE_CLASS_CHARS - 1}}}")


# --- what is announced -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer's announcement under the digest of its model: what it is (`spec`) and how it is reached.

    In a record the times of `spec.releases` are Unix time. Raises ValueError if a field is outside its bounds.
    """

    model_digest: str
    """SHA-256 of the model, 64 hexadecimal digits."""
    spec: PeerSpec
    addresses: tuple[str, ...] = ()
    """host:port of the data plane, best first."""
    relays: tuple[PeerId, ...] = ()
    """Public peers through which the owner is reached, nearest first; their addresses are in their own records."""
    dht_maddrs: tuple[str, ...] = ()
    """Multiaddresses at which the DHT can be joined through this peer, without its id."""
    incarnation: int = 0
    """Larger at every start of the peer; sessions end with their incarnation."""
    protocol_version: int = 0
    software_version: str = "0"
    public_name: str = ""
    relay_places: int = 0
    """The number of peers without an open port that the owner would still relay for."""
    device_class: str = ""
    """The kind of device that computes, for people: no decision depends on it. Empty: not stated."""
    tokens_served: int | None = None
    """Tokens computed for sessions since the peer's start, by its own count; also for people. None: not stated."""

    def __post_init__(self) -> None:
        _check(_DIGEST.fullmatch(self.model_digest), "the model digest is 64 hexadecimal digits")
        _check_spec(self.spec)
        _check_count("addresses", self.addresses, MAX_ADDRESSES)
        for address in self.addresses:
            _check_address(address)
        _check_count("relays", self.relays, MAX_RELAYS)
        for relay in self.relays:
            _check_peer_id(relay)
            _check(relay != self.spec.id, "a peer is not reached through itself")
        _check(0 <= self.relay_places <= MAX_RELAY_PLACES, f"a peer relays for at most {MAX_RELAY_PLACES} others")
        _check_count("DHT addresses", self.dht_maddrs, MAX_ADDRESSES)
        for maddr in self.dht_maddrs:
            _check(len(maddr) <= 256 and _MADDR.fullmatch(maddr), "a DHT address is a multiaddress")
        where = (*self.addresses, *self.dht_maddrs)
        _check(sum(map(len, where)) <= MAX_REACH_BYTES, f"all addresses together have at most {MAX_REACH_BYTES} bytes")
        _check(0 <= self.incarnation < 2**64, "the incarnation is an unsigned 64-bit number")
        _check(0 <= self.protocol_version < 2**32, "the protocol version is an unsigned 32-bit number")
        _check(_TOKEN.fullmatch(self.software_version), "the software version has 1 to 32 plain characters")
        check_public_name(self.public_name)
        _check(
            not self.device_class or _DEVICE_CLASS.fullmatch(self.device_class),
            f"a class of devices has at most {MAX_DEVICE_CLASS_CHARS} letters, digits, spaces and signs ,.()/+_-",
        )
        served = self.tokens_served
        _check(served is None or 0 <= served <= MAX_TOKENS_SERVED, f"at most {MAX_TOKENS_SERVED} tokens are counted")


def in_single_precision(coordinate: Coordinate) -> Coordinate:
    """A coordinate as in a record: its numbers have 24 bits, far more precise than any measured round trip."""
    return _coordinate_from_message(_coordinate_to_message(coordinate))


_STATES = {
    PeerState.JOINING: pb.STATE_JOINING,
    PeerState.SERVING: pb.STATE_SERVING,
    PeerState.DRAINING: pb.STATE_DRAINING,
    PeerState.LEAVING: pb.STATE_LEAVING,
}
_STATES_BY_NUMBER = {number: state for state, number in _STATES.items()}


def encode_peer_record(record: PeerRecord) -> bytes:
    """The unsealed payload of a record."""
    spec = record.spec
    message = pb.PeerRecordMessage(
        model_digest=bytes.fromhex(record.model_digest),
        state=_STATES[spec.state],
        first_block=spec.blocks.start if spec.blocks else 0,
        stop_block=spec.blocks.stop if spec.blocks else 0,
        block_hashes=b"".join(spec.block_hashes),
        numeric_format=spec.numeric_format,
        stream_format=spec.stream_format,
        cost=pb.CostMessage(
            decode_fixed=spec.cost.decode_fixed,
            decode_per_row=spec.cost.decode_per_row,
            decode_per_context_token=spec.cost.decode_per_context_token,
            prefill_fixed=spec.cost.prefill_fixed,
            prefill_per_token=spec.cost.prefill_per_token,
            visit=spec.cost.visit,
        ),
        memory_bytes=spec.memory_bytes,
        kv_tokens_total=spec.kv_tokens_total,
        kv_tokens_free=spec.kv_tokens_free,
        release_seconds=[release.at_seconds for release in spec.releases],
        release_tokens=[release.tokens for release in spec.releases],
        client_centroids=[_coordinate_to_message(centroid) for centroid in spec.client_centroids],
        concurrency=spec.concurrency,
        max_blocks=spec.max_blocks or 0,
        addresses=record.addresses,
        relays=record.relays,
        relay_places=record.relay_places,
        dht_maddrs=record.dht_maddrs,
        incarnation=record.incarnation,
        protocol_version=record.protocol_version,
        software_version=record.software_version,
        public_name=record.public_name,
        blocks_fixed=spec.blocks_fixed,
        issued_seconds=spec.issued_seconds,
        block_bytes=spec.block_bytes,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        load_seconds=spec.load_seconds,
        size_fixed=spec.size_fixed,
        device_class=record.device_class,
        tokens_served=record.tokens_served,
    )
    if spec.coordinate is not None:
        message.coordinate.CopyFrom(_coordinate_to_message(spec.coordinate))
    if spec.claim is not None:
        message.claim.at_seconds = spec.claim.at_seconds
        message.claim.first_block = spec.claim.blocks.start
        message.claim.stop_block = spec.claim.blocks.stop
    return message.SerializeToString()


def decode_peer_record(peer_id: PeerId, payload: bytes) -> PeerRecord:
    """The record of `peer_id` in an unsealed payload. Raises RemoteProtocolError if any field is wrong."""
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
                message.cost.visit,
            ),
            state=_decode_state(message.state),
            memory_bytes=message.memory_bytes,
            block_bytes=message.block_bytes,
            kv_bytes_per_token=message.kv_bytes_per_token,
            load_seconds=message.load_seconds,
            size_fixed=message.size_fixed,
            kv_tokens_total=message.kv_tokens_total,
            kv_tokens_free=message.kv_tokens_free,
            releases=_decode_releases(message.release_seconds, message.release_tokens),
            coordinate=_coordinate_from_message(message.coordinate) if message.HasField("coordinate") else None,
            client_centroids=tuple(_coordinate_from_message(centroid) for centroid in message.client_centroids),
            concurrency=message.concurrency,
            block_hashes=tuple(hashes[i : i + BLOCK_HASH_BYTES] for i in range(0, len(hashes), BLOCK_HASH_BYTES)),
            numeric_format=message.numeric_format,
            stream_format=message.stream_format or "float32",
            max_blocks=message.max_blocks or None,
            blocks_fixed=message.blocks_fixed,
            claim=_decode_claim(message.claim) if message.HasField("claim") else None,
            issued_seconds=message.issued_seconds,
        )
        return PeerRecord(
            model_digest=message.model_digest.hex(),
            spec=spec,
            addresses=tuple(message.addresses),
            relays=tuple(map(PeerId, message.relays)),
            relay_places=message.relay_places,
            dht_maddrs=tuple(message.dht_maddrs),
            incarnation=message.incarnation,
            protocol_version=message.protocol_version,
            software_version=message.software_version,
            public_name=message.public_name,
            device_class=message.device_class,
            tokens_served=message.tokens_served if message.HasField("tokens_served") else None,
        )
    except (DecodeError, ValueError) as error:
        raise RemoteProtocolError(f"peer {peer_id} announces a malformed record: {error}") from None


# --- signed and sealed -----------------------------------------------------------------------------------------------


def sign_peer_record(
    identity: Identity, record: PeerRecord, swarm_key: SwarmKey | None, expires_at_seconds: float
) -> SignedRecord:
    """The signed (and in a private swarm sealed) form of this node's announcement of itself.

    Raises LocalProtocolError if the record is of another node or too large.
    """
    if record.spec.id != identity.peer_id:
        raise LocalProtocolError(f"a node announces itself, not {record.spec.id}")
    key = dht_id(swarm_key_name(record.model_digest, swarm_key))
    payload = encode_peer_record(record)
    if swarm_key is not None:
        payload = swarm_key.seal(payload, key, identity.peer_id)
    return sign_record(identity, key, payload, expires_at_seconds)


def open_peer_record(record: SignedRecord, swarm_key: SwarmKey | None) -> PeerRecord:
    """Read the announcement in a verified record.

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
    _check(spec.claim is None or 0 <= spec.claim.at_seconds <= _MAX_UNIX_TIME, "a claim has a time")
    _check(0 <= spec.issued_seconds <= _MAX_UNIX_TIME, "a record has a time of issue")
    hosted = len(spec.blocks) if spec.blocks is not None else 0
    loading = spec.state in (PeerState.JOINING, PeerState.LEAVING)  # a peer may leave before its blocks are there
    hashes = len(spec.block_hashes)
    _check(hashes == hosted or (loading and not hashes), f"{hashes} block hashes for {hosted} blocks")
    _check(all(len(block_hash) == BLOCK_HASH_BYTES for block_hash in spec.block_hashes), "a block hash has eight bytes")
    _check(all(0 <= getattr(spec.cost, name) <= 1e6 for name in ComputeCost.__slots__), "costs are below 1e6 s")
    _check(0 <= spec.memory_bytes <= 1e18, "the memory is below 1e18 bytes")
    sizes = (spec.block_bytes, spec.kv_bytes_per_token)
    _check(all(size == 0 or 1 <= size <= 1e15 for size in sizes), "a block and a token's cache have 1 to 1e15 bytes")
    _check(0 <= spec.load_seconds <= 1e6, "a block is loaded within 1e6 s")
    _check(0 <= spec.kv_tokens_free <= spec.kv_tokens_total <= MAX_KV_TOKEN_BLOCKS, "0 <= free <= total KV tokens")
    _check_count("releases", spec.releases, MAX_RELEASES)
    moments = [release.at_seconds for release in spec.releases]
    _check(all(0 <= moment <= _MAX_UNIX_TIME for moment in moments), "a release has a time")
    _check(moments == sorted(moments), "releases are in order of time")
    _check(all(0 <= release.tokens <= MAX_KV_TOKEN_BLOCKS for release in spec.releases), "a release frees tokens")
    if spec.coordinate is not None:
        _check_coordinate(spec.coordinate)
    _check_count("client centroids", spec.client_centroids, MAX_CENTROIDS)
    for centroid in spec.client_centroids:
        _check_coordinate(centroid)
    _check(0 <= spec.concurrency <= 1e6, "the concurrency is between 0 and 1e6")
    _check(spec.max_blocks is None or 0 < spec.max_blocks < 2**32, "the limit on blocks is positive")
    _check(_TOKEN.fullmatch(spec.numeric_format), "the numeric format has 1 to 32 plain characters")
    _check(spec.stream_format in STREAM_FORMATS, f"the stream has one of the formats {', '.join(STREAM_FORMATS)}")


def check_public_name(name: str) -> None:
    """Raises ValueError."""
    fits = len(name) <= MAX_PUBLIC_NAME_CHARS and len(name.encode(errors="replace")) <= MAX_PUBLIC_NAME_BYTES
    _check(
        fits and (not name or name.isprintable()),
        f"a name has at most {MAX_PUBLIC_NAME_CHARS} printable characters and {MAX_PUBLIC_NAME_BYTES} bytes",
    )


def _decode_releases(moments: Sequence[float], tokens: Sequence[int]) -> tuple[KvRelease, ...]:
    _check(len(moments) == len(tokens), "every release has a time and a number of tokens")
    return tuple(KvRelease(at_seconds, count) for at_seconds, count in zip(moments, tokens, strict=True))


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
