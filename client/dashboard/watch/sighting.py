"""The dashboard's snapshot: the values from which all pages, JSON and metrics are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from ....proto.directory.records import PeerRecord
from ....proto.errors import SwarmError
from ....routing.swarm import PeerId
from ...swarm.snapshot import PreparedSwarm
from ..history.entries import Availability
from ..probe.messages import ProbeOutcome

T = TypeVar("T")

ID_CHARS = 12
"""How many digits of a model's digest identify it in URLs."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts about a model that pages need."""

    name: str
    """The name for people, from the operator or from the initial peers."""
    digest: str
    num_blocks: int
    counted: bool
    """Whether the number of blocks is from the model's own files; else it is the largest that a peer announces."""

    @property
    def id(self) -> str:
        """The model's id in URLs."""
        return self.digest[:ID_CHARS]


@dataclass(frozen=True, eq=False)
class Sighting:
    """Everything that one look at a model's swarm has found."""

    at_seconds: float
    """Unix time at which the look ended."""
    prepared: PreparedSwarm
    """The peers that answered."""
    silent: Mapping[PeerId, PeerRecord]
    """The peers that announce themselves but do not answer."""
    since: Mapping[PeerId, Since]
    """For all peers, answering and silent."""


@dataclass(frozen=True, slots=True)
class Since:
    """Since when a peer has been in its state with its blocks, as seen from here."""

    state: str
    at_seconds: float
    """Unix time."""
    at_least: bool
    """Whether it may be older, because the first look found it so."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A look that failed. The error's text is only logged, because it may have addresses."""

    code: str
    at_seconds: float

    @classmethod
    def of(cls, error: SwarmError, at_seconds: float) -> Failure:
        return cls(error.code, at_seconds)


@dataclass(frozen=True, slots=True)
class LastProbe:
    """The latest probe of a model, and the availability over the last day."""

    at_seconds: float
    """Unix time at which it ended."""
    outcome: ProbeOutcome
    availability: Availability | None
    """None: the history cannot be read."""


@dataclass(frozen=True, eq=False)
class ModelState:
    """All that is known of one model's swarm at a moment."""

    facts: ModelFacts
    sighting: Sighting | None = None
    """The last look that succeeded."""
    failure: Failure | None = None
    """Why the last look failed; None: it succeeded, or there was none yet."""
    probe: LastProbe | None = None
    """None: there was none yet, or the model's files are not here."""
    measured_block_seconds: Mapping[PeerId, float] = field(default_factory=dict)
    """Time of one block for one token, as measured by the latest probes."""
    kept: dict[str, object] = field(default_factory=dict, init=False, repr=False)
    """The values of `once`, cached for as long as this state lives."""

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Return the value of that name, computed from this state once; two threads may both compute it."""
        if name not in self.kept:
            self.kept[name] = compute()
        return cast(T, self.kept[name])


@dataclass(frozen=True)
class DashboardSnapshot:
    """Everything that is shown; replaced as a whole whenever something changes."""

    version: int = 0
    models: tuple[ModelState, ...] = ()
    """Ordered by name, then by digest."""
    waiting_for: str | None = "the first look"
    """Why there is no model yet, in words; None: nothing is awaited."""

    def model(self, model_id: str) -> ModelState | None:
        return next((state for state in self.models if state.facts.id == model_id), None)
