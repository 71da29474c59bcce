"""The state of a chain's machine; the base class of its layers.

The machine is written in layers of subclasses, one per concern, over this state: `Repairing` brings up a chain,
`Moving` hands hops over, `Watching` finds what is at fault, and `ChainMachine` takes events in and runs the steps.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from ....proto.errors import SwarmError
from ....routing.swarm import BlockRange, PeerId
from ...config import SwarmFacts
from ...timing import ChainTiming
from ..copying import CacheCopy
from ..operation import Operation
from . import events as ev
from .facts import HopFacts, RebuildPlan, Status, layout_of
from .pace import StepPace
from .phases import TRANSITIONS, Phase
from .reserve import OrderedReservation
from .roster import Roster

_MAX_LENIENCY = 4.0
"""Waits grow with repairs up to this factor."""


@dataclass(slots=True)
class Progress:
    """An operation under way."""

    operation: Operation
    answers: dict[int, bytes] = field(default_factory=dict)
    sent: int = 0
    """Steps sent in the present epoch."""
    sent_at: dict[int, float] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether all steps are answered and were sent in the present epoch."""
        count = len(self.operation.steps)
        return self.sent == count and len(self.answers) == count

    @property
    def unanswered(self) -> int | None:
        """The first seq without an answer; None if there is none."""
        operation = self.operation
        return next((s for s in range(operation.first_seq, operation.stop_seq) if s not in self.answers), None)

    @property
    def in_flight(self) -> int:
        first = self.operation.first_seq
        return sum(1 for seq in range(first, first + self.sent) if seq not in self.answers)


@dataclass(slots=True)
class Trouble:
    """The history of a repair since the last progress."""

    give_up_at: float
    repairs: int = 0
    refusals: int = 0
    """How many chains were full that had seemed to have room."""
    told: bool = False
    """Whether the user was told that the session waits."""
    looks: int = 0
    error: SwarmError | None = None
    away: bool = False
    """Whether this machine's network was found to be down..."""
    back: bool = False
    """...or to work: peers that are silent now are to blame, unless it was down before."""
    banned: set[PeerId] = field(default_factory=set)
    blaming_input: set[PeerId] = field(default_factory=set)
    """Peers that said that the input cannot be computed."""
    look_next: bool = False
    """Whether to look at the swarm after the pause, instead of choosing a chain."""


@dataclass(slots=True)
class Choice:
    """A question to the router that is not answered yet."""

    number: int
    kept: list[HopFacts]
    """The hops that stay, whose gaps are to be filled; empty: a whole new chain is wanted."""
    filled: list[HopFacts | ev.HopChoice] | None = None
    """The earlier answer, which fills the gaps of the present chain but means waiting for room."""


class Why(enum.Enum):
    """Why a hop is replaced."""

    LEAVES = "it leaves"
    SLOW = "it is slower than announced"
    BETTER = "another one may be much faster"


@dataclass(slots=True)
class Handover:
    """A hop that is about to be replaced while it works."""

    old: HopFacts
    why: Why
    question: int
    """The number of the question to the router."""
    waits: bool = False
    """Whether the replacement must be waited for: it has no room yet."""
    chain: list[HopFacts | ev.HopChoice] | None = None
    """The chain without `old`, if the cache cannot be copied to the peers that replace it..."""
    new: HopFacts | None = None
    """...otherwise its one replacement, which is opened beside the chain."""
    copy: CacheCopy | None = None
    """How far the cache is copied, once the replacement has room."""
    open_until: float = math.inf
    """When the replacement must have room."""
    copy_until: float = math.inf
    """Once it has room: when to give up copying for a replay."""
    next_part_at: float = -math.inf
    is_starved: bool = False
    """Whether the last part was empty."""
    doubts: int = 0
    """How many of the latest parts in a row said that a replay would be better."""
    replays: bool = False
    """Whether the cache is rebuilt by a replay instead of copied."""
    near_at: float | None = None
    """Since when at most one part is left to copy; the user was told."""
    is_decided: bool = False
    """Whether the chain is being changed now."""


class Ended(Exception):
    """Raised by a handler when no repair can help; never leaves the machine."""

    def __init__(self, error: SwarmError) -> None:
        super().__init__(str(error))
        self.error = error


class ChainState:
    """The state of a chain and of the operations under way, as of the last event."""

    def __init__(
        self,
        facts: SwarmFacts,
        num_blocks: int,
        timing: ChainTiming | None = None,
        *,
        relay_always: bool = False,
    ) -> None:
        self.phase = Phase.RESTING
        self._facts = facts
        self._num_blocks = num_blocks
        self._timing = timing or ChainTiming()
        self._actions: list[ev.Action] = []
        self._roster = Roster(self._emit, facts.record, relay_always)
        self._now = 0.0
        self._deadline = math.inf
        self._progress: list[Progress] = []
        self._last_begun: tuple[int, tuple[int, ...]] = 0, ()
        """The seq of the last step of the last operation that began, and the row lengths after it."""
        self._preparing: int | None = None
        """The number of rows of a `Prepare` that is not answered yet."""
        self._has_answers = False
        """Whether any step of the session was answered."""
        self._slow_hops_left = 0
        self._pace = StepPace(self._timing)
        self._next_better_at: float | None = None
        """When to look for a better chain; None: not set yet."""
        self._trouble: Trouble | None = None
        self._choice: Choice | None = None
        self._choices_made = 0
        self._reservation: OrderedReservation | None = None
        self._confirming: list[HopFacts] = []
        """Hops that must confirm the present epoch."""
        self._rebuild: RebuildPlan | None = None
        self._rebuild_ends = math.inf
        self._move: Handover | None = None
        self._tried: set[PeerId] = set()
        """Hops for which a replacement was sought recently."""
        self._next_move_at = -math.inf
        self._next_idle_look_at = -math.inf
        self._nonce = 0
        self._statuses: dict[ev.HopId, Status] = {}
        self._late_times = 0
        self._failed_in: dict[PeerId, tuple[int, BlockRange]] = {}
        """Peer -> the step in which it failed to compute, and its blocks."""
        self._accused_by: dict[PeerId, PeerId] = {}
        """Peer -> the first predecessor that it accused."""

    @property
    def layout(self) -> ev.Layout:
        """The peers in use now, and the blocks that each computes."""
        return layout_of(self._roster.hops)

    @property
    def is_whole(self) -> bool:
        """Whether the chain covers all blocks, and each hop's cache holds what the session has computed so far.

        A hop that is still to be rebuilt may hold a copy from before a later step that rewrote it.
        """
        hops = self._roster.hops
        return sum(len(hop.blocks) for hop in hops) == self._num_blocks and all(hop.built for hop in hops)

    def _emit(self, action: ev.Action) -> None:
        self._actions.append(action)

    def _enter(self, phase: Phase, seconds: float = math.inf) -> bool:
        """Enter a phase, with a deadline `seconds` from now. Returns True, so that a decision can return the call."""
        assert phase is Phase.ENDED or phase in TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase
        self._deadline = self._now + seconds
        return True

    def _take_finish(self, _event: ev.Finish) -> None:
        self._enter(Phase.ENDED)

    @property
    def _is_late(self) -> bool:
        return self._now >= self._deadline

    def _in_trouble(self) -> Trouble:
        if self._trouble is None:
            self._trouble = Trouble(self._now + self._timing.patience_seconds)
        return self._trouble

    @property
    def _has_work(self) -> bool:
        return bool(self._progress) or self._preparing is not None

    def _boundary(self) -> tuple[int, tuple[int, ...]]:
        """Return where the chain can change next: the step before the first unsent operation, and the row lengths."""
        operation = next((progress.operation for progress in self._progress if progress.sent == 0), None)
        return (operation.first_seq - 1, operation.before) if operation is not None else self._last_begun

    def _sought_seq(self) -> int:
        seqs = (p.unanswered for p in self._progress)
        return next((seq for seq in seqs if seq is not None), 0)

    def _allowed_seconds(self) -> float:
        """Return how long the next answer may take, from the announced and the observed speed."""
        progress = next((p for p in self._progress if p.unanswered is not None), None)
        if progress is None:
            return self._timing.open_seconds if self._preparing is not None else self._timing.late_seconds
        seq = progress.unanswered
        assert seq is not None
        tokens = progress.operation.steps[seq - progress.operation.first_seq].tokens
        predicted = self._facts.predict_seconds(self.layout, tokens)
        allowed = self._pace.allowed_seconds(predicted * max(1, sum(p.in_flight for p in self._progress)))
        return self._leniency * allowed

    @property
    def _leniency(self) -> float:
        """The factor by which waits grow with each repair without progress: a peer that looks silent may be slow."""
        return min(max(1.0, self._trouble.repairs if self._trouble is not None else 0.0), _MAX_LENIENCY)
