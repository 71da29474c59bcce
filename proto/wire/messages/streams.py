"""The frames of the two streams, in each direction: which are allowed, and their codec."""

from __future__ import annotations

from dataclasses import dataclass

from ... import swarm_pb2 as pb
from ..frames import ChunkFrame, StepFrame
from .codec import Codec, flag, union
from .opening import OPEN, OPENED, PUSH_OPEN, QUEUED, OpenedFrame, OpenFrame, PushOpenFrame, PushReadyFrame, QueuedFrame
from .session import (
    CLOSE,
    FAILURE,
    KV_EXPORT,
    KV_IMPORT,
    KV_STATE,
    PROBE,
    REMEMBER,
    REROUTE,
    REROUTED,
    STATUS,
    CloseFrame,
    FailureFrame,
    KvExportFrame,
    KvStateFrame,
    ProbeFrame,
    RememberFrame,
    ReroutedFrame,
    RerouteFrame,
    StatusFrame,
)
from .steps import CHUNK, REBUILT, REPLAY, STEP, RebuiltFrame, ReplayFrame


@dataclass(frozen=True, slots=True)
class UnknownFrame:
    """A frame of a kind that this version does not know; a client ignores it."""


ClientFrame = (
    OpenFrame | StepFrame | ChunkFrame | RerouteFrame | ReplayFrame | ProbeFrame | KvExportFrame | KvStateFrame
    | CloseFrame | RememberFrame
)  # fmt: skip
PeerFrame = (
    OpenedFrame | StepFrame | ChunkFrame | ReroutedFrame | RebuiltFrame | StatusFrame | FailureFrame | KvStateFrame
    | QueuedFrame | UnknownFrame
)  # fmt: skip
PushFrame = PushOpenFrame | StepFrame | ChunkFrame
PushReply = PushReadyFrame | FailureFrame

CLIENT_FRAME: Codec[ClientFrame] = union(
    pb.ClientFrame,
    {
        "open": (OpenFrame, OPEN), "step": (StepFrame, STEP), "chunk": (ChunkFrame, CHUNK),
        "reroute": (RerouteFrame, REROUTE), "replay": (ReplayFrame, REPLAY), "probe": (ProbeFrame, PROBE),
        "kv_export": (KvExportFrame, KV_EXPORT),
        "kv_import": (KvStateFrame, KV_IMPORT), "close": (CloseFrame, CLOSE), "remember": (RememberFrame, REMEMBER),
    },
)  # fmt: skip
PEER_FRAME: Codec[PeerFrame] = union(
    pb.PeerFrame,
    {
        "opened": (OpenedFrame, OPENED), "step": (StepFrame, STEP), "chunk": (ChunkFrame, CHUNK),
        "rerouted": (ReroutedFrame, REROUTED), "rebuilt": (RebuiltFrame, REBUILT), "status": (StatusFrame, STATUS),
        "failure": (FailureFrame, FAILURE), "kv_state": (KvStateFrame, KV_STATE), "queued": (QueuedFrame, QUEUED),
    },
    unknown=UnknownFrame(),
)  # fmt: skip
PUSH_FRAME: Codec[PushFrame] = union(
    pb.PushFrame, {"open": (PushOpenFrame, PUSH_OPEN), "step": (StepFrame, STEP), "chunk": (ChunkFrame, CHUNK)}
)
PUSH_REPLY: Codec[PushReply] = union(
    pb.PushReply, {"ready": (PushReadyFrame, flag(PushReadyFrame)), "failure": (FailureFrame, FAILURE)}
)
