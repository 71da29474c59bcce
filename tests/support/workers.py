"""A session's worker with stand-ins for everything around it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from blockswarm.peer.session.replay_store import ReplayStore
from blockswarm.peer.session.work.seams import Counters, SessionParts
from blockswarm.peer.session.work.worker import SessionWorker
from blockswarm.proto.wire.frames import WireStep
from blockswarm.proto.wire.handshake import Grant
from blockswarm.routing.swarm import BlockRange, PeerId


class FakeLink:
    """A link that works until it is closed."""

    def __init__(self) -> None:
        self.closed = False
        self.sent: list[WireStep] = []

    @property
    def usable(self) -> bool:
        return not self.closed

    def prepare(self) -> None:
        pass

    async def send(self, step: WireStep) -> None:
        self.sent.append(step)

    async def close(self) -> None:
        self.closed = True


def make_worker(link: FakeLink, **parts: Any) -> SessionWorker:
    """A worker in the middle of a chain whose successor is reached by `link`; it computes nothing unless `parts` do."""
    grant = Grant(
        session_id=bytes(16), epoch=1, client=PeerId("client"), peer=PeerId("me"), blocks=BlockRange(0, 1), kv_tokens=8,
        max_rows=1, predecessor=None, successor=PeerId("next"), wire_format="float32", input_format="float32",
        expires_at_seconds=0.0, model_digest="",
    )  # fmt: skip
    nothing: Any = SimpleNamespace()
    usual: dict[str, Any] = {
        "compute": nothing, "replay": ReplayStore(), "outlet": nothing, "counters": Counters(), "clock": lambda: 0.0,
        "take_turn": nothing, "token_bytes": 4, "lengths": tuple,
    }  # fmt: skip
    return SessionWorker(grant, link, SessionParts(**{**usual, **parts}))
