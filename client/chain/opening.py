"""What a peer is told when a session is opened or rerouted there: who asks, with which right, and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...proto import swarm_pb2 as pb
from ...proto.wire.handshake import Grant, sign_capability, sign_hello
from ...proto.wire.prefixes import Digests, encode_prefixes
from ...proto.wire.timing import CAPABILITY_SECONDS
from ..config import SessionConfig
from .hop import HopStream


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The hops before and after one; None: the client."""

    before: HopStream | None
    after: HopStream | None


class Introduction:
    """Makes the messages that introduce one session to the peers of its chain, signed by the client."""

    def __init__(self, config: SessionConfig, session_id: bytes, kv_tokens: int, max_rows: int) -> None:
        self._config = config
        self._session_id = session_id
        self._kv_tokens = kv_tokens
        self._max_rows = max_rows

    def opening(
        self,
        hop: HopStream,
        neighbours: Neighbours,
        epoch: int,
        *,
        pages: Sequence[Digests] = (),
        successor_record: bytes = b"",
        relay: bool,
        wait_seconds: float,
    ) -> pb.Open:
        """The first message on a stream. `pages` have the names that they have at this peer.

        With `wait_seconds` the session waits for room, without it is refused where there is none.
        """
        config = self._config
        hello = sign_hello(config.identity, hop.peer, self._session_id, config.clock(), config.swarm_key)
        capability = self._capability(hop, neighbours, epoch)
        message = pb.Open(hello=hello, capability=capability, successor_record=successor_record, relay=relay)
        message.prefixes.extend(encode_prefixes(pages))
        if wait_seconds > 0:
            message.wait, message.wait_seconds = True, wait_seconds
        return message

    def rerouting(
        self, hop: HopStream, neighbours: Neighbours, epoch: int, *, successor_record: bytes, relay: bool
    ) -> pb.Reroute:
        """New neighbours for a hop whose session is open."""
        capability = self._capability(hop, neighbours, epoch)
        return pb.Reroute(capability=capability, successor_record=successor_record, relay=relay)

    def _capability(self, hop: HopStream, neighbours: Neighbours, epoch: int) -> pb.Signed:
        config = self._config
        grant = Grant(
            session_id=self._session_id,
            epoch=epoch,
            client=config.identity.peer_id,
            peer=hop.peer,
            blocks=hop.blocks,
            kv_tokens=self._kv_tokens,
            max_rows=self._max_rows,
            predecessor=neighbours.before.peer if neighbours.before else None,
            successor=neighbours.after.peer if neighbours.after else None,
            wire_format=config.wire_format,
            expires_at_seconds=config.clock() + CAPABILITY_SECONDS,
            model_digest=config.model_digest,
        )
        return sign_capability(config.identity, grant)
