"""Converts activations between float32, in which the client keeps them, and the formats on the links of a chain."""

from __future__ import annotations

from ..proto.errors import RemoteProtocolError
from ..proto.wire.precision import WIRE_FORMATS
from ..proto.wire.tensors import WireFormat, finite_rows


class FloatCodec:
    """Converts packed float32 activations of one hidden size to any wire format and back."""

    def __init__(self, hidden_size: int) -> None:
        self._formats = {name: WireFormat.named(name, hidden_size) for name in WIRE_FORMATS}
        self.own = self._formats["float32"]
        """The client's own format, float32."""

    @property
    def token_bytes(self) -> int:
        """Bytes per token in float32."""
        return self.own.token_bytes

    def link_bytes(self, wire_format: str) -> int:
        """Return the bytes per token on a link with this format."""
        return self._formats[wire_format].token_bytes

    def encode(self, data: bytes, wire_format: str) -> bytes:
        """Convert from float32; values beyond the range of a 16-bit format are clamped to it."""
        wire = self._formats[wire_format]
        return data if wire is self.own else wire.encode(self.own.decode(data))

    def decode(self, data: bytes, wire_format: str, guesses: int = 0) -> bytes:
        """Convert to float32, which represents every value of every format exactly. Raises as `check` does."""
        self.check(data, wire_format, guesses)
        wire = self._formats[wire_format]
        return data if wire is self.own else self.own.encode(wire.decode(data))

    def check(self, data: bytes, wire_format: str, guesses: int = 0) -> None:
        """Raise RemoteProtocolError for values that are not finite: they would silently lead to wrong tokens.

        The last `guesses` tokens may have such values: these guesses are lost.
        """
        wire = self._formats[wire_format]
        if not wire.is_finite(data[: len(data) - guesses * wire.token_bytes]):
            raise RemoteProtocolError("the peer sent values that are not finite")

    def finite_tokens(self, data: bytes) -> int:
        """Return how many leading tokens, in float32, have only finite values."""
        return finite_rows(self.own.decode(data))
