"""The events that `ChainMachine` takes in, and the actions that it returns.

Both are frozen values without any I/O, so a test can play any history of peers, links and time against the machine, and
a log of them explains every decision.
"""

from __future__ import annotations

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
"""Identifies one stream to one peer; a peer that is opened again gets a new id."""

Layout = tuple[tuple[PeerId, BlockRange], ...]
"""The peers of a chain in order, and the blocks that each computes."""


@dataclass(frozen=True, slots=True)
class HopChoice:
    """A peer that the router chose, with everything needed to reach it."""

    address: Reach
    blocks: BlockRange
    record: bytes
    """Its signed record, from which its predecessor takes the address."""
    wait_seconds: float = 0.0
    """Until it is expected to have room; 0: it should have room now."""
    numeric_format: str = ""
    """The format in which it announces to compute."""
    weights: Evidence = Evidence.UNOPPOSED
    """Why the client believes the weights that it announces."""
    unproven_seconds: float = 0.0
    """Upper bound on how much faster another chain might be than the one that it was chosen for.

    0: that chain is proven to be the best. Above 0: the search ended with its budget; infinite without any bound.
    """
    stream_format: str = "float32"
    """The announced dtype of its hidden states between blocks."""

    @property
    def peer(self) -> PeerId:
        return self.address.peer

    @property
    def arithmetic(self) -> str:
        """Everything about the peer, other than the model, that determines its outputs for given inputs."""
        return f"{self.blocks} {self.numeric_format} {self.stream_format}"


# --- events: requests of the caller ---


@dataclass(frozen=True, slots=True)
class Prepare:
    """Open a chain, and say how many leading tokens of the `rows` coming rows all its peers hold."""

    rows: int


@dataclass(frozen=True, slots=True)
class Begin:
    """Carry out an operation after those that have begun."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Finish:
    """No answer is waited for any more: the chain stays as it is until `Close`, whatever becomes of its peers."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the session on every peer."""


# --- events: answers of the view of the swarm ---


@dataclass(frozen=True, slots=True)
class Chosen:
    """The peers that fill the gaps of `Choose`, in the order of their blocks."""

    number: int
    choices: tuple[HopChoice, ...]


@dataclass(frozen=True, slots=True)
class NotChosen:
    """No peers fill the gaps: NoChainError, or PeerBusy if only room is missing."""

    number: int
    error: SwarmError
    seen_whole: bool = False
    """The client has once seen all blocks served together."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The look at the swarm is over; `error` if no peer answered."""

    error: SwarmError | None


@dataclass(frozen=True, slots=True)
class NetworkBack:
    """A node answered over a new connection: this machine's network works."""


@dataclass(frozen=True, slots=True)
class NetworkAway:
    """No node answered over a new connection: this machine's network is taken to be down."""


# --- events: from a peer of the chain, or its stream ---


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer has admitted the session."""

    hop: HopId
    credits: int
    held_tokens: tuple[int, ...] = ()
    """Per row whose pages were named at the opening, how many leading tokens the peer holds."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The session waits for room at the peer."""

    hop: HopId
    place: int
    """The place in the queue; 1: next."""
    estimate_seconds: float


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The peer has taken its new neighbours."""

    hop: HopId
    epoch: int
    applied_seq: int
    """The last step that it has applied."""
    buffer_complete: bool
    """Whether it can replay the outputs of all that it has applied to its successor."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The peer's attention cache has been rebuilt, or a part of it has arrived, as was asked in that epoch."""

    hop: HopId
    epoch: int


@dataclass(frozen=True, slots=True)
class Exported:
    """A part of the peer's attention cache is on its way to the target of `Export`, which answers with `Rebuilt`."""

    hop: HopId
    round: int
    applied_seq: int
    """The step after whose state the part was taken."""
    starts: tuple[int, ...]
    """Per row, the first token in the part..."""
    lengths: tuple[int, ...]
    """...and the end of the row, up to which the part has tokens."""


@dataclass(frozen=True, slots=True)
class PartDropped:
    """The rest of a part of the peer's attention cache is not passed on: the target of `Export` takes nothing."""

    hop: HopId


@dataclass(frozen=True, slots=True)
class Answered:
    """The output of a step came: an answer from the last peer, or one to be relayed from another."""

    hop: HopId
    step: WireStep


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to `Probe`: the last steps that the peer has received and applied."""

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
    """`ChainMachine.wake_at` has passed."""


Event = (
    Prepare | Begin | Finish | Close | Chosen | NotChosen | Looked | NetworkBack | NetworkAway
    | Opened | Queued | Rerouted | Rebuilt | Exported | PartDropped | Answered | Probed | PushBroken | Lost | Late
)  # fmt: skip


# --- actions ---


@dataclass(frozen=True, slots=True)
class Choose:
    """Have the router choose peers for the blocks that `kept` does not cover; answered by `Chosen` or `NotChosen`."""

    number: int
    """Identifies the question; the answer repeats it."""
    kept: Layout
    excluded: frozenset[PeerId]
    """Peers that must not be chosen."""
    check: bool = False
    """Choose only peers that answer a ping now: a repair has no time for others."""


@dataclass(frozen=True, slots=True)
class Look:
    """Look at the swarm again; answered by `Looked`."""


@dataclass(frozen=True, slots=True)
class AskAnybody:
    """Find out whether any known node, also of the chain, answers on a new connection: `NetworkBack`/`NetworkAway`."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A peer's place in the chain, as it is told."""

    epoch: int
    predecessor: PeerId | None
    """None: this client."""
    successor: PeerId | None
    successor_record: bytes
    relay: bool
    """Whether outputs come back to this client instead of going to the successor."""
    stream_before: str | None = None
    """The format of the predecessor's stream; None: the predecessor is this client."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open the session on a peer; steps may follow at once."""

    hop: HopId
    choice: HopChoice
    neighbours: Neighbours
    wait_seconds: float
    """How long the session may wait for room; 0: the peer refuses it if there is none."""
    formats_before: tuple[str, ...] = ()
    """`HopChoice.arithmetic` of the peers before it, on which the names of its prefix pages depend."""


@dataclass(frozen=True, slots=True)
class Reroute:
    """Give a peer new neighbours."""

    hop: HopId
    neighbours: Neighbours
    forget_prefixes: bool = False
    """Have it drop the page names that it got at the opening: they do not describe what it computes now."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a step to a peer."""

    hop: HopId
    step: WireStep


@dataclass(frozen=True, slots=True)
class Replay:
    """Have `source` send its outputs so far to its successor again; None: the client sends its inputs to `target`."""

    source: HopId | None
    target: HopId
    epoch: int
    lengths: tuple[int, ...]
    mark: Rebuild
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask a peer which steps it has received and applied; answered by `Probed`."""

    hop: HopId
    nonce: int


@dataclass(frozen=True, slots=True)
class Export:
    """Have a part of the attention cache of `source` sent to `target`; announced by `Exported`."""

    source: HopId
    target: HopId
    round: int
    starts: tuple[int, ...]
    """Per row, how many leading tokens the target has."""
    max_tokens: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class StopExport:
    """Stop passing on the cache of `source`."""

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
    """Lift the bans of those peers and dial them anew: they were not at fault."""

    peers: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the user."""

    event: SessionEvent


@dataclass(frozen=True, slots=True)
class Ready:
    """The answer to `Prepare`: per row, how many leading tokens every peer holds."""

    held_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """An operation is done and all its answers are here. Operations are done in the order in which they began."""

    operation: Operation
    answers: tuple[bytes, ...]
    """The packed answers of each step."""


@dataclass(frozen=True, slots=True)
class Fail:
    """End the session, because no repair can help."""

    error: SwarmError


Action = (
    Choose | Look | AskAnybody | Open | Reroute | Send | Replay | Probe | Export | StopExport | Leave
    | Ban | Pardon | Tell | Ready | Done | Fail
)  # fmt: skip
