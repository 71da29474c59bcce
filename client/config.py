"""The parts that a session of the client is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..proto.errors import SwarmError
from ..proto.identity import Identity
from ..proto.wire.handshake import SwarmKeyProof
from ..routing.swarm import BlockRange, PeerId, RequestSpec
from .timing import PATIENCE_SECONDS, ClientTiming

if TYPE_CHECKING:
    from ..proto.network.transport import Dialer
    from .chain.formats import LinkCodec
    from .chain.machine.events import HopChoice, Layout
    from .chain.prefixes import PageNames


class ChainRouter(Protocol):
    """Chooses peers from what is known of the swarm."""

    async def fill(
        self,
        kept: Layout,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
        *,
        check: bool = False,
    ) -> tuple[HopChoice, ...]:
        """The peers that fill what `kept` leaves of the model, without those in `excluded` and `kept`, in order.

        They are soonest done, with the wait for room counted; with `min_precision` only peers that compute at least
        as precisely, with `check` only peers that answer a ping now. Raises NoChainError, or PeerBusy if nobody
        knows when there will be room.
        """
        ...

    def record(self, peer: PeerId) -> bytes | None:
        """The newest signed record of a peer, if it is still known."""
        ...

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        """That peer failed: do not choose it for a while; after PeerBusy: it has no room until the time given."""
        ...

    def pardon(self, peers: frozenset[PeerId]) -> None:
        """Those peers were banned for what was this machine's network: lift the bans."""
        ...

    async def reaches_anybody(self, seconds: float) -> bool:
        """Whether any known node answers within `seconds` over a new connection."""
        ...

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        """Whether the peer says that it is about to leave, or to drop some of the blocks."""
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

    `kind` is one of "opened", "refused" (a peer is full), "queued" (`peer` has the session wait for room; `detail` is
    its place and the estimate), "adopted" (all peers held a part of the prompt), "hop-lost", "rerouted", "relayed",
    "stalled", "replay" (`peer` is the source of the tokens, None: this client), "rebuilt" and "handed-over" (`peer` is
    the one that was left).
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
    """That of all links; AUTO: each in the format of the stream that is sent."""
    codec: LinkCodec
    swarm_key: SwarmKeyProof | None = None
    relay_always: bool = False
    """Hub-and-spoke: every output comes back through the client."""
    page_names: PageNames | None = None
    """Names under which peers keep attention caches for later sessions; None: they are not asked to."""
    min_precision: str | None = None
    """Only peers that compute at least as precisely as this numeric format."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long a session waits for room, and a running one for peers that are gone to be replaced."""
    on_event: Callable[[SessionEvent], None] = _ignore
    clock: Callable[[], float] = time.time
    """Unix seconds."""
    timing: ClientTiming = field(default_factory=ClientTiming)
