"""Why a client found no peer of its model, as far as the initial peers tell."""

from __future__ import annotations

from collections.abc import Sequence

from ...proto.errors import ClockSkew, ModelMismatch, describe_clocks
from ...proto.wire.messages.calls import PingReply
from ...proto.wire.timing import HELLO_CLOCK_SKEW_SECONDS


def raise_reason(met: Sequence[tuple[PingReply, float]], model_digest: str) -> None:
    """Look for a reason in the status and the clock offset, in seconds, of the initial peers that answer.

    Raises ClockSkew, ModelMismatch; returns where they know of none.
    """
    skews = [offset for _, offset in met if abs(offset) > HELLO_CLOCK_SKEW_SECONDS]
    if met and len(skews) == len(met):
        behind = -min(skews, key=abs)
        raise ClockSkew(describe_clocks("this machine's clock", "the clocks of the initial peers", behind))
    others = [reply for reply, _ in met if reply.model_digest and reply.model_digest != model_digest]
    if met and len(others) == len(met):
        status = others[0]
        raise ModelMismatch(
            f"the initial peers serve {printable(status.model_name) or 'another model'} ({status.model_digest[:12]}),"
            f" not this model ({model_digest[:12]})"
        )


def printable(text: str) -> str:
    """A peer's own text, at most 80 characters, as it may be written to a terminal."""
    return "".join(char for char in text[:80] if char.isprintable())
