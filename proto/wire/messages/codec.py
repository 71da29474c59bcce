"""From bytes to a frozen value and back: one codec for each message of swarm.proto.

A codec is a pair of functions, message <-> value; this module has the parts that all codecs share.  Bytes that cannot
be decoded raise RemoteProtocolError, whatever error the foreign code raised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from ...errors import RemoteProtocolError, SwarmError
from .limits import MAX_FRAME_BYTES, check_limits

M = TypeVar("M", bound=Message)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Codec(Generic[V]):
    """The encoding of a value of class V as a message."""

    message: type[Message]
    pack: Callable[[V], Any]
    """Value -> message."""
    unpack: Callable[[Any], V]
    """Message within its limits -> value. Raises RemoteProtocolError."""
    max_bytes: int = MAX_FRAME_BYTES

    def encode(self, value: V) -> bytes:
        packed: Message = self.pack(value)
        return packed.SerializeToString()

    def decode(self, data: bytes) -> V:
        """Decode `data`, which may come from a hostile sender. Raises RemoteProtocolError."""
        message = parse(self.message, data, self.max_bytes)
        try:
            return self.unpack(message)
        except SwarmError:
            raise
        except Exception as error:
            raise RemoteProtocolError(f"a {self.message.DESCRIPTOR.name} cannot be interpreted: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Plain(Generic[V]):
    """The encoding of a value of class V in a field that is not a message."""

    pack: Callable[[V], bytes | bool]
    unpack: Callable[[Any], V]
    """Field -> value. Raises RemoteProtocolError."""


def flag(value: type[V]) -> Plain[V]:
    """The encoding of a value without parts: the field is present, and true."""

    def unpack(is_set: bool) -> V:
        if not is_set:
            raise RemoteProtocolError(f"a {value.__name__} is false")
        return value()

    return Plain(lambda _: True, unpack)


def parse(message_class: type[M], data: bytes, max_bytes: int = MAX_FRAME_BYTES) -> M:
    """Parse `data`, and check that all fields are within their limits. Raises RemoteProtocolError."""
    name = message_class.DESCRIPTOR.name
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"a {name} has at most {max_bytes} bytes, not {len(data)}")
    try:
        message = message_class.FromString(data)
    except Exception as error:
        raise RemoteProtocolError(f"a {name} is not readable") from error
    check_limits(message)
    return message


def by_name(message: type[Message], value: type[V], **nested: Codec[Any]) -> Codec[V]:
    """The codec of a value with the same field names as the message; fields in `nested` have their own codecs."""
    names = [field.name for field in fields(value)]  # type: ignore[arg-type]
    repeated = {name for name in names if message.DESCRIPTOR.fields_by_name[name].is_repeated}

    def pack(whole: V) -> Message:
        parts = {name: getattr(whole, name) for name in names}
        parts.update((name, codec.pack(parts[name])) for name, codec in nested.items())
        return message(**parts)

    def unpack(whole: Message) -> V:
        parts = {name: getattr(whole, name) for name in names}
        parts.update((name, tuple(parts[name])) for name in repeated)
        parts.update((name, codec.unpack(parts[name])) for name, codec in nested.items())
        return value(**parts)

    return Codec(message, pack, unpack)


def union(
    message: type[Message], kinds: Mapping[str, tuple[type, Codec[Any] | Plain[Any]]], unknown: Any = None
) -> Codec[Any]:
    """The codec of a frame that holds one of several `kinds`, each (field, class of the value, codec).

    `unknown` is the value for a kind that this version does not know; without it such a frame is refused.
    """
    by_class = {value: (field, codec.pack) for field, (value, codec) in kinds.items()}

    def pack(value: Any) -> Message:
        field, pack_kind = by_class[type(value)]
        return message(**{field: pack_kind(value)})

    def unpack(frame: Any) -> Any:
        field = frame.WhichOneof("kind")
        if field is None:
            if unknown is None:
                raise RemoteProtocolError(f"a {message.DESCRIPTOR.name} is of an unknown kind")
            return unknown
        return kinds[field][1].unpack(getattr(frame, field))

    return Codec(message, pack, unpack)
