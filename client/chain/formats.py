"""The formats in which activations travel along a chain: one rule, from the streams that the peers announce.

A peer's stream is the dtype of the hidden states between its blocks.  Sent in that dtype they lose nothing and take no
byte more than they have; the client itself keeps them in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from ...proto.errors import UsageError
from ...proto.wire.frames import WireStep
from ...proto.wire.precision import WIRE_FORMATS
from .machine.events import HopChoice

AUTO = "auto"
"""Every link in the format of the stream that is sent."""


def link_format(chosen: str, sender: str | None, receiver: str | None) -> str:
    """The format between two neighbours of a chain, for a session whose user has `chosen` AUTO or a wire format.

    `sender` and `receiver` are the formats of their streams; None: the client. A first peer that computes in 16 bits
    would round the client's float32 as soon as it had it, so it is sent 16 bits.
    """
    if chosen != AUTO:
        return chosen
    stream = sender or receiver
    assert stream is not None, "a link has a peer at one end"
    return stream


def check_wire_format(chosen: str) -> None:
    """Raises UsageError for what is neither AUTO nor a wire format."""
    if chosen not in (AUTO, *WIRE_FORMATS):
        raise UsageError(f"wire format {chosen[:32]!r} is not known", hint=f"Use {', '.join((AUTO, *WIRE_FORMATS))}.")


class LinkCodec(Protocol):
    """Turns packed activations from the form in which the client keeps them into those of links, and back."""

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the client's own form."""
        ...

    def link_bytes(self, wire_format: str) -> int:
        """Bytes of a token on a link."""
        ...

    def encode(self, data: bytes, wire_format: str) -> bytes:
        """From the client's own form into that of a link."""
        ...

    def decode(self, data: bytes, wire_format: str) -> bytes:
        """The client's own form of what came over a link. Raises as `check`."""
        ...

    def check(self, data: bytes, wire_format: str) -> None:
        """Raises RemoteProtocolError if what came over a link cannot be activations: values that are not finite."""
        ...


@dataclass(frozen=True, slots=True)
class Links:
    """The links of a session's chain, and the client's ends of them."""

    chosen: str
    """AUTO or a wire format."""
    codec: LinkCodec

    def format_from(self, peer: HopChoice) -> str:
        """The format of everything that a peer sends; it never changes."""
        return link_format(self.chosen, peer.stream_format, None)

    def format_to(self, peer: HopChoice, stream_before: str | None) -> str:
        """The format of what a peer is sent behind a peer of that stream; None: behind the client."""
        return link_format(self.chosen, stream_before, peer.stream_format)

    def to_first(self, first: HopChoice, step: WireStep) -> WireStep:
        """A step of the client as it travels to the first peer."""
        return replace(step, data=self.codec.encode(step.data, self.format_to(first, None)))

    def taking_from(self, peer: HopChoice, last: bool) -> Callable[[WireStep], WireStep]:
        """Turns the answers of the last peer into the client's own form; leaves what is to be passed on as it came.

        The function raises RemoteProtocolError for steps that cannot be right.
        """
        wire_format = self.format_from(peer)

        def take(step: WireStep) -> WireStep:
            if last:
                return replace(step, data=self.codec.decode(step.data, wire_format))
            self.codec.check(step.data, wire_format)
            return step

        return take
