"""Every message of the protocol: values arrive as they were sent, and nothing else comes in, whatever the bytes."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from blockswarm.proto import relay_pb2
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.frames import (
    CHUNK_BYTES,
    MAX_STEP_TOKENS,
    ChunkFrame,
    HopTiming,
    Rebuild,
    StepFrame,
    WireStep,
)
from blockswarm.proto.wire.messages.calls import (
    LOOKUP_REPLY,
    LOOKUP_REQUEST,
    PING_REPLY,
    PING_REQUEST,
    LookupReply,
    LookupRequest,
    PingReply,
    PingRequest,
)
from blockswarm.proto.wire.messages.codec import Codec
from blockswarm.proto.wire.messages.limits import (
    MAX_FRAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORDS_PER_KEY,
    MAX_TUNNEL_BYTES,
)
from blockswarm.proto.wire.messages.opening import (
    SIGNED,
    OpenedFrame,
    OpenFrame,
    PushOpenFrame,
    PushReadyFrame,
    QueuedFrame,
    Signed,
)
from blockswarm.proto.wire.messages.relay import (
    REACH_REPLY,
    REACH_REQUEST,
    RESERVE,
    RESERVE_REPLY,
    TUNNEL_CALL,
    TUNNEL_REPLY,
    AcceptFrame,
    ConnectFrame,
    IncomingFrame,
    ReachReply,
    ReachRequest,
    ReservedFrame,
    ReserveFrame,
    TunnelData,
    TunnelReadyFrame,
)
from blockswarm.proto.wire.messages.session import (
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
from blockswarm.proto.wire.messages.steps import RebuiltFrame, ReplayFrame
from blockswarm.proto.wire.messages.streams import CLIENT_FRAME, PEER_FRAME, PUSH_FRAME, PUSH_REPLY, UnknownFrame
from blockswarm.proto.wire.prefixes import DIGEST_BYTES
from blockswarm.proto.wire.steps import MAX_POSITIONS, MAX_ROWS, RowSlice, StepPlan
from blockswarm.proto.wire.timing import MAX_STEP_SECONDS, MAX_TRANSFER_SECONDS
from blockswarm.routing.swarm import Coordinate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

DECODE_SECONDS = 1.0
"""Processor time for a hostile frame of the largest size: what would stop the loop for seconds took eight to ten."""
DECODE_BYTES = 8 << 20
"""Memory of Python objects meanwhile; a frame has a megabyte."""

# --- values that make sense ---

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
texts = st.text(max_size=20)
peer_ids = st.text("123abc", max_size=64)
moments = st.floats(-1e12, 1e12)
durations = st.floats(0, 1e12)
step_seconds = st.floats(0, MAX_STEP_SECONDS, exclude_min=True)
transfer_seconds = st.floats(0, MAX_TRANSFER_SECONDS, exclude_min=True)
lengths = st.lists(st.integers(0, MAX_POSITIONS), max_size=5).map(tuple)
signed = st.builds(Signed, st.binary(max_size=1024), peer_ids, st.binary(max_size=64))
records = st.binary(max_size=100)
axes = st.floats(-2, 2, width=32)
places = st.none() | st.builds(Coordinate, st.tuples(axes, axes, axes), st.floats(0, 2, width=32))
prefixes = st.lists(st.integers(0, 3).map(lambda pages: bytes(range(DIGEST_BYTES)) * pages), max_size=3).map(tuple)
marks = st.builds(Rebuild, peer_ids, st.integers(1, 2**64 - 1), st.booleans(), st.booleans(), st.booleans())
timings = st.builds(HopTiming, peer_ids, moments, moments, moments, st.booleans())
failures = st.builds(FailureFrame, uint32, texts, uint64, uint64)


@st.composite
def plans(draw: st.DrawFn, rebuilds: bool) -> StepPlan:
    rows, row = [], -1
    for _ in range(draw(st.integers(0, 4))):
        row += draw(st.integers(1, 3))
        count = draw(st.integers(0, 900))
        rows.append(RowSlice(row, draw(st.integers(0, 5000)), count, draw(st.integers(0, count))))
    if not rebuilds:
        rows.append(RowSlice(row + 1, 0, 1, 1))
    source = draw(st.none() | st.lists(uint32, max_size=5).map(tuple))
    guessed = draw(st.integers(0, rows[-1].count)) if rows else 0
    return StepPlan(tuple(rows), source, () if rebuilds else draw(lengths), guessed)


@st.composite
def heads(draw: st.DrawFn) -> StepFrame:
    mark = draw(st.none() | marks)
    step = WireStep(
        draw(uint64), draw(uint64), draw(plans(mark is not None)), draw(st.binary(max_size=50)), draw(uint64),
        draw(step_seconds), tuple(draw(st.lists(timings, max_size=3))), mark,
    )  # fmt: skip
    return StepFrame(step, draw(uint64))


@st.composite
def parts_of_caches(draw: st.DrawFn, seconds: st.SearchStrategy[float]) -> KvStateFrame:
    spans = [sorted(span) for span in draw(st.lists(st.tuples(*[st.integers(0, MAX_POSITIONS)] * 2), max_size=5))]
    starts, ends = (tuple(span[side] for span in spans) for side in (0, 1))
    data = draw(st.binary(max_size=50))
    return KvStateFrame(draw(uint64), draw(uint64), starts, ends, draw(uint64), data, draw(seconds))


chunks = st.builds(ChunkFrame, st.binary(min_size=1, max_size=50))
VALUES: dict[str, tuple[Codec[Any], st.SearchStrategy[Any]]] = {
    "Signed": (SIGNED, signed),
    "Open": (
        CLIENT_FRAME,
        st.builds(OpenFrame, signed, signed, records, st.booleans(), st.just(0.0) | durations, prefixes, places),
    ),
    "Step from a client": (CLIENT_FRAME, heads()),
    "Step from a peer": (PEER_FRAME, heads()),
    "Step from a predecessor": (PUSH_FRAME, heads()),
    "Chunk from a client": (CLIENT_FRAME, chunks),
    "Chunk from a peer": (PEER_FRAME, chunks),
    "Chunk from a predecessor": (PUSH_FRAME, chunks),
    "Reroute": (CLIENT_FRAME, st.builds(RerouteFrame, signed, records, st.booleans())),
    "Replay": (CLIENT_FRAME, st.builds(ReplayFrame, uint64, lengths, marks, step_seconds)),
    "Probe": (CLIENT_FRAME, st.builds(ProbeFrame, uint64)),
    "KvExport": (
        CLIENT_FRAME,
        st.builds(KvExportFrame, transfer_seconds, uint64, lengths, st.integers(1, MAX_POSITIONS)),
    ),
    "KvState to a peer": (CLIENT_FRAME, parts_of_caches(transfer_seconds)),
    "KvState from a peer": (PEER_FRAME, parts_of_caches(st.just(0.0))),
    "Close": (CLIENT_FRAME, st.just(CloseFrame())),
    "Remember": (CLIENT_FRAME, st.builds(RememberFrame, prefixes)),
    "Opened": (PEER_FRAME, st.builds(OpenedFrame, uint32, uint64, lengths)),
    "Rerouted": (PEER_FRAME, st.builds(ReroutedFrame, uint64, uint64, st.booleans())),
    "Rebuilt": (PEER_FRAME, st.builds(RebuiltFrame, uint64, uint64)),
    "Status": (PEER_FRAME, st.builds(StatusFrame, uint64, uint64, uint64, uint64)),
    "Failure": (PEER_FRAME, failures),
    "Queued": (PEER_FRAME, st.builds(QueuedFrame, uint32, durations)),
    "PushOpen": (PUSH_FRAME, st.builds(PushOpenFrame, signed)),
    "PushReady": (PUSH_REPLY, st.just(PushReadyFrame())),
    "Failure of a push": (PUSH_REPLY, failures),
    "LookupRequest": (LOOKUP_REQUEST, st.builds(LookupRequest, texts, signed, uint32, places)),
    "LookupReply": (LOOKUP_REPLY, st.builds(LookupReply, st.lists(records, max_size=5).map(tuple), uint32)),
    "PingRequest": (PING_REQUEST, st.builds(PingRequest, uint32, st.binary(max_size=50))),
    "PingReply": (
        PING_REPLY,
        st.builds(
            PingReply, clock=moments, peer_id=peer_ids, protocol=uint32, model_digest=peer_ids, model_name=texts,
            steps_pushed=uint64, steps_relayed=uint64, steps_answered=uint64, rebuilt_tokens=uint64, sessions=uint32,
            queued=uint32, kv_tokens_free=uint64, replay_bytes=uint64,
            dht_addresses=st.lists(texts, max_size=3).map(tuple),
        ),
    ),
    "TunnelReserve": (RESERVE, st.builds(ReserveFrame, signed)),
    "TunnelReserved": (RESERVE_REPLY, st.builds(ReservedFrame, uint32, durations)),
    "TunnelIncoming": (RESERVE_REPLY, st.builds(IncomingFrame, st.binary(min_size=16, max_size=16))),
    "Failure of a reservation": (RESERVE_REPLY, failures),
    "TunnelConnect": (TUNNEL_CALL, st.builds(ConnectFrame, signed, peer_ids)),
    "TunnelAccept": (TUNNEL_CALL, st.builds(AcceptFrame, st.binary(min_size=16, max_size=16))),
    "data to a relay": (TUNNEL_CALL, st.builds(TunnelData, st.binary(min_size=1, max_size=50))),
    "data from a relay": (TUNNEL_REPLY, st.builds(TunnelData, st.binary(min_size=1, max_size=50))),
    "ready": (TUNNEL_REPLY, st.just(TunnelReadyFrame())),
    "Failure of a tunnel": (TUNNEL_REPLY, failures),
    "ReachRequest": (REACH_REQUEST, st.builds(ReachRequest, signed, st.integers(1, 65535))),
    "ReachReply": (REACH_REPLY, st.builds(ReachReply, texts, st.booleans())),
}  # fmt: skip
"""Every message in every place where it may come, and values that it may have there."""
FRAMES = {
    "ClientFrame": CLIENT_FRAME, "PeerFrame": PEER_FRAME, "PushFrame": PUSH_FRAME, "PushReply": PUSH_REPLY,
    "LookupRequest": LOOKUP_REQUEST, "LookupReply": LOOKUP_REPLY, "PingRequest": PING_REQUEST, "PingReply": PING_REPLY,
    "TunnelReserve": RESERVE, "ReserveReply": RESERVE_REPLY, "call of a tunnel": TUNNEL_CALL,
    "reply of a tunnel": TUNNEL_REPLY, "ReachRequest": REACH_REQUEST, "ReachReply": REACH_REPLY,
}  # fmt: skip


def test_every_kind_of_frame_is_among_the_values() -> None:
    """From the stubs, not from our codecs."""
    kinds = [
        (frame, field.name)
        for frame in ("ClientFrame", "PeerFrame", "PushFrame", "PushReply")
        for field in pb.DESCRIPTOR.message_types_by_name[frame].fields
    ]
    assert len(kinds) == len([codec for codec, _ in VALUES.values() if codec in list(FRAMES.values())[:4]])
    tunnel = {field.name for field in relay_pb2.TunnelFrame.DESCRIPTOR.fields}
    assert tunnel == {"connect", "accept", "data", "ready", "failure"}, "data goes both ways"
    assert len([codec for codec, _ in VALUES.values() if codec in (TUNNEL_CALL, TUNNEL_REPLY)]) == len(tunnel) + 1
    replies = relay_pb2.ReserveReply.DESCRIPTOR.fields
    assert len([codec for codec, _ in VALUES.values() if codec is RESERVE_REPLY]) == len(replies)


@pytest.mark.long
@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=30)
@given(data=st.data())
def test_a_value_arrives_as_it_was_sent(name: str, data: st.DataObject) -> None:
    codec, values = VALUES[name]
    value = data.draw(values)
    assert codec.decode(codec.encode(value)) == value


# --- bytes that make none ---


def decoded_or_refused(codec: Codec[Any], data: bytes) -> None:
    """The codec finds a value, one that it would find again, or raises RemoteProtocolError."""
    try:
        value = codec.decode(data)
    except RemoteProtocolError:
        return
    if not isinstance(value, UnknownFrame):
        assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("frame", FRAMES)
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes(frame: str, data: bytes) -> None:
    decoded_or_refused(FRAMES[frame], data)


@pytest.mark.long
@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=50)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_a_value_with_some_bytes_changed(name: str, data: st.DataObject, seed: int) -> None:
    codec, values = VALUES[name]
    changed, rng = bytearray(codec.encode(data.draw(values))), random.Random(seed)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(changed) + 1)
        match rng.randrange(3):
            case 0:
                changed[position : position + 1] = rng.randbytes(1)
            case 1:
                changed[position:position] = rng.randbytes(rng.randint(1, 8))
            case _:
                del changed[position : position + rng.randint(1, 8)]
    decoded_or_refused(codec, bytes(changed))


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def delimited(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def floods(message: Descriptor, size: int) -> Iterator[tuple[str, bytes]]:
    """For every field of a message, and of those in it: as much of it as fits into `size` bytes, in every form."""
    yield "unknown fields", b"\xf8\x07\x00" * (size // 3)
    for field in message.fields:
        empty = delimited(field.number, b"")
        match field.type:
            case FieldDescriptor.TYPE_MESSAGE:
                yield f"{field.name} empty", empty * (size // len(empty))
                for name, inner in floods(field.message_type, size - 12):
                    yield f"{field.name}.{name}", delimited(field.number, inner)
            case FieldDescriptor.TYPE_STRING | FieldDescriptor.TYPE_BYTES:
                yield f"{field.name} empty", empty * (size // len(empty))
                yield f"{field.name} large", delimited(field.number, b"x" * (size - 12))
            case FieldDescriptor.TYPE_DOUBLE:
                yield f"{field.name} often", (varint(field.number << 3 | 1) + bytes(8)) * (size // 10)
            case _:
                yield f"{field.name} often", (varint(field.number << 3) + b"\0") * (size // 3)
                yield f"{field.name} packed", delimited(field.number, b"\0" * (size - 12))


@pytest.mark.long
@pytest.mark.parametrize("frame", FRAMES)
def test_floods_of_every_field(frame: str) -> None:
    """Frames of the largest size, of millions of elements and of huge texts, are over soon and cost little memory."""
    codec = FRAMES[frame]
    for name, data in floods(codec.message.DESCRIPTOR, MAX_FRAME_BYTES):
        assert len(data) <= MAX_FRAME_BYTES
        tracemalloc.start()
        started = time.thread_time()
        try:
            codec.decode(data)
        except RemoteProtocolError:
            pass
        finally:
            took, (_, most) = time.thread_time() - started, tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert took < DECODE_SECONDS, f"{name}: {took:.2f} s"
        assert most < DECODE_BYTES, f"{name}: {most >> 20} MiB"


@pytest.mark.parametrize("frame", sorted({*FRAMES} - {"LookupReply"}))
def test_a_frame_that_is_too_large_is_not_even_parsed(frame: str) -> None:
    with pytest.raises(RemoteProtocolError, match="at most"):
        FRAMES[frame].decode(bytes(MAX_FRAME_BYTES + 1))


# --- what each message must not say ---


def step(**fields: Any) -> pb.ClientFrame:
    return pb.ClientFrame(step=pb.Step(**{"rows": rows((0, 0, 1, 1)), "timeout_seconds": 1.0, "seq": 1, **fields}))


def rows(*pieces: tuple[int, int, int, int]) -> list[pb.RowSlice]:
    return [pb.RowSlice(row=row, start=start, count=count, answers=answers) for row, start, count, answers in pieces]


def rebuild(**fields: Any) -> pb.Rebuild:
    return pb.Rebuild(**{"next_seq": 1, **fields})


def opening(**fields: Any) -> pb.ClientFrame:
    return pb.ClientFrame(open=pb.Open(**fields))


NAN, ENDLESS = float("nan"), float("inf")
BAD_FRAMES: dict[str, pb.ClientFrame] = {
    "no kind": pb.ClientFrame(),
    "no rows": step(rows=[]),
    "no tokens": step(rows=rows((0, 0, 0, 0))),
    "a row twice": step(rows=rows((0, 0, 1, 1), (0, 0, 1, 1))),
    "rows out of order": step(rows=rows((1, 0, 1, 1), (0, 0, 1, 1))),
    "more answers than tokens": step(rows=rows((0, 0, 1, 2))),
    "a position beyond all": step(rows=rows((0, 1 << 31, 1, 1))),
    "more tokens than a step has": step(rows=rows((0, 0, MAX_STEP_TOKENS + 1, 0))),
    "too many rows": step(rows=rows(*((row, 0, 1, 0) for row in range(MAX_ROWS + 1)))),
    "too many source rows": step(permutes=True, source_rows=[0] * (MAX_ROWS + 1)),
    "too many adopted rows": step(adopted_tokens=[1] * (MAX_ROWS + 1)),
    "an adopted row beyond all": step(adopted_tokens=[MAX_POSITIONS + 1]),
    "too many hops": step(timings=[pb.HopTiming()] * 257),
    "a clock that is none": step(timings=[pb.HopTiming(started_at=NAN)]),
    "a peer id without end": step(timings=[pb.HopTiming(peer_id="x" * 65)]),
    "no time": step(timeout_seconds=0.0),
    "negative time": step(timeout_seconds=-1.0),
    "a time that is none": step(timeout_seconds=NAN),
    "all the time": step(timeout_seconds=MAX_STEP_SECONDS + 1),
    "more data than a frame carries": step(data=bytes(CHUNK_BYTES + 1)),
    "a rebuild that adopts": step(rebuild=rebuild(), adopted_tokens=[5]),
    "a rebuild with a row twice": step(rebuild=rebuild(), rows=rows((0, 0, 1, 0), (0, 0, 1, 0))),
    "a rebuild with a position beyond all": step(rebuild=rebuild(), rows=rows((0, MAX_POSITIONS, 1, 0))),
    "a rebuild with too many rows": step(rebuild=rebuild(), rows=rows(*((n, 0, 0, 0) for n in range(MAX_ROWS + 1)))),
    "a rebuild to before the first step": step(rebuild=pb.Rebuild()),
    "an empty chunk": pb.ClientFrame(chunk=pb.Chunk()),
    "a replay to nowhere": pb.ClientFrame(replay=pb.Replay(timeout_seconds=1.0)),
    "a replay of too many rows": pb.ClientFrame(
        replay=pb.Replay(rebuild=rebuild(), timeout_seconds=1.0, lengths=[1] * (MAX_ROWS + 1))
    ),
    "a replay of a row beyond all": pb.ClientFrame(
        replay=pb.Replay(rebuild=rebuild(), timeout_seconds=1.0, lengths=[MAX_POSITIONS + 1])
    ),
    "a replay without time": pb.ClientFrame(replay=pb.Replay(rebuild=rebuild())),
    "an export without time": pb.ClientFrame(kv_export=pb.KvExport(max_tokens=1)),
    "an export with all the time": pb.ClientFrame(
        kv_export=pb.KvExport(timeout_seconds=MAX_TRANSFER_SECONDS + 1, max_tokens=1)
    ),
    "an export of nothing": pb.ClientFrame(kv_export=pb.KvExport(timeout_seconds=1.0)),
    "an export of too many rows": pb.ClientFrame(
        kv_export=pb.KvExport(timeout_seconds=1.0, max_tokens=1, starts=[0] * (MAX_ROWS + 1))
    ),
    "a cache that ends before it begins": pb.ClientFrame(
        kv_import=pb.KvState(timeout_seconds=1.0, starts=[2], lengths=[1])
    ),
    "a cache with starts of fewer rows": pb.ClientFrame(kv_import=pb.KvState(timeout_seconds=1.0, lengths=[1])),
    "a cache without time": pb.ClientFrame(kv_import=pb.KvState()),
    "a cache of too many rows": pb.ClientFrame(
        kv_import=pb.KvState(timeout_seconds=1.0, starts=[0], lengths=[0] * (MAX_ROWS + 1))
    ),
    "a place without a height": opening(place=[0.1, 0.1, 0.1]),
    "a place below the ground": opening(place=[0.1, 0.1, 0.1, -0.1]),
    "a place outside the world": opening(place=[0.1, 0.1, 3.0, 0.1]),
    "a place that is no number": opening(place=[float("nan"), 0.1, 0.1, 0.1]),
    "half the name of a page": opening(prefixes=[pb.Prefix(digests=bytes(DIGEST_BYTES // 2))]),
    "prefixes of too many rows": opening(prefixes=[pb.Prefix()] * (MAX_ROWS + 1)),
    "more names than a session has": opening(
        prefixes=[pb.Prefix(digests=bytes(1 << 18)), pb.Prefix(digests=bytes(DIGEST_BYTES))]
    ),
    "a record that is too large": opening(successor_record=bytes(MAX_RECORD_BYTES + 1)),
    "a wait without end": opening(wait=True, wait_seconds=ENDLESS),
    "a wait of no time": opening(wait=True),
    "a signature that is none": opening(hello=pb.Signed(signature=bytes(65))),
    "more to remember than a session has": pb.ClientFrame(
        remember=pb.Remember(prefixes=[pb.Prefix(digests=bytes(1 << 18))] * 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_client_must_not_say(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        CLIENT_FRAME.decode(BAD_FRAMES[name].SerializeToString())


BAD_ANSWERS = {
    "a tunnel's frame that is empty": (TUNNEL_CALL, relay_pb2.TunnelFrame(data=b"")),
    "a tunnel's frame that is too large": (TUNNEL_CALL, relay_pb2.TunnelFrame(data=bytes(MAX_TUNNEL_BYTES + 1))),
    "a caller that is ready for the relay": (TUNNEL_CALL, relay_pb2.TunnelFrame(ready=True)),
    "a caller that fails for the relay": (TUNNEL_CALL, relay_pb2.TunnelFrame(failure=pb.Failure(code=1))),
    "a relay that connects": (TUNNEL_REPLY, relay_pb2.TunnelFrame(connect=relay_pb2.TunnelConnect())),
    "a tunnel's frame of no kind": (TUNNEL_REPLY, relay_pb2.TunnelFrame()),
    "a short token": (RESERVE_REPLY, relay_pb2.ReserveReply(incoming=relay_pb2.TunnelIncoming(token=b"x"))),
    "an accepted token that is short": (TUNNEL_CALL, relay_pb2.TunnelFrame(accept=relay_pb2.TunnelAccept())),
    "a port that is none": (REACH_REQUEST, relay_pb2.ReachRequest(port=0)),
    "a port beyond all": (REACH_REQUEST, relay_pb2.ReachRequest(port=65536)),
    "a host without end": (REACH_REPLY, relay_pb2.ReachReply(host="x" * 65)),
    "held rows without end": (PEER_FRAME, pb.PeerFrame(opened=pb.Opened(held_tokens=[1] * (MAX_ROWS + 1)))),
    "an estimate that is none": (PEER_FRAME, pb.PeerFrame(queued=pb.Queued(place=1, estimate_seconds=NAN))),
    "a failure without end": (PEER_FRAME, pb.PeerFrame(failure=pb.Failure(code=1, message="x" * 3000))),
    "a reply of no kind": (PUSH_REPLY, pb.PushReply()),
    "a successor that is not ready": (PUSH_REPLY, pb.PushReply(ready=False)),
    "a tunnel that is not ready": (TUNNEL_REPLY, relay_pb2.TunnelFrame(ready=False)),
    "a clock that is none": (PING_REPLY, pb.PingReply(clock=NAN)),
    "addresses without end": (PING_REPLY, pb.PingReply(dht_addresses=["x"] * 65)),
    "a name without end": (PING_REPLY, pb.PingReply(model_name="x" * 513)),
    "records without end": (LOOKUP_REPLY, pb.LookupReply(records=[b""] * (MAX_RECORDS_PER_KEY + 1))),
    "a record that is too large": (LOOKUP_REPLY, pb.LookupReply(records=[bytes(MAX_RECORD_BYTES + 1)])),
    "an asker without a height": (LOOKUP_REQUEST, pb.LookupRequest(place=[0.1, 0.1, 0.1])),
    "an asker outside the world": (LOOKUP_REQUEST, pb.LookupRequest(place=[0.1, 0.1, 3.0, 0.1])),
    "an asker that is nowhere": (LOOKUP_REQUEST, pb.LookupRequest(place=[NAN, 0.1, 0.1, 0.1])),
    "an asker with many places": (LOOKUP_REQUEST, pb.LookupRequest(place=[0.1] * 8)),
    "a key without end": (LOOKUP_REQUEST, pb.LookupRequest(key="x" * 257)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_nobody_may_say(name: str) -> None:
    codec, message = BAD_ANSWERS[name]
    with pytest.raises(RemoteProtocolError):
        codec.decode(message.SerializeToString())


def test_a_client_passes_over_a_kind_of_frame_that_it_does_not_know() -> None:
    """A peer of a later version may say more; a peer takes from a client what it understands only."""
    assert PEER_FRAME.decode(delimited(99, b"news")) == UnknownFrame()
    with pytest.raises(RemoteProtocolError, match="unknown kind"):
        CLIENT_FRAME.decode(delimited(99, b"news"))


def test_a_rebuild_may_leave_a_cache_empty() -> None:
    frame = CLIENT_FRAME.decode(step(rebuild=rebuild(), rows=[]).SerializeToString())
    assert isinstance(frame, StepFrame)
    assert frame.step.plan.tokens == 0
