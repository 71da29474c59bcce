"""What a session of the client is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..proto.errors import SwarmError
from ..proto.handshake import SwarmKeyProof
from ..proto.identity import Identity
from ..routing.swarm import BlockRange, PeerId, RequestSpec

if TYPE_CHECKING:
    from ..proto.transport import Dialer
    from .hop import HopChoice


class ChainRouter(Protocol):
    """Chooses peers from what is known of the swarm."""

    async def choose(
        self, blocks: BlockRange, excluded: frozenset[PeerId], request: RequestSpec
    ) -> tuple[HopChoice, ...]:
        """The cheapest chain over `blocks` without the excluded peers. Raises NoChainError, PeerBusy if all is full."""
        ...

    def record(self, peer: PeerId) -> bytes | None:
        """The newest signed record of a peer, if it is still known."""
        ...

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        """Do not choose that peer for a while."""
        ...

    def leaving(self, peer: PeerId) -> bool:
        """Whether the peer says that it is about to leave."""
        ...

    async def refresh(self) -> None:
        """Look at the swarm again."""
        ...

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        """Time of one step of `tokens` tokens through the chain, from announced costs and measured round trips."""
        ...

    def clock_offset_seconds(self, peer: PeerId) -> float:
        """The peer's clock minus ours."""
        ...


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something worth knowing about a session, as it happens.

    `kind` is one of "opened", "hop-lost", "rerouted", "relayed", "stalled", "replay" (`peer` is the source of the
    tokens, None: this client), "rebuilt" and "handed-over" (`peer` is the one that was left).
    """

    kind: str
    peer: PeerId | None = None
    detail: str = ""


def _ignore(event: SessionEvent) -> None:
    pass


@dataclass(frozen=True)
class SessionConfig:
    """Shared by the sessions of one model."""

    identity: Identity
    dialer: Dialer
    router: ChainRouter
    model_digest: str
    num_blocks: int
    wire_format: str
    token_bytes: int
    swarm_key: SwarmKeyProof | None = None
    relay_always: bool = False
    """Hub-and-spoke: every output comes back through the client."""
    on_event: Callable[[SessionEvent], None] = _ignore
    clock: Callable[[], float] = time.time
    """Unix seconds."""
