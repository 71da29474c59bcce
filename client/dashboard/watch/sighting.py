"""Values of what was seen: the one snapshot that all pages, JSON and metrics are made from."""

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
"""Digits of a model's digest that name it in addresses of pages."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model, as far as pages need one."""

    name: str
    """As people know it: the operator's word, or the initial peers'."""
    digest: str
    num_blocks: int
    counted: bool
    """Whether the model's own files say the number of its blocks; else it is the largest that a peer announces."""

    @property
    def id(self) -> str:
        """Its name in addresses of pages."""
        return self.digest[:ID_CHARS]


@dataclass(frozen=True, eq=False)
class Sighting:
    """Everything that one look at a model's swarm has found."""

    at_seconds: float
    """Unix time at which the look ended."""
    prepared: PreparedSwarm
    """The peers that answered."""
    silent: Mapping[PeerId, PeerRecord]
    """The peers that announce themselves and do not answer."""
    since: Mapping[PeerId, Since]
    """Both the ones that answer and the silent ones."""


@dataclass(frozen=True, slots=True)
class Since:
    """Since when a peer is in its state and hosts its blocks, as seen from here."""

    state: str
    at_seconds: float
    """Unix time."""
    at_least: bool
    """The state was found with the first look: it may be older."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A look that failed. The error's own text stays in the log: it may name addresses."""

    code: str
    at_seconds: float

    @classmethod
    def of(cls, error: SwarmError, at_seconds: float) -> Failure:
        return cls(error.code, at_seconds)


@dataclass(frozen=True, slots=True)
class LastProbe:
    """The latest probe of a model, and how many of those of the last day have worked."""

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
    """Why the last look did not; None: it did, or there was none yet."""
    probe: LastProbe | None = None
    """None: there was none yet, or the model's files are not here."""
    measured_block_seconds: Mapping[PeerId, float] = field(default_factory=dict)
    """Time of one block for one token, as the latest probes took it."""
    kept: dict[str, object] = field(default_factory=dict, init=False, repr=False)
    """The values of `once`; they live as long as this state does."""

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """The value of that name, computed from this state once; two threads may both do it."""
        if name not in self.kept:
            self.kept[name] = compute()
        return cast(T, self.kept[name])


@dataclass(frozen=True)
class DashboardSnapshot:
    """Everything that is shown: replaced as a whole whenever a look ends."""

    version: int = 0
    models: tuple[ModelState, ...] = ()
    """By the model's name, then by its digest."""
    waiting_for: str | None = "the first look"
    """Why there is no model here yet, in words; None: there is nothing to wait for."""

    def model(self, model_id: str) -> ModelState | None:
        return next((state for state in self.models if state.facts.id == model_id), None)
