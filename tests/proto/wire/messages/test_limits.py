"""Every field that a sender can make large has a limit, the limit holds at its edge, and the page says so."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from blockswarm.proto import relay_pb2
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.messages.limits import LIMITS, Count, Number, Size, check_limits
from google.protobuf.descriptor import FieldDescriptor
from support.sources import ROOT

SIZED = {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_DOUBLE}
MESSAGES = {
    name: getattr(module, name) for module in (pb, relay_pb2) for name in module.DESCRIPTOR.message_types_by_name
}
FIELDS = [(made.DESCRIPTOR, field) for made in MESSAGES.values() for field in made.DESCRIPTOR.fields]


def test_every_field_of_variable_size_and_every_real_number_has_a_limit() -> None:
    """A field that is added to swarm.proto or relay.proto is missed here."""
    needed = {(message.name, field.name) for message, field in FIELDS if field.is_repeated or field.type in SIZED}
    declared = {(message, field) for message, fields in LIMITS.items() for field in fields}
    assert needed == declared
    for message, field in FIELDS:
        limit = LIMITS.get(message.name, {}).get(field.name)
        if isinstance(limit, Count) and field.type in SIZED:
            assert limit.each is not None, f"{message.name}.{field.name}"


def filled(field: FieldDescriptor, count: int, size: int) -> Any:
    """A value of a field: of `count` elements, each of that size."""
    values = {FieldDescriptor.TYPE_STRING: "x" * size, FieldDescriptor.TYPE_BYTES: b"x" * size}
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return [MESSAGES[field.message_type.name]()] * count
    value = values.get(field.type, 0)
    return [value] * count if field.is_repeated else value


@pytest.mark.parametrize(
    ("message", "field"),
    [(m, f) for m, f in FIELDS if f.is_repeated or f.type in SIZED - {FieldDescriptor.TYPE_DOUBLE}],
    ids=lambda part: part.name,
)
def test_a_size_is_allowed_up_to_its_limit(message: Any, field: FieldDescriptor) -> None:
    limit = LIMITS[message.name][field.name]
    count = limit.most if isinstance(limit, Count) else 1
    size = limit.each if isinstance(limit, Count) else limit
    largest = size.most if isinstance(size, Size) else 0
    make = MESSAGES[message.name]
    others = {
        name: other.most / 2
        for name, other in LIMITS[message.name].items()
        if isinstance(other, Number) and name != field.name
    }
    check_limits(make(**{**others, field.name: filled(field, count, largest)}))
    too_much = [filled(field, count, largest + 1)] if isinstance(size, Size) else []
    too_much += [filled(field, count + 1, 0)] if isinstance(limit, Count) else []
    assert too_much
    for value in too_much:
        with pytest.raises(RemoteProtocolError, match=f"{field.name} of a {message.name}"):
            check_limits(make(**{**others, field.name: value}))


@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_real_number_out_of_its_range_is_refused(value: float) -> None:
    with pytest.raises(RemoteProtocolError, match="timeout_seconds of a Step"):
        check_limits(pb.ClientFrame(step=pb.Step(timeout_seconds=value)))


def test_limits_hold_at_any_depth() -> None:
    deep = pb.ClientFrame(step=pb.Step(timeout_seconds=1.0, timings=[pb.HopTiming(), pb.HopTiming(peer_id="x" * 65)]))
    with pytest.raises(RemoteProtocolError, match="peer_id of a HopTiming"):
        check_limits(deep)


@pytest.mark.long
def test_the_table_in_the_documents_is_what_the_code_says() -> None:
    checked = subprocess.run([sys.executable, ROOT / "scripts" / "limits", "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
