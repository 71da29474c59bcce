"""A peer whose answers are its own but for some values: zero, huge, not a number, names of others, escapes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from blockswarm.proto.wire.messages.streams import PEER_FRAME, PeerFrame
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_KINDS: dict[int, list[Any]] = {
    FieldDescriptor.TYPE_UINT32: [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1],
    FieldDescriptor.TYPE_UINT64: [0, 1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**64 - 1],
    FieldDescriptor.TYPE_DOUBLE: [0.0, -0.0, -1.0, float("nan"), float("inf"), 1e12, -1e12, 1e-320, 1e308],
    FieldDescriptor.TYPE_BOOL: [False, True],
    FieldDescriptor.TYPE_STRING: ["", "\x1b[31mred", "\u202ebackwards", "x" * 64, "x" * 4000],
}
_COUNTS = [1, 5, 256, 1024, 1025]


class Liar:
    """Changes the values of some frames: `LinkFaults.alter` of the links to a peer.

    The activations stay as they are: a peer that computes other values cannot be told from one with other weights.
    """

    def __init__(self, rng: random.Random, share: float, names: Sequence[str]) -> None:
        """`share` of the frames are changed; `names` are those of peers."""
        self.changed = 0
        self._rng = rng
        self._share = share
        self._values = _KINDS | {FieldDescriptor.TYPE_STRING: [*_KINDS[FieldDescriptor.TYPE_STRING], *names]}

    def __call__(self, frame: PeerFrame) -> bytes:
        message = PEER_FRAME.pack(frame)
        if self._rng.random() < self._share:
            self.changed += 1
            if self._rng.random() < 0.05:
                return self._rng.randbytes(20)
            places = list(_places(message))
            for message_with, field in self._rng.choices(places, k=self._rng.randint(1, 2)) if places else ():
                self._change(message_with, field)
        return message.SerializeToString()  # type: ignore[no-any-return]

    def _change(self, message: Any, field: FieldDescriptor) -> None:
        values = self._values.get(field.type, [])
        if not field.is_repeated:
            setattr(message, field.name, self._rng.choice(values))
            return
        elements = getattr(message, field.name)
        if self._rng.random() < 0.25:
            del elements[:]
        elif values:
            elements.extend(self._rng.choice(values) for _ in range(self._rng.choice(_COUNTS)))
        elif field.message_type is not None:
            for _ in range(self._rng.choice(_COUNTS)):
                elements.add()
            for _, inner in list(_places(elements[-1])):
                self._change(elements[-1], inner)


def _places(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """The fields that can be changed, in all messages that are there; not the bytes of tensors."""
    for field in message.DESCRIPTOR.fields:
        is_message, name = field.type == FieldDescriptor.TYPE_MESSAGE, field.name
        one_of = field.containing_oneof
        if field.is_repeated:
            yield message, field
            for element in getattr(message, name) if is_message else ():
                yield from _places(element)
        elif is_message:
            if message.HasField(name):
                yield from _places(getattr(message, name))
        elif field.type in _KINDS and (one_of is None or message.WhichOneof(one_of.name) == name):
            yield message, field
