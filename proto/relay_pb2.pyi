from blockswarm.proto import swarm_pb2 as _swarm_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TunnelReserve(_message.Message):
    __slots__ = ("hello",)
    HELLO_FIELD_NUMBER: _ClassVar[int]
    hello: _swarm_pb2.Signed
    def __init__(self, hello: _Optional[_Union[_swarm_pb2.Signed, _Mapping]] = ...) -> None: ...

class TunnelReserved(_message.Message):
    __slots__ = ("connections", "bytes_per_second")
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    connections: int
    bytes_per_second: float
    def __init__(self, connections: _Optional[int] = ..., bytes_per_second: _Optional[float] = ...) -> None: ...

class TunnelIncoming(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    def __init__(self, token: _Optional[bytes] = ...) -> None: ...

class ReserveReply(_message.Message):
    __slots__ = ("reserved", "incoming", "failure")
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    INCOMING_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    reserved: TunnelReserved
    incoming: TunnelIncoming
    failure: _swarm_pb2.Failure
    def __init__(self, reserved: _Optional[_Union[TunnelReserved, _Mapping]] = ..., incoming: _Optional[_Union[TunnelIncoming, _Mapping]] = ..., failure: _Optional[_Union[_swarm_pb2.Failure, _Mapping]] = ...) -> None: ...

class TunnelConnect(_message.Message):
    __slots__ = ("hello", "peer_id")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    hello: _swarm_pb2.Signed
    peer_id: str
    def __init__(self, hello: _Optional[_Union[_swarm_pb2.Signed, _Mapping]] = ..., peer_id: _Optional[str] = ...) -> None: ...

class TunnelAccept(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    def __init__(self, token: _Optional[bytes] = ...) -> None: ...

class TunnelFrame(_message.Message):
    __slots__ = ("connect", "accept", "ready", "data", "failure")
    CONNECT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    connect: TunnelConnect
    accept: TunnelAccept
    ready: bool
    data: bytes
    failure: _swarm_pb2.Failure
    def __init__(self, connect: _Optional[_Union[TunnelConnect, _Mapping]] = ..., accept: _Optional[_Union[TunnelAccept, _Mapping]] = ..., ready: _Optional[bool] = ..., data: _Optional[bytes] = ..., failure: _Optional[_Union[_swarm_pb2.Failure, _Mapping]] = ...) -> None: ...

class ReachRequest(_message.Message):
    __slots__ = ("hello", "port")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    hello: _swarm_pb2.Signed
    port: int
    def __init__(self, hello: _Optional[_Union[_swarm_pb2.Signed, _Mapping]] = ..., port: _Optional[int] = ...) -> None: ...

class ReachReply(_message.Message):
    __slots__ = ("host", "reached")
    HOST_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    host: str
    reached: bool
    def __init__(self, host: _Optional[str] = ..., reached: _Optional[bool] = ...) -> None: ...
