"""Explains why a client found no peer of its model, as far as the initial peers tell."""

from __future__ import annotations

from collections.abc import Sequence

from ...proto.errors import ClockSkew, ModelMismatch, describe_clocks
from ...proto.wire.messages.calls import PingReply
from ...proto.wire.timing import HELLO_CLOCK_SKEW_SECONDS


def raise_reason(met: Sequence[tuple[PingReply, float]], model_digest: str) -> None:
    """Look for a reason in the status and clock offset (seconds) of each initial peer that answered.

    Raises ClockSkew, ModelMismatch; returns if there is no such reason.
    """
    skews = [offset for _, offset in met if abs(offset) > HELLO_CLOCK_SKEW_SECONDS]
    if met and len(skews) == len(met):
        behind = -min(skews, key=abs)
        raise ClockSkew(describe_clocks("this machine's clock", "the clocks of the initial peers", behind))
    others = [reply for reply, _ in met if reply.model_digest and reply.model_digest != model_digest]
    if met and len(others) == len(met):
        status = others[0]
        raise ModelMismatch(
            f"the initial peers serve {printable(status.model_name) or 'another model'}"
            f" ({printable(status.model_digest)[:12]}), not this model ({model_digest[:12]})"
        )


def printable(text: str) -> str:
    """Return at most 80 characters of a peer's text, without those that are unsafe to print to a terminal."""
    return "".join(char for char in text[:80] if char.isprintable())
