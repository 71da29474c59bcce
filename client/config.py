"""The parts that a session of the client is made of."""

from __future__ import annotations

import enum
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..proto.errors import SwarmError, UsageError
from ..proto.identity import Identity
from ..proto.wire.handshake import SwarmKeyProof
from ..routing.swarm import BlockRange, Coordinate, PeerId, RequestSpec
from .timing import MOST_PATIENCE_SECONDS, PATIENCE_SECONDS, ClientTiming

if TYPE_CHECKING:
    from ..proto.network.transport import Dialer
    from .chain.formats import LinkCodec
    from .chain.machine.events import HopChoice, Layout
    from .chain.prefixes import PageNames


logger = logging.getLogger(__name__)


class HeadForm(enum.StrEnum):
    """The ways to hold the head."""

    AUTO = "auto"
    """In the fastest form of its numbers."""
    PLAIN = "plain"
    """As torch has it."""
    INT8 = "int8"
    """Rounded."""

    @classmethod
    def parse(cls, text: str) -> HeadForm:
        """Raises UsageError for a way that there is not."""
        try:
            return cls(text)
        except ValueError:
            raise UsageError(
                f"there is no way {text!r} to hold the head", hint=f"Choose one of {', '.join(cls)}."
            ) from None


def checked_patience(seconds: float) -> float:
    """`seconds`, if they are a time to wait for room. Raises UsageError."""
    if not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_PATIENCE_SECONDS:
        raise UsageError(
            f"patience is between 0 and {MOST_PATIENCE_SECONDS} seconds, not {seconds!r}",
            hint="It is how long a session waits for room, and a running one for a replacement.",
        )
    return seconds


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
    its place and the estimate), "waiting" (nobody has some of the blocks; `detail` says which, and for how long it
    waits), "adopted" (all peers held a part of the prompt), "hop-lost", "rerouted", "relayed",
    "stalled", "replay" (`peer` is the source of the tokens, None: this client), "rebuilt" and "handed-over" (`peer` is
    the one that was left).
    """

    kind: str
    peer: PeerId | None = None
    detail: str = ""


def _nowhere() -> None:
    return None


def _ignore(event: SessionEvent) -> None:
    pass


OnEvent = Callable[[SessionEvent], None]
"""Hears of events; called in any thread."""


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
    place: Callable[[], Coordinate | None] = _nowhere
    """Where this client is, as peers may know it."""
    clock: Callable[[], float] = time.time
    """Unix seconds."""
    timing: ClientTiming = field(default_factory=ClientTiming)


class ListenerError(Exception):
    """A function that is told of events failed; never leaves this module."""


@contextmanager
def _listeners_code() -> Iterator[None]:
    """For code of the user's in the network thread: no session ends because of it."""
    try:
        yield
    except Exception as error:
        raise ListenerError from error


def shielded(on_event: Callable[[SessionEvent], None]) -> Callable[[SessionEvent], None]:
    """`on_event`, whose failures are in the log and are no session's. Raises UsageError for what is no function."""
    if not callable(on_event):
        raise UsageError(f"on_event is a function that is told of events, not {on_event!r}", hint="Try on_event=print.")

    def tell(event: SessionEvent) -> None:
        try:
            with _listeners_code():
                on_event(event)
        except ListenerError as error:
            logger.error("on_event failed when it was told of %r", event.kind, exc_info=error.__cause__)

    return tell


class Hears(Protocol):
    """Hears the events of a session."""

    def hear(self, event: SessionEvent) -> None: ...


def heard_by(cache: Hears) -> Callable[[SessionEvent], None]:
    """Tells a cache of events without keeping it: its session would never end otherwise when nobody refers to it."""
    known = weakref.ref(cache)

    def hear(event: SessionEvent) -> None:
        heard = known()
        if heard is not None:
            heard.hear(event)

    return hear
