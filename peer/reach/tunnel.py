"""A place at one relay, held by the peer that is reached through it: connections end at the peer's own port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ...proto.errors import DeadlineExceeded, PeerUnavailable, RemoteProtocolError, SwarmError
from ...proto.network.address import HostPort, PeerAddress
from ...proto.network.stub import PeerStub
from ...proto.network.transport import Dialer
from ...proto.network.tunnel import BUFFER_BYTES, pump
from ...proto.wire.messages.opening import Signed
from ...proto.wire.messages.relay import AcceptFrame, IncomingFrame, ReservedFrame, ReserveFrame
from ...proto.wire.messages.session import FailureFrame
from ...routing.swarm import PeerId
from ..tasks import cancel_all
from ..timing import PeerTiming

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""The most connections through one relay, whatever it allows."""
ENDING_CONNECTIONS = 4
"""Additional ones: the relay may give the room of a connection away before this peer hears that it has ended."""


class Tunnel:
    """Holds a place at a relay for as long as it runs."""

    def __init__(
        self,
        relay: PeerAddress,
        local: HostPort,
        dialer: Dialer,
        introduce: Callable[[PeerId], Signed],
        timing: PeerTiming,
    ) -> None:
        """`local`: the address on which this peer listens; `introduce` signs a hello."""
        self.relay = relay
        self._local = local
        self._dialer = dialer
        self._introduce = introduce
        self._timing = timing
        self._accepting: set[asyncio.Task[None]] = set()

    async def run(self, on_reserved: Callable[[], None]) -> None:
        """Take connections until cancelled; `on_reserved` is called when the relay has granted a place.

        Raises SwarmError if the relay refuses, or when the connection to it is lost.
        """
        async with self._dialer.dialed_once(self.relay) as stub:
            stream = stub.reserve()
            try:
                async with asyncio.timeout(self._timing.relay_answer_seconds):
                    await stream.write(ReserveFrame(self._introduce(self.relay.peer)))
                    reply = await stream.read()
                if isinstance(reply, FailureFrame):
                    raise reply.error
                if not isinstance(reply, ReservedFrame):
                    raise RemoteProtocolError("the relay does not say whether there is a place")
                on_reserved()
                limit = min(reply.connections + ENDING_CONNECTIONS, MAX_CONNECTIONS)
                while (frame := await stream.read()) is not None:
                    if isinstance(frame, FailureFrame):
                        raise frame.error
                    if not isinstance(frame, IncomingFrame):
                        raise RemoteProtocolError("a relay tells of connections only")
                    if len(self._accepting) < limit:
                        self._begin(stub, frame.token)
                raise PeerUnavailable("the relay has ended the reservation")
            except TimeoutError:
                raise DeadlineExceeded("the relay does not answer") from None
            finally:
                stream.cancel()
                await cancel_all(self._accepting)

    def _begin(self, stub: PeerStub, token: bytes) -> None:
        task = asyncio.create_task(self._accept(stub, token), name="accept from a relay")
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def _accept(self, stub: PeerStub, token: bytes) -> None:
        """Serve one connection; its errors do not affect others."""
        try:
            reader, writer = await asyncio.open_connection(self._local.host, self._local.port, limit=BUFFER_BYTES)
        except OSError as error:
            logger.warning("a connection from the relay finds nothing at %s: %s", self._local, error)
            return
        try:
            stream = stub.accept()
            await stream.write(AcceptFrame(token))
            await pump(stream, reader, writer)
        except SwarmError as error:
            logger.debug("a relayed connection has ended: %s", error)
        finally:
            writer.close()
