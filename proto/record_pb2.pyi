from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StateMessage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[StateMessage]
    STATE_JOINING: _ClassVar[StateMessage]
    STATE_SERVING: _ClassVar[StateMessage]
    STATE_DRAINING: _ClassVar[StateMessage]
    STATE_LEAVING: _ClassVar[StateMessage]
STATE_UNSPECIFIED: StateMessage
STATE_JOINING: StateMessage
STATE_SERVING: StateMessage
STATE_DRAINING: StateMessage
STATE_LEAVING: StateMessage

class SignedRecordMessage(_message.Message):
    __slots__ = ("key", "peer_id", "payload", "expires_at_seconds", "signature")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    peer_id: str
    payload: bytes
    expires_at_seconds: float
    signature: bytes
    def __init__(self, key: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., payload: _Optional[bytes] = ..., expires_at_seconds: _Optional[float] = ..., signature: _Optional[bytes] = ...) -> None: ...

class PeerRecordMessage(_message.Message):
    __slots__ = ("model_digest", "state", "first_block", "stop_block", "block_hashes", "numeric_format", "cost", "memory_bytes", "kv_tokens_total", "kv_tokens_free", "release_seconds", "coordinate", "client_centroids", "concurrency", "max_blocks", "addresses", "relays", "dht_maddrs", "incarnation", "protocol_version", "software_version", "public_name", "blocks_fixed", "claim", "issued_seconds", "block_bytes", "kv_bytes_per_token", "load_seconds", "size_fixed", "release_tokens", "relay_places", "stream_format", "device_class", "tokens_served")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    STOP_BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    NUMERIC_FORMAT_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FREE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COORDINATE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_CENTROIDS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    DHT_MADDRS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_NAME_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIXED_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    ISSUED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIXED_FIELD_NUMBER: _ClassVar[int]
    RELEASE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RELAY_PLACES_FIELD_NUMBER: _ClassVar[int]
    STREAM_FORMAT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_SERVED_FIELD_NUMBER: _ClassVar[int]
    model_digest: bytes
    state: StateMessage
    first_block: int
    stop_block: int
    block_hashes: bytes
    numeric_format: str
    cost: CostMessage
    memory_bytes: float
    kv_tokens_total: int
    kv_tokens_free: int
    release_seconds: _containers.RepeatedScalarFieldContainer[float]
    coordinate: CoordinateMessage
    client_centroids: _containers.RepeatedCompositeFieldContainer[CoordinateMessage]
    concurrency: float
    max_blocks: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    relays: _containers.RepeatedScalarFieldContainer[str]
    dht_maddrs: _containers.RepeatedScalarFieldContainer[str]
    incarnation: int
    protocol_version: int
    software_version: str
    public_name: str
    blocks_fixed: bool
    claim: ClaimMessage
    issued_seconds: float
    block_bytes: float
    kv_bytes_per_token: float
    load_seconds: float
    size_fixed: bool
    release_tokens: _containers.RepeatedScalarFieldContainer[int]
    relay_places: int
    stream_format: str
    device_class: str
    tokens_served: int
    def __init__(self, model_digest: _Optional[bytes] = ..., state: _Optional[_Union[StateMessage, str]] = ..., first_block: _Optional[int] = ..., stop_block: _Optional[int] = ..., block_hashes: _Optional[bytes] = ..., numeric_format: _Optional[str] = ..., cost: _Optional[_Union[CostMessage, _Mapping]] = ..., memory_bytes: _Optional[float] = ..., kv_tokens_total: _Optional[int] = ..., kv_tokens_free: _Optional[int] = ..., release_seconds: _Optional[_Iterable[float]] = ..., coordinate: _Optional[_Union[CoordinateMessage, _Mapping]] = ..., client_centroids: _Optional[_Iterable[_Union[CoordinateMessage, _Mapping]]] = ..., concurrency: _Optional[float] = ..., max_blocks: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., relays: _Optional[_Iterable[str]] = ..., dht_maddrs: _Optional[_Iterable[str]] = ..., incarnation: _Optional[int] = ..., protocol_version: _Optional[int] = ..., software_version: _Optional[str] = ..., public_name: _Optional[str] = ..., blocks_fixed: _Optional[bool] = ..., claim: _Optional[_Union[ClaimMessage, _Mapping]] = ..., issued_seconds: _Optional[float] = ..., block_bytes: _Optional[float] = ..., kv_bytes_per_token: _Optional[float] = ..., load_seconds: _Optional[float] = ..., size_fixed: _Optional[bool] = ..., release_tokens: _Optional[_Iterable[int]] = ..., relay_places: _Optional[int] = ..., stream_format: _Optional[str] = ..., device_class: _Optional[str] = ..., tokens_served: _Optional[int] = ...) -> None: ...

class CostMessage(_message.Message):
    __slots__ = ("decode_fixed", "decode_per_row", "decode_per_context_token", "prefill_fixed", "prefill_per_token", "visit")
    DECODE_FIXED_FIELD_NUMBER: _ClassVar[int]
    DECODE_PER_ROW_FIELD_NUMBER: _ClassVar[int]
    DECODE_PER_CONTEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIXED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VISIT_FIELD_NUMBER: _ClassVar[int]
    decode_fixed: float
    decode_per_row: float
    decode_per_context_token: float
    prefill_fixed: float
    prefill_per_token: float
    visit: float
    def __init__(self, decode_fixed: _Optional[float] = ..., decode_per_row: _Optional[float] = ..., decode_per_context_token: _Optional[float] = ..., prefill_fixed: _Optional[float] = ..., prefill_per_token: _Optional[float] = ..., visit: _Optional[float] = ...) -> None: ...

class ClaimMessage(_message.Message):
    __slots__ = ("at_seconds", "first_block", "stop_block")
    AT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    STOP_BLOCK_FIELD_NUMBER: _ClassVar[int]
    at_seconds: float
    first_block: int
    stop_block: int
    def __init__(self, at_seconds: _Optional[float] = ..., first_block: _Optional[int] = ..., stop_block: _Optional[int] = ...) -> None: ...

class CoordinateMessage(_message.Message):
    __slots__ = ("vector", "height", "error")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    vector: _containers.RepeatedScalarFieldContainer[float]
    height: float
    error: float
    def __init__(self, vector: _Optional[_Iterable[float]] = ..., height: _Optional[float] = ..., error: _Optional[float] = ...) -> None: ...
