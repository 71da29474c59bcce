"""The first frames of a stream: who opens it and with which rights, and the peer's answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ....routing.swarm import Coordinate
from ... import swarm_pb2 as pb
from ...errors import RemoteProtocolError
from ..prefixes import DIGEST_BYTES
from .codec import Codec, by_name
from .limits import MAX_PREFIX_BYTES

PLACE_NUMBERS = 4
PackedDigests = bytes
"""The names of the pages of one row, one behind the other."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A node's signature over domain tag + payload; `handshake.py` defines the payloads and checks the signature."""

    payload: bytes = b""
    signer: str = ""
    """The id of the node, which contains its public key."""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class OpenFrame:
    """The first frame of a client's session with a peer."""

    hello: Signed
    capability: Signed
    successor_record: bytes = b""
    relay: bool = False
    """Outputs go back through the client instead of to the successor."""
    wait_seconds: float = 0.0
    """Longest wait for room, seconds; 0: the session is refused if there is none."""
    prefixes: tuple[PackedDigests, ...] = ()
    """Per row from row 0 on."""
    place: Coordinate | None = None
    """The client's rough position in the network, so that peers can place themselves near clients."""


@dataclass(frozen=True, slots=True)
class OpenedFrame:
    """The session has its room."""

    credits: int
    """Steps that may be in flight."""
    epoch: int
    held_tokens: tuple[int, ...] = ()
    """For each prefix that was named, the number of first tokens whose attention cache the peer holds."""


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """The session waits for room."""

    place: int
    """Place in the queue; 1 is the next one."""
    estimate_seconds: float


@dataclass(frozen=True, slots=True)
class PushOpenFrame:
    """The first frame of a predecessor's stream."""

    hello: Signed


@dataclass(frozen=True, slots=True)
class PushReadyFrame:
    """The peer accepts the predecessor's steps."""


SIGNED = by_name(pb.Signed, Signed)
OPENED = by_name(pb.Opened, OpenedFrame)
QUEUED = by_name(pb.Queued, QueuedFrame)
PUSH_OPEN = by_name(pb.PushOpen, PushOpenFrame, hello=SIGNED)


def pack_prefixes(prefixes: Iterable[PackedDigests]) -> list[pb.Prefix]:
    return [pb.Prefix(digests=digests) for digests in prefixes]


def unpack_prefixes(messages: Iterable[pb.Prefix]) -> tuple[PackedDigests, ...]:
    """Raises RemoteProtocolError for an incomplete digest, and for more names than a session may have."""
    prefixes = tuple(message.digests for message in messages)
    if any(len(digests) % DIGEST_BYTES for digests in prefixes):
        raise RemoteProtocolError(f"a digest of a page has {DIGEST_BYTES} bytes")
    if sum(map(len, prefixes)) > MAX_PREFIX_BYTES:
        raise RemoteProtocolError(f"the pages of a session have at most {MAX_PREFIX_BYTES} bytes of names")
    return prefixes


def _pack_open(opening: OpenFrame) -> pb.Open:
    return pb.Open(
        hello=SIGNED.pack(opening.hello),
        capability=SIGNED.pack(opening.capability),
        successor_record=opening.successor_record,
        relay=opening.relay,
        wait=opening.wait_seconds > 0,
        wait_seconds=opening.wait_seconds,
        prefixes=pack_prefixes(opening.prefixes),
        place=pack_place(opening.place),
    )


def _unpack_open(message: pb.Open) -> OpenFrame:
    if message.wait and not message.wait_seconds > 0:
        raise RemoteProtocolError("a session that waits must give a longest wait")
    return OpenFrame(
        hello=SIGNED.unpack(message.hello),
        capability=SIGNED.unpack(message.capability),
        successor_record=message.successor_record,
        relay=message.relay,
        wait_seconds=message.wait_seconds if message.wait else 0.0,
        prefixes=unpack_prefixes(message.prefixes),
        place=unpack_place(message.place),
    )


def pack_place(place: Coordinate | None) -> tuple[float, ...]:
    """The numbers of a coordinate on the wire."""
    return (*place.vector, place.height) if place is not None else ()


def unpack_place(numbers: Sequence[float]) -> Coordinate | None:
    """The coordinate with these numbers; None: not known. Raises RemoteProtocolError."""
    if not numbers:
        return None
    if len(numbers) != PLACE_NUMBERS or not numbers[-1] >= 0:
        raise RemoteProtocolError("the place of a client has three axes and a height")
    return Coordinate(tuple(numbers[:-1]), numbers[-1])


OPEN = Codec(pb.Open, _pack_open, _unpack_open)
