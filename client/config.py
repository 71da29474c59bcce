"""The configuration of the client's sessions: settings, events, and the router that chooses their peers."""

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
    """How the client holds the model's output head."""

    AUTO = "auto"
    """The form that computes fastest on this machine and keeps every weight exact."""
    PLAIN = "plain"
    """torch's own linear."""
    INT8 = "int8"
    """Weights rounded to int8."""

    @classmethod
    def parse(cls, text: str) -> HeadForm:
        """Parse a form by its name. Raises UsageError for an unknown one."""
        try:
            return cls(text)
        except ValueError:
            raise UsageError(
                f"there is no way {text!r} to hold the head", hint=f"Choose one of {', '.join(cls)}."
            ) from None


def checked_patience(seconds: float) -> float:
    """Return `seconds` if they are a valid patience, else raise UsageError."""
    if not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_PATIENCE_SECONDS:
        raise UsageError(
            f"patience is between 0 and {MOST_PATIENCE_SECONDS} seconds, not {seconds!r}",
            hint="It is how long a session waits for room, and for blocks that no peer serves any more.",
        )
    return seconds


class SwarmFacts(Protocol):
    """Look-ups in the client's view of the swarm, which do no I/O."""

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        """Predict a step of `tokens` tokens through the chain, from announced costs and measured round trips."""
        ...

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        """Return whether the peer announces that it is about to leave, or to drop some of the blocks."""
        ...

    def record(self, peer: PeerId) -> bytes | None:
        """Return the newest signed record of a peer, or None if the peer is no longer known."""
        ...

    def clock_offset_seconds(self, peer: PeerId) -> float:
        """Return the peer's clock minus ours."""
        ...


class ChainRouter(SwarmFacts, Protocol):
    """Chooses the peers of a chain from what the client knows of the swarm."""

    async def fill(
        self,
        kept: Layout,
        excluded: frozenset[PeerId],
        request: RequestSpec,
        min_precision: str | None = None,
        *,
        check: bool = False,
    ) -> tuple[HopChoice, ...]:
        """Return the peers, in order, for the blocks that `kept` does not cover; none from `excluded` or `kept`.

        The choice minimises the time until the request is done, including the wait for room. `min_precision` admits
        only peers that compute at least as precisely, `check` only peers that answer a ping now. Raises NoChainError,
        or PeerBusy if no peer says when there will be room.
        """
        ...

    def ban(self, peer: PeerId, error: SwarmError) -> None:
        """Do not choose a peer that failed for a while; after PeerBusy, not before the time that the peer gave."""
        ...

    def pardon(self, peers: frozenset[PeerId]) -> None:
        """Lift the bans of peers that were banned for a failure of this machine's own network."""
        ...

    async def reaches_anybody(self, seconds: float) -> bool:
        """Return whether any known node answers within `seconds` over a new connection."""
        ...

    def seen_whole(self, min_precision: str | None = None) -> bool:
        """Return whether all blocks were once seen served together, at least as precisely as `min_precision`."""
        ...

    async def refresh(self) -> None:
        """Look at the swarm again."""
        ...


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something that has just happened to a session and that its user may want to know.

    `kind` is one of "opened", "refused" (a peer is full), "queued" (the session waits for room at `peer`; `detail` is
    its place in the queue and the estimate), "waiting" (no peer serves some of the blocks; `detail` says which, and how
    long the session waits), "adopted" (all peers held the cache of a part of the prompt), "hop-lost", "rerouted",
    "relayed", "stalled", "replay" (`peer` is the source of the tokens, None: this client), "rebuilt" and "handed-over"
    (`peer` is the one that was left).
    """

    kind: str
    peer: PeerId | None = None
    detail: str = ""


def _nowhere() -> None:
    return None


def _ignore(event: SessionEvent) -> None:
    pass


OnEvent = Callable[[SessionEvent], None]
"""A listener for events; called from any thread."""


@dataclass(frozen=True)
class SessionConfig:
    """The configuration that all sessions of one model share."""

    identity: Identity
    dialer: Dialer
    router: ChainRouter
    model_digest: str
    num_blocks: int
    wire_format: str
    """The format on every link; AUTO: on each link, that of the sender's stream."""
    codec: LinkCodec
    swarm_key: SwarmKeyProof | None = None
    relay_always: bool = False
    """Hub-and-spoke: every output comes back through the client."""
    page_names: PageNames | None = None
    """Names under which peers keep attention caches for later sessions; None: peers keep none."""
    min_precision: str | None = None
    """Use only peers that compute at least as precisely as this numeric format."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long a session waits for room, and for blocks that no peer serves any more."""
    on_event: Callable[[SessionEvent], None] = _ignore
    place: Callable[[], Coordinate | None] = _nowhere
    """This client's network coordinate, as peers may know it."""
    clock: Callable[[], float] = time.time
    """Unix seconds."""
    timing: ClientTiming = field(default_factory=ClientTiming)


class ListenerError(Exception):
    """An event listener raised; never leaves this module."""


@contextmanager
def _listeners_code() -> Iterator[None]:
    """Run the user's code in the network thread: no session ends because it fails."""
    try:
        yield
    except Exception as error:
        raise ListenerError from error


def shielded(on_event: Callable[[SessionEvent], None]) -> Callable[[SessionEvent], None]:
    """Wrap `on_event` so that its failures are logged and fail no session. Raises UsageError if it is not callable."""
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
    """Return a listener that holds `cache` weakly.

    A strong reference would keep the cache, and with it its session, alive after its last user has dropped it.
    """
    known = weakref.ref(cache)

    def hear(event: SessionEvent) -> None:
        heard = known()
        if heard is not None:
            heard.hear(event)

    return hear
