"""Identity and rights in a session: the signed hello and the capability, checked once at the edge.

* A *hello* proves that the sender of a stream owns its id. It names the receiver, so it cannot be replayed to another
  peer, and carries a time and a nonce, so it cannot be replayed to the same one.
* A *capability* is signed by the client: session, epoch, block range, KV tokens to reserve, and the predecessor and
  successor on the chain. A peer accepts pushes only from that predecessor and dials only that successor.

In a private swarm the hello also proves the swarm key, unless the sender's id is on the peer's list.
"""

from __future__ import annotations

import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from ...routing.swarm import BlockRange, PeerId
from .. import swarm_pb2 as pb
from ..errors import (
    AuthenticationError,
    ClockSkew,
    ModelMismatch,
    RemoteProtocolError,
    WrongKey,
    WrongSwarm,
    describe_clocks,
)
from ..identity import Identity, public_key_of, verify
from .messages.codec import parse
from .messages.opening import Signed
from .precision import WIRE_FORMATS
from .timing import HELLO_CLOCK_SKEW_SECONDS, MAX_CAPABILITY_SECONDS

PROTOCOL_VERSION = 4
SESSION_ID_BYTES = 16
NONCE_BYTES = 16
MAX_SESSION_KV_TOKENS = 1 << 32
"""KV tokens that a session may reserve at one peer, all rows together."""

_HELLO_TAG = b"blockswarm-hello-1\0"
_CAPABILITY_TAG = b"blockswarm-capability-1\0"


class SwarmKeyProof(Protocol):
    """The part of a swarm key that a handshake needs."""

    def proof(self, message: bytes) -> bytes: ...
    def check(self, message: bytes, proof: bytes) -> bool: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """A capability with a valid signature: what `client` allows `peer` to do."""

    session_id: bytes
    epoch: int
    client: PeerId
    peer: PeerId
    blocks: BlockRange
    kv_tokens: int
    max_rows: int
    predecessor: PeerId | None
    """None: the steps come from the client."""
    successor: PeerId | None
    """None: the outputs go to the client."""
    wire_format: str
    """The format of the outputs, for the whole session."""
    input_format: str
    """The format of the incoming steps in this epoch."""
    expires_at_seconds: float
    model_digest: str
    prompt_tokens: int = 0
    """The part of `kv_tokens` that is the prompt; the rest is decoded. 0: not stated."""

    @property
    def key(self) -> bytes:
        """The session's name at every peer, 16 bytes, derived from the client and the session's id.

        Peers of the chain know the id: with the id alone, one of them could take the session's place elsewhere.
        """
        return blake2b(self.client.encode() + self.session_id, digest_size=SESSION_ID_BYTES).digest()


def sign_hello(
    identity: Identity, receiver: PeerId, session_id: bytes, now: float, swarm_key: SwarmKeyProof | None
) -> Signed:
    """A hello from `identity` to `receiver`; `now` in Unix seconds. A predecessor gives `Grant.key` as `session_id`."""
    hello = pb.Hello(
        peer_id=receiver,
        session_id=session_id,
        issued_at=now,
        nonce=os.urandom(NONCE_BYTES),
        protocol=PROTOCOL_VERSION,
    )
    if swarm_key is not None:
        hello.swarm_proof = swarm_key.proof(hello.SerializeToString(deterministic=True))
    payload = hello.SerializeToString()
    return Signed(payload=payload, signer=identity.peer_id, signature=identity.sign(_HELLO_TAG + payload))


class HelloChecker:
    """Checks the hellos to one node, and remembers their nonces for as long as they could be replayed."""

    def __init__(
        self,
        me: PeerId,
        clock: Callable[[], float],
        swarm_key: SwarmKeyProof | None,
        allowed: Container[str] = (),
        max_nonces: int = 100_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives Unix seconds; nonces age by `monotonic`, a clock that cannot be set."""
        self._me = me
        self._clock = clock
        self._monotonic = monotonic
        self._swarm_key = swarm_key
        self._allowed = allowed
        self._max_nonces = max_nonces
        self._nonces: OrderedDict[bytes, float] = OrderedDict()

    @property
    def remembered_nonces(self) -> int:
        """Number of remembered nonces, 16 bytes each."""
        return len(self._nonces)

    def check(self, signed: Signed) -> tuple[PeerId, bytes]:
        """The sender's id and the session id of a valid hello.

        Raises AuthenticationError, WrongKey, ClockSkew, WrongSwarm or RemoteProtocolError.
        """
        verify(signed.signer, signed.signature, _HELLO_TAG + signed.payload)
        hello = parse(pb.Hello, signed.payload)
        check_protocol(hello.protocol)
        if hello.peer_id != self._me:
            raise AuthenticationError("the hello is meant for another peer")
        _check_length("session id", hello.session_id, SESSION_ID_BYTES)
        _check_length("nonce", hello.nonce, NONCE_BYTES)
        now = self._clock()
        if not abs(hello.issued_at - now) <= HELLO_CLOCK_SKEW_SECONDS:
            raise ClockSkew(describe_clocks("the caller's clock", "the peer's", hello.issued_at - now))
        self._check_swarm_key(signed.signer, hello)
        self._remember(hello.nonce, self._monotonic())
        return PeerId(signed.signer), hello.session_id

    def _check_swarm_key(self, signer: str, hello: pb.Hello) -> None:
        if self._swarm_key is None or signer in self._allowed:
            return
        proof = hello.swarm_proof
        hello.ClearField("swarm_proof")
        if not self._swarm_key.check(hello.SerializeToString(deterministic=True), proof):
            raise WrongKey("this swarm is private, and the key shown is missing or not its key")

    def _remember(self, nonce: bytes, now: float) -> None:
        while self._nonces:
            oldest, seen_at = next(iter(self._nonces.items()))
            if now - seen_at <= 2 * HELLO_CLOCK_SKEW_SECONDS and len(self._nonces) < self._max_nonces:
                break
            del self._nonces[oldest]
        if nonce in self._nonces:
            raise AuthenticationError("the hello was used before")
        self._nonces[nonce] = now


def check_protocol(version: int) -> None:
    """Raise WrongSwarm if the other side speaks another protocol version."""
    if version != PROTOCOL_VERSION:
        raise WrongSwarm(
            f"this side speaks protocol {PROTOCOL_VERSION} and the other {version}: update the older program"
        )


def check_protocol_of(signed: Signed) -> None:
    """Check the version in a hello whose signature does not matter. Raises WrongSwarm, RemoteProtocolError."""
    check_protocol(parse(pb.Hello, signed.payload).protocol)


def sign_capability(identity: Identity, grant: Grant) -> Signed:
    """The signed capability for `grant`; `identity` is the client's."""
    payload = pb.Capability(
        session_id=grant.session_id,
        epoch=grant.epoch,
        peer_id=grant.peer,
        first_block=grant.blocks.start,
        stop_block=grant.blocks.stop,
        kv_tokens=grant.kv_tokens,
        max_rows=grant.max_rows,
        predecessor=grant.predecessor or "",
        successor=grant.successor or "",
        wire_format=grant.wire_format,
        input_format=grant.input_format,
        expires_at=grant.expires_at_seconds,
        model_digest=grant.model_digest,
        prompt_tokens=grant.prompt_tokens,
    ).SerializeToString()
    return Signed(payload=payload, signer=identity.peer_id, signature=identity.sign(_CAPABILITY_TAG + payload))


def check_capability(
    signed: Signed, *, client: PeerId, session_id: bytes, me: PeerId, model_digest: str, max_rows: int, now: float
) -> Grant:
    """Check a capability for a session that `client` opened with its hello; returns its grant.

    Raises AuthenticationError, ModelMismatch or RemoteProtocolError.
    """
    if signed.signer != client:
        raise AuthenticationError("the capability is not signed by the client of the session")
    verify(signed.signer, signed.signature, _CAPABILITY_TAG + signed.payload)
    capability = parse(pb.Capability, signed.payload)
    if capability.peer_id != me or capability.session_id != session_id:
        raise AuthenticationError("the capability is for another peer or session")
    if capability.model_digest != model_digest:
        raise ModelMismatch("the peer serves another model, or other weights under the same name")
    expires_at = capability.expires_at
    if not (math.isfinite(expires_at) and now < expires_at <= now + MAX_CAPABILITY_SECONDS):
        raise AuthenticationError("the capability has expired or lasts too long")
    if not 1 <= capability.kv_tokens <= MAX_SESSION_KV_TOKENS:
        raise RemoteProtocolError(f"a session reserves between 1 and {MAX_SESSION_KV_TOKENS} KV tokens")
    if capability.prompt_tokens > capability.kv_tokens:
        raise RemoteProtocolError("the prompt of a session is longer than what it reserves")
    if not 1 <= capability.max_rows <= max_rows:
        raise RemoteProtocolError(f"a session has between 1 and {max_rows} rows")
    return Grant(
        session_id=capability.session_id,
        epoch=capability.epoch,
        client=client,
        peer=me,
        blocks=_range_of(capability),
        kv_tokens=capability.kv_tokens,
        max_rows=capability.max_rows,
        predecessor=_neighbour(capability.predecessor),
        successor=_neighbour(capability.successor),
        wire_format=_format_in(capability.wire_format),
        input_format=_format_in(capability.input_format),
        expires_at_seconds=expires_at,
        model_digest=capability.model_digest,
        prompt_tokens=capability.prompt_tokens,
    )


def _range_of(capability: pb.Capability) -> BlockRange:
    try:
        return BlockRange(capability.first_block, capability.stop_block)
    except ValueError as error:
        raise RemoteProtocolError(str(error)) from None


def _neighbour(peer_id: str) -> PeerId | None:
    if not peer_id:
        return None
    public_key_of(peer_id)
    return PeerId(peer_id)


def _format_in(name: str) -> str:
    if name not in WIRE_FORMATS:
        raise RemoteProtocolError(f"wire format {name!r} is not known")
    return name


def _check_length(name: str, value: bytes, length: int) -> None:
    if len(value) != length:
        raise RemoteProtocolError(f"a {name} has {length} bytes, not {len(value)}")
