from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("payload", "signer", "signature")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signer: str
    signature: bytes
    def __init__(self, payload: _Optional[bytes] = ..., signer: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("peer_id", "session_id", "issued_at", "nonce", "protocol", "swarm_proof")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SWARM_PROOF_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    session_id: bytes
    issued_at: float
    nonce: bytes
    protocol: int
    swarm_proof: bytes
    def __init__(self, peer_id: _Optional[str] = ..., session_id: _Optional[bytes] = ..., issued_at: _Optional[float] = ..., nonce: _Optional[bytes] = ..., protocol: _Optional[int] = ..., swarm_proof: _Optional[bytes] = ...) -> None: ...

class Capability(_message.Message):
    __slots__ = ("session_id", "epoch", "peer_id", "first_block", "stop_block", "kv_tokens", "max_rows", "predecessor", "successor", "wire_format", "expires_at", "model_digest", "input_format", "prompt_tokens")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    STOP_BLOCK_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    PREDECESSOR_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    WIRE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INPUT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    epoch: int
    peer_id: str
    first_block: int
    stop_block: int
    kv_tokens: int
    max_rows: int
    predecessor: str
    successor: str
    wire_format: str
    expires_at: float
    model_digest: str
    input_format: str
    prompt_tokens: int
    def __init__(self, session_id: _Optional[bytes] = ..., epoch: _Optional[int] = ..., peer_id: _Optional[str] = ..., first_block: _Optional[int] = ..., stop_block: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., max_rows: _Optional[int] = ..., predecessor: _Optional[str] = ..., successor: _Optional[str] = ..., wire_format: _Optional[str] = ..., expires_at: _Optional[float] = ..., model_digest: _Optional[str] = ..., input_format: _Optional[str] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("hello", "capability", "successor_record", "relay", "wait", "wait_seconds", "prefixes", "place")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_RECORD_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    hello: Signed
    capability: Signed
    successor_record: bytes
    relay: bool
    wait: bool
    wait_seconds: float
    prefixes: _containers.RepeatedCompositeFieldContainer[Prefix]
    place: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, hello: _Optional[_Union[Signed, _Mapping]] = ..., capability: _Optional[_Union[Signed, _Mapping]] = ..., successor_record: _Optional[bytes] = ..., relay: _Optional[bool] = ..., wait: _Optional[bool] = ..., wait_seconds: _Optional[float] = ..., prefixes: _Optional[_Iterable[_Union[Prefix, _Mapping]]] = ..., place: _Optional[_Iterable[float]] = ...) -> None: ...

class Prefix(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: bytes
    def __init__(self, digests: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("credits", "epoch", "held_tokens")
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HELD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    credits: int
    epoch: int
    held_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, credits: _Optional[int] = ..., epoch: _Optional[int] = ..., held_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("place", "estimate_seconds")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    place: int
    estimate_seconds: float
    def __init__(self, place: _Optional[int] = ..., estimate_seconds: _Optional[float] = ...) -> None: ...

class RowSlice(_message.Message):
    __slots__ = ("row", "start", "count", "answers")
    ROW_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    row: int
    start: int
    count: int
    answers: int
    def __init__(self, row: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., answers: _Optional[int] = ...) -> None: ...

class HopTiming(_message.Message):
    __slots__ = ("peer_id", "received_at", "started_at", "finished_at", "crowded")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    CROWDED_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    received_at: float
    started_at: float
    finished_at: float
    crowded: bool
    def __init__(self, peer_id: _Optional[str] = ..., received_at: _Optional[float] = ..., started_at: _Optional[float] = ..., finished_at: _Optional[float] = ..., crowded: _Optional[bool] = ...) -> None: ...

class Rebuild(_message.Message):
    __slots__ = ("last_peer", "next_seq", "permuted", "first", "last")
    LAST_PEER_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    PERMUTED_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    last_peer: str
    next_seq: int
    permuted: bool
    first: bool
    last: bool
    def __init__(self, last_peer: _Optional[str] = ..., next_seq: _Optional[int] = ..., permuted: _Optional[bool] = ..., first: _Optional[bool] = ..., last: _Optional[bool] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("epoch", "seq", "rows", "permutes", "source_rows", "acked_seq", "timeout_seconds", "total_bytes", "data", "timings", "rebuild", "adopted_tokens", "guessed_tokens")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PERMUTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ROWS_FIELD_NUMBER: _ClassVar[int]
    ACKED_SEQ_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GUESSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    seq: int
    rows: _containers.RepeatedCompositeFieldContainer[RowSlice]
    permutes: bool
    source_rows: _containers.RepeatedScalarFieldContainer[int]
    acked_seq: int
    timeout_seconds: float
    total_bytes: int
    data: bytes
    timings: _containers.RepeatedCompositeFieldContainer[HopTiming]
    rebuild: Rebuild
    adopted_tokens: _containers.RepeatedScalarFieldContainer[int]
    guessed_tokens: int
    def __init__(self, epoch: _Optional[int] = ..., seq: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[RowSlice, _Mapping]]] = ..., permutes: _Optional[bool] = ..., source_rows: _Optional[_Iterable[int]] = ..., acked_seq: _Optional[int] = ..., timeout_seconds: _Optional[float] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ..., timings: _Optional[_Iterable[_Union[HopTiming, _Mapping]]] = ..., rebuild: _Optional[_Union[Rebuild, _Mapping]] = ..., adopted_tokens: _Optional[_Iterable[int]] = ..., guessed_tokens: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Reroute(_message.Message):
    __slots__ = ("capability", "successor_record", "relay", "forget_prefixes")
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_RECORD_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    FORGET_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    capability: Signed
    successor_record: bytes
    relay: bool
    forget_prefixes: bool
    def __init__(self, capability: _Optional[_Union[Signed, _Mapping]] = ..., successor_record: _Optional[bytes] = ..., relay: _Optional[bool] = ..., forget_prefixes: _Optional[bool] = ...) -> None: ...

class Rerouted(_message.Message):
    __slots__ = ("epoch", "applied_seq", "buffer_complete")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    BUFFER_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    applied_seq: int
    buffer_complete: bool
    def __init__(self, epoch: _Optional[int] = ..., applied_seq: _Optional[int] = ..., buffer_complete: _Optional[bool] = ...) -> None: ...

class Replay(_message.Message):
    __slots__ = ("epoch", "lengths", "rebuild", "timeout_seconds")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    rebuild: Rebuild
    timeout_seconds: float
    def __init__(self, epoch: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ..., rebuild: _Optional[_Union[Rebuild, _Mapping]] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class Rebuilt(_message.Message):
    __slots__ = ("epoch", "tokens")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    tokens: int
    def __init__(self, epoch: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    def __init__(self, nonce: _Optional[int] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("nonce", "epoch", "received_seq", "applied_seq")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_SEQ_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    epoch: int
    received_seq: int
    applied_seq: int
    def __init__(self, nonce: _Optional[int] = ..., epoch: _Optional[int] = ..., received_seq: _Optional[int] = ..., applied_seq: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "epoch", "seq")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    epoch: int
    seq: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., epoch: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class KvExport(_message.Message):
    __slots__ = ("timeout_seconds", "round", "starts", "max_tokens")
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    timeout_seconds: float
    round: int
    starts: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    def __init__(self, timeout_seconds: _Optional[float] = ..., round: _Optional[int] = ..., starts: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class KvState(_message.Message):
    __slots__ = ("applied_seq", "lengths", "total_bytes", "data", "timeout_seconds", "round", "starts")
    APPLIED_SEQ_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    applied_seq: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    total_bytes: int
    data: bytes
    timeout_seconds: float
    round: int
    starts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, applied_seq: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ..., timeout_seconds: _Optional[float] = ..., round: _Optional[int] = ..., starts: _Optional[_Iterable[int]] = ...) -> None: ...

class Remember(_message.Message):
    __slots__ = ("prefixes",)
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    prefixes: _containers.RepeatedCompositeFieldContainer[Prefix]
    def __init__(self, prefixes: _Optional[_Iterable[_Union[Prefix, _Mapping]]] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClientFrame(_message.Message):
    __slots__ = ("open", "step", "chunk", "reroute", "replay", "probe", "kv_export", "kv_import", "close", "remember")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    REROUTE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    KV_EXPORT_FIELD_NUMBER: _ClassVar[int]
    KV_IMPORT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    REMEMBER_FIELD_NUMBER: _ClassVar[int]
    open: Open
    step: Step
    chunk: Chunk
    reroute: Reroute
    replay: Replay
    probe: Probe
    kv_export: KvExport
    kv_import: KvState
    close: Close
    remember: Remember
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., reroute: _Optional[_Union[Reroute, _Mapping]] = ..., replay: _Optional[_Union[Replay, _Mapping]] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ..., kv_export: _Optional[_Union[KvExport, _Mapping]] = ..., kv_import: _Optional[_Union[KvState, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., remember: _Optional[_Union[Remember, _Mapping]] = ...) -> None: ...

class PeerFrame(_message.Message):
    __slots__ = ("opened", "step", "chunk", "rerouted", "rebuilt", "status", "failure", "kv_state", "queued")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    REROUTED_FIELD_NUMBER: _ClassVar[int]
    REBUILT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    KV_STATE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    step: Step
    chunk: Chunk
    rerouted: Rerouted
    rebuilt: Rebuilt
    status: Status
    failure: Failure
    kv_state: KvState
    queued: Queued
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., rerouted: _Optional[_Union[Rerouted, _Mapping]] = ..., rebuilt: _Optional[_Union[Rebuilt, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., kv_state: _Optional[_Union[KvState, _Mapping]] = ..., queued: _Optional[_Union[Queued, _Mapping]] = ...) -> None: ...

class PushOpen(_message.Message):
    __slots__ = ("hello",)
    HELLO_FIELD_NUMBER: _ClassVar[int]
    hello: Signed
    def __init__(self, hello: _Optional[_Union[Signed, _Mapping]] = ...) -> None: ...

class PushFrame(_message.Message):
    __slots__ = ("open", "step", "chunk")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    open: PushOpen
    step: Step
    chunk: Chunk
    def __init__(self, open: _Optional[_Union[PushOpen, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ("ready", "failure")
    READY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    failure: Failure
    def __init__(self, ready: _Optional[bool] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("key", "hello", "most_bytes", "place")
    KEY_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    key: str
    hello: Signed
    most_bytes: int
    place: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, key: _Optional[str] = ..., hello: _Optional[_Union[Signed, _Mapping]] = ..., most_bytes: _Optional[int] = ..., place: _Optional[_Iterable[float]] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("records", "known")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    known: int
    def __init__(self, records: _Optional[_Iterable[bytes]] = ..., known: _Optional[int] = ...) -> None: ...

class PingRequest(_message.Message):
    __slots__ = ("padding", "protocol")
    PADDING_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    padding: bytes
    protocol: int
    def __init__(self, padding: _Optional[bytes] = ..., protocol: _Optional[int] = ...) -> None: ...

class PingReply(_message.Message):
    __slots__ = ("clock", "peer_id", "protocol", "model_digest", "steps_pushed", "steps_relayed", "steps_answered", "sessions", "kv_tokens_free", "dht_addresses", "model_name", "rebuilt_tokens", "replay_bytes", "queued")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STEPS_PUSHED_FIELD_NUMBER: _ClassVar[int]
    STEPS_RELAYED_FIELD_NUMBER: _ClassVar[int]
    STEPS_ANSWERED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FREE_FIELD_NUMBER: _ClassVar[int]
    DHT_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    REBUILT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPLAY_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    clock: float
    peer_id: str
    protocol: int
    model_digest: str
    steps_pushed: int
    steps_relayed: int
    steps_answered: int
    sessions: int
    kv_tokens_free: int
    dht_addresses: _containers.RepeatedScalarFieldContainer[str]
    model_name: str
    rebuilt_tokens: int
    replay_bytes: int
    queued: int
    def __init__(self, clock: _Optional[float] = ..., peer_id: _Optional[str] = ..., protocol: _Optional[int] = ..., model_digest: _Optional[str] = ..., steps_pushed: _Optional[int] = ..., steps_relayed: _Optional[int] = ..., steps_answered: _Optional[int] = ..., sessions: _Optional[int] = ..., kv_tokens_free: _Optional[int] = ..., dht_addresses: _Optional[_Iterable[str]] = ..., model_name: _Optional[str] = ..., rebuilt_tokens: _Optional[int] = ..., replay_bytes: _Optional[int] = ..., queued: _Optional[int] = ...) -> None: ...
