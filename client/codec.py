"""Activations as the client keeps them, float32, and as they travel on the links of a chain."""

from __future__ import annotations

from ..proto.errors import RemoteProtocolError
from ..proto.wire.precision import WIRE_FORMATS
from ..proto.wire.tensors import WireFormat


class FloatCodec:
    """Turns packed float32 activations of one hidden size into any wire format, and back."""

    def __init__(self, hidden_size: int) -> None:
        self._formats = {name: WireFormat.named(name, hidden_size) for name in WIRE_FORMATS}
        self.own = self._formats["float32"]
        """The client's own form."""

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in float32."""
        return self.own.token_bytes

    def link_bytes(self, wire_format: str) -> int:
        """Bytes of a token on a link."""
        return self._formats[wire_format].token_bytes

    def encode(self, data: bytes, wire_format: str) -> bytes:
        """From float32; a value too large for a 16-bit format becomes its largest one."""
        wire = self._formats[wire_format]
        return data if wire is self.own else wire.encode(self.own.decode(data))

    def decode(self, data: bytes, wire_format: str) -> bytes:
        """Into float32, which holds every value of every format. Raises as `check`."""
        self.check(data, wire_format)
        wire = self._formats[wire_format]
        return data if wire is self.own else self.own.encode(wire.decode(data))

    def check(self, data: bytes, wire_format: str) -> None:
        """Raises RemoteProtocolError for values that are not finite: tokens chosen from them would be wrong without a
        word."""
        if not self._formats[wire_format].is_finite(data):
            raise RemoteProtocolError("the peer sent values that are not finite")
