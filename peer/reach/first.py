"""The first check whether a joining peer can be reached: it listens during the check, and answers pings only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...proto.errors import PeerUnavailable
from ...proto.identity import Identity
from ...proto.network.transport import Handlers, serve
from ...proto.wire.handshake import PROTOCOL_VERSION
from ...proto.wire.messages.calls import PingReply, PingRequest
from ...proto.wire.messages.session import FailureFrame
from ..tasks import run_to_end
from .ask import ReachAsker
from .verdict import ReachVerdict, judge


async def first_verdict(
    identity: Identity, host: str, port: int, asker: ReachAsker, clock: Callable[[], float], named: int | None = None
) -> tuple[ReachVerdict, int]:
    """Listen on `host:port`, ask others for a verdict, and return it with the port (for 0: the one that was free).

    The others dial the port `named` instead, if it is given (port forwarding).

    Raises UsageError if this peer cannot listen there.
    """

    async def answer(request: PingRequest) -> PingReply:
        return PingReply(clock=clock(), peer_id=identity.peer_id, protocol=PROTOCOL_VERSION)

    async def refuse_stream(stream: Any, _host: str = "") -> None:
        await stream.write(FailureFrame.of(_not_yet()))

    async def refuse_call(request: object, _host: str) -> Any:
        raise _not_yet()

    handlers = Handlers(session=refuse_stream, push=refuse_stream, lookup=refuse_call, ping=answer)
    server, bound = await serve(identity, handlers, host, port)
    try:
        return judge(await asker.ask(named or bound)), bound
    finally:
        await run_to_end(server.stop(grace=0))


def _not_yet() -> PeerUnavailable:
    return PeerUnavailable("the peer is joining and serves nothing yet")
