"""Events that happen to a chain, and actions that answer them: the two vocabularies of `ChainMachine`.

Events come in, actions go out.  Both are frozen values without any I/O, so a test can play any history of peers, links
and time against the machine, and a log of them explains every decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

from ....proto.errors import SwarmError
from ....proto.network.address import Reach
from ....proto.wire.frames import Rebuild, WireStep
from ....routing.swarm import BlockRange, PeerId
from ....routing.trust import Evidence
from ...config import SessionEvent
from ..operation import Operation

HopId = NewType("HopId", int)
"""One stream to one peer; a peer that is opened again gets another number."""

Layout = tuple[tuple[PeerId, BlockRange], ...]
"""The peers of a chain in order, and the blocks that each computes."""


@dataclass(frozen=True, slots=True)
class HopChoice:
    """A peer that the router chose, with all that is needed to reach it."""

    address: Reach
    blocks: BlockRange
    record: bytes
    """Its signed record, from which its predecessor takes the address."""
    wait_seconds: float = 0.0
    """Until it is expected to have room; 0: it should have room now."""
    numeric_format: str = ""
    """The format in which it computes, as it announces."""
    weights: Evidence = Evidence.UNOPPOSED
    """Why the weights that it announces are believed."""
    gap_seconds: float = 0.0
    """How much sooner the request may be done on another chain than the one that it was chosen for.

    0: that is proven to be the best. More: the search ended with its budget; infinite if nothing is known of others.
    """
    stream_format: str = "float32"
    """The dtype of its hidden states between blocks, likewise."""

    @property
    def peer(self) -> PeerId:
        return self.address.peer

    @property
    def arithmetic(self) -> str:
        """Everything about the peer, beside the model, that decides which outputs follow from its inputs."""
        return f"{self.blocks} {self.numeric_format} {self.stream_format}"


def gap_of(choices: Sequence[HopChoice]) -> float:
    """The `gap_seconds` of a chain, which may have been chosen in several parts."""
    return max((choice.gap_seconds for choice in choices), default=0.0)


# --- events: what the caller wants ---


@dataclass(frozen=True, slots=True)
class Prepare:
    """Open a chain, and say which first tokens of the `rows` rows that are about to come all of its peers hold."""

    rows: int


@dataclass(frozen=True, slots=True)
class Begin:
    """Carry out an operation, after those that have begun already."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Close:
    """End the session on every peer."""


# --- events: what the view of the swarm answers ---


@dataclass(frozen=True, slots=True)
class Chosen:
    """The peers that fill the gaps of `Choose`, in the order of their blocks."""

    number: int
    choices: tuple[HopChoice, ...]


@dataclass(frozen=True, slots=True)
class NotChosen:
    """Nobody fills the gaps: NoChainError, or PeerBusy where only room is missing."""

    number: int
    error: SwarmError


@dataclass(frozen=True, slots=True)
class Looked:
    """The look at the swarm is over; `error` if nobody answered."""

    error: SwarmError | None


@dataclass(frozen=True, slots=True)
class NetworkBack:
    """Some node answered over a new connection: this machine's network works."""


@dataclass(frozen=True, slots=True)
class NetworkAway:
    """No node answered."""


# --- events: what a peer of the chain says, or its stream ---


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer has room for the session."""

    hop: HopId
    credits: int
    held_tokens: tuple[int, ...] = ()
    """Per row that was named at the opening, how many of its first tokens the peer holds."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The session waits for room at the peer."""

    hop: HopId
    place: int
    """1: the next one."""
    estimate_seconds: float


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The peer has its new neighbours."""

    hop: HopId
    epoch: int
    applied_seq: int
    """The last step that it has applied."""
    buffer_complete: bool
    """Whether it can replay to its successor all that it has applied."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The peer's attention cache is what it was asked to become in that epoch."""

    hop: HopId
    epoch: int


@dataclass(frozen=True, slots=True)
class Exported:
    """A part of the peer's attention cache is on its way to the target of `Export`, which answers with `Rebuilt`."""

    hop: HopId
    round: int
    applied_seq: int
    """The part is of the state after this step..."""
    starts: tuple[int, ...]
    """...and has of every row the tokens from here..."""
    lengths: tuple[int, ...]
    """...to here."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A step came back: an answer from the last peer, or something to pass on from another one."""

    hop: HopId
    step: WireStep


@dataclass(frozen=True, slots=True)
class Probed:
    """Where the peer is."""

    hop: HopId
    nonce: int
    received_seq: int
    applied_seq: int


@dataclass(frozen=True, slots=True)
class PushBroken:
    """The peer cannot push to its successor."""

    hop: HopId
    epoch: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream ended: the peer refused, failed, is gone, or broke the protocol."""

    hop: HopId
    error: SwarmError


@dataclass(frozen=True, slots=True)
class Late:
    """The moment has come that the machine asked to be woken at (`ChainMachine.wake_at`)."""


Event = (
    Prepare | Begin | Close | Chosen | NotChosen | Looked | NetworkBack | NetworkAway
    | Opened | Queued | Rerouted | Rebuilt | Exported | Answered | Probed | PushBroken | Lost | Late
)  # fmt: skip


# --- actions ---


@dataclass(frozen=True, slots=True)
class Choose:
    """Have the router fill what `kept` leaves of the model, without the peers in `excluded`; answer with `number`."""

    number: int
    kept: Layout
    excluded: frozenset[PeerId]
    check: bool = False
    """Choose only peers that answer now: a repair has no time for those that do not."""


@dataclass(frozen=True, slots=True)
class Look:
    """Look at the swarm again; answered by `Looked`."""


@dataclass(frozen=True, slots=True)
class AskAnybody:
    """Find out whether any known node answers over a new connection: `NetworkBack` or `NetworkAway`.

    The chain's own peers are asked as well: in a small swarm there are no others.
    """


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A peer's place in the chain, as it is told."""

    epoch: int
    predecessor: PeerId | None
    """None: this client."""
    successor: PeerId | None
    successor_record: bytes
    relay: bool
    """Outputs come back here instead of going to the successor."""
    stream_before: str | None = None
    """The format of the predecessor's stream; None: there is none but this client."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open the session on a peer; steps may follow at once."""

    hop: HopId
    choice: HopChoice
    neighbours: Neighbours
    wait_seconds: float
    """How long the session may wait for room; 0: it is refused where there is none."""
    formats_before: tuple[str, ...] = ()
    """`HopChoice.arithmetic` of the peers before it, on which the names of its prefix pages depend."""


@dataclass(frozen=True, slots=True)
class Reroute:
    """Give a peer new neighbours."""

    hop: HopId
    neighbours: Neighbours
    forget_prefixes: bool = False
    """The pages that it computes do not deserve the names that were given to them at the opening."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a step to a peer."""

    hop: HopId
    step: WireStep


@dataclass(frozen=True, slots=True)
class Replay:
    """Have `source` send what it sent before to its successor; None: the client sends its own inputs to `target`."""

    source: HopId | None
    target: HopId
    epoch: int
    lengths: tuple[int, ...]
    mark: Rebuild
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask a peer where it is."""

    hop: HopId
    nonce: int


@dataclass(frozen=True, slots=True)
class Export:
    """Have a part of the attention cache of `source` sent to `target`."""

    source: HopId
    target: HopId
    round: int
    starts: tuple[int, ...]
    """Per row, the tokens that the target has."""
    max_tokens: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class StopExport:
    """Pass no more of the cache on."""

    source: HopId


@dataclass(frozen=True, slots=True)
class Leave:
    """End the session on one peer."""

    hop: HopId


@dataclass(frozen=True, slots=True)
class Ban:
    """Tell the swarm's view that a peer failed, or is full (PeerBusy)."""

    peer: PeerId
    error: SwarmError


@dataclass(frozen=True, slots=True)
class Pardon:
    """Lift the bans of those peers and dial anew: the fault was this machine's network."""

    peers: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the user."""

    event: SessionEvent


@dataclass(frozen=True, slots=True)
class Ready:
    """The answer to `Prepare`: per row, how many of its first tokens every peer holds."""

    held_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """An operation is over; its answers are complete. Operations are done in the order in which they began."""

    operation: Operation
    answers: tuple[bytes, ...]
    """The packed answers of each step."""


@dataclass(frozen=True, slots=True)
class Fail:
    """No repair can help: the session is of no more use."""

    error: SwarmError


Action = (
    Choose | Look | AskAnybody | Open | Reroute | Send | Replay | Probe | Export | StopExport | Leave
    | Ban | Pardon | Tell | Ready | Done | Fail
)  # fmt: skip
