"""Decides in which formats activations travel along a chain, from the stream formats that the peers announce.

A peer's stream is the dtype of the hidden states between its blocks.  In that dtype they are sent without loss and
without wasted bytes; the client itself keeps them in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ...proto.errors import UsageError
from ...proto.wire.frames import WireStep
from ...proto.wire.precision import WIRE_FORMATS
from ...proto.wire.steps import StepPlan
from .machine.events import HopChoice
from .operation import join_bytes

AUTO = "auto"
"""Use on every link the format of the sender's stream."""


def link_format(chosen: str, sender: str | None, receiver: str | None) -> str:
    """Return the format of the link between two neighbours; `chosen` is the user's choice, AUTO or a wire format.

    `sender` and `receiver` are the formats of their streams; None: the client. The client sends in the format of the
    first peer's stream: a peer that computes in 16 bits would round float32 on arrival.
    """
    if chosen != AUTO:
        return chosen
    stream = sender or receiver
    assert stream is not None, "a link has a peer at one end"
    return stream


def check_wire_format(chosen: str) -> None:
    """Raise UsageError unless `chosen` is AUTO or a wire format."""
    if chosen not in (AUTO, *WIRE_FORMATS):
        raise UsageError(f"wire format {chosen[:32]!r} is not known", hint=f"Use {', '.join((AUTO, *WIRE_FORMATS))}.")


class LinkCodec(Protocol):
    """Converts packed activations between the client's own format and those of links."""

    @property
    def token_bytes(self) -> int:
        """Bytes per token in the client's own format."""
        ...

    def link_bytes(self, wire_format: str) -> int:
        """Return the bytes per token on a link with this format."""
        ...

    def encode(self, data: bytes, wire_format: str) -> bytes:
        """Convert from the client's own format to that of a link."""
        ...

    def decode(self, data: bytes, wire_format: str, guesses: int = 0) -> bytes:
        """Convert from the format of a link to the client's own. Raises as `check` does."""
        ...

    def check(self, data: bytes, wire_format: str, guesses: int = 0) -> None:
        """Raise RemoteProtocolError for values that are not finite, in other tokens than the last `guesses`."""
        ...

    def finite_tokens(self, data: bytes) -> int:
        """Return how many leading tokens, in the client's own format, have only finite values."""
        ...


@dataclass(frozen=True, slots=True)
class Links:
    """The formats of a session's links, and the conversions at the client's ends."""

    chosen: str
    """AUTO or a wire format."""
    codec: LinkCodec

    def format_from(self, peer: HopChoice) -> str:
        """Return the format of everything that a peer sends; it never changes within a session."""
        return link_format(self.chosen, peer.stream_format, None)

    def format_to(self, peer: HopChoice, stream_before: str | None) -> str:
        """Return the format that a peer receives from a predecessor with this stream; None: from the client."""
        return link_format(self.chosen, stream_before, peer.stream_format)

    def to_first(self, first: HopChoice, step: WireStep) -> WireStep:
        """Convert a step of the client to the format that the first peer receives."""
        return replace(step, data=self.codec.encode(step.data, self.format_to(first, None)))

    def taking_from(self, peer: HopChoice, last: bool) -> Callable[[WireStep], WireStep]:
        """Return a function that checks a peer's steps, and decodes them if it is the `last` peer of the chain.

        Steps of other peers are to be passed on and stay as they came. The function raises RemoteProtocolError for
        values that are not finite, except those of lost guesses.
        """
        wire_format = self.format_from(peer)

        def take(step: WireStep) -> WireStep:
            if last:
                return replace(step, data=self.codec.decode(step.data, wire_format, step.plan.answered_guesses))
            self.codec.check(step.data, wire_format, step.plan.guessed)
            return step

        return take

    def lost_guesses(self, steps: Sequence[StepPlan], answers: Sequence[bytes]) -> int:
        """Return how many of the guesses at the end of an operation are lost, if all of them are answered."""
        guesses = sum(step.guessed for step in steps)
        if not guesses or guesses != sum(step.answered_guesses for step in steps):
            return 0
        return guesses - self.codec.finite_tokens(join_bytes(answers)[-guesses * self.codec.token_bytes :])
