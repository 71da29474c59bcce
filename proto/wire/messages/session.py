"""The other frames of an open session: changes of the chain, probes and failures, and moving an attention cache."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from ... import swarm_pb2 as pb
from ...errors import RemoteProtocolError, SwarmError, from_wire, to_wire
from .codec import Codec, by_name
from .opening import SIGNED, PackedDigests, Signed, pack_prefixes, unpack_prefixes


@dataclass(frozen=True, slots=True)
class RerouteFrame:
    """The chain has changed: new neighbours, higher epoch. Steps of older epochs are dropped from now on."""

    capability: Signed
    successor_record: bytes = b""
    relay: bool = False
    forget_prefixes: bool = False
    """Keep none of the prefixes that were named at the opening, because the rows no longer match their names."""


@dataclass(frozen=True, slots=True)
class ReroutedFrame:
    """The peer has its new neighbours."""

    epoch: int
    applied_seq: int
    buffer_complete: bool
    """The replay buffer holds every position."""


@dataclass(frozen=True, slots=True)
class ProbeFrame:
    """Asks for the state of the session."""

    nonce: int


@dataclass(frozen=True, slots=True)
class StatusFrame:
    """The state of the session."""

    nonce: int
    epoch: int
    received_seq: int
    applied_seq: int


@dataclass(frozen=True, slots=True)
class FailureFrame:
    """An error of `proto/errors.py`, as a number and a text."""

    code: int
    message: str
    epoch: int = 0
    seq: int = 0

    @classmethod
    def of(cls, error: SwarmError, epoch: int = 0, seq: int = 0) -> FailureFrame:
        return cls(*to_wire(error), epoch, seq)

    @property
    def error(self) -> SwarmError:
        """The error, as seen from this side."""
        return from_wire(self.code, self.message)


@dataclass(frozen=True, slots=True)
class KvExportFrame:
    """A request for a part of the session's attention cache, as it is between two steps."""

    timeout_seconds: float
    round: int
    """Returned with the part."""
    starts: tuple[int, ...]
    """Per row from row 0 on, the number of first tokens to leave out; 0 for rows that are not named."""
    max_tokens: int
    """The most tokens to send, all rows together; the peer may send fewer."""


@dataclass(frozen=True, slots=True)
class KvStateFrame:
    """The beginning of a part of an attention cache, sent on request or to a peer that takes the session over."""

    round: int
    applied_seq: int
    starts: tuple[int, ...]
    """Per row, the position where the part begins..."""
    lengths: tuple[int, ...]
    """...and where it ends; there are no other rows."""
    total_bytes: int
    """The size of the safetensors data, over this frame and the chunks that follow."""
    data: bytes
    timeout_seconds: float = 0.0
    """Time left for the transfer when the cache is given to a peer."""


@dataclass(frozen=True, slots=True)
class RememberFrame:
    """A request to keep the attention cache of these prefixes of rows for later sessions of the same client."""

    prefixes: tuple[PackedDigests, ...]


@dataclass(frozen=True, slots=True)
class CloseFrame:
    """The session is over."""


def _unpack_kv_export(message: pb.KvExport) -> KvExportFrame:
    if message.max_tokens < 1:
        raise RemoteProtocolError("an export of no tokens")
    return _KV_EXPORT.unpack(message)


def _unpack_kv_state(message: pb.KvState) -> KvStateFrame:
    state = _KV_STATE.unpack(message)
    if len(state.starts) != len(state.lengths) or any(map(operator.gt, state.starts, state.lengths)):
        raise RemoteProtocolError("a part of an attention cache has rows that end before they begin")
    return state


def _unpack_kv_import(message: pb.KvState) -> KvStateFrame:
    if not message.timeout_seconds > 0:
        raise RemoteProtocolError("the transfer of an attention cache has an impossible deadline")
    return KV_STATE.unpack(message)


REROUTE = by_name(pb.Reroute, RerouteFrame, capability=SIGNED)
REROUTED = by_name(pb.Rerouted, ReroutedFrame)
PROBE = by_name(pb.Probe, ProbeFrame)
STATUS = by_name(pb.Status, StatusFrame)
FAILURE = by_name(pb.Failure, FailureFrame)
_KV_EXPORT = by_name(pb.KvExport, KvExportFrame)
KV_EXPORT = Codec(pb.KvExport, _KV_EXPORT.pack, _unpack_kv_export)
_KV_STATE = by_name(pb.KvState, KvStateFrame)
KV_STATE = Codec(pb.KvState, _KV_STATE.pack, _unpack_kv_state)
KV_IMPORT = Codec(pb.KvState, KV_STATE.pack, _unpack_kv_import)
REMEMBER = Codec(
    pb.Remember,
    lambda wish: pb.Remember(prefixes=pack_prefixes(wish.prefixes)),
    lambda message: RememberFrame(unpack_prefixes(message.prefixes)),
)
CLOSE = by_name(pb.Close, CloseFrame)
