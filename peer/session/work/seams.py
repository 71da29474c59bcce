"""Everything around a session's worker, as interfaces: the worker can be driven without a network and an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ....proto.errors import SwarmError
from ....proto.wire.frames import WireStep
from ....proto.wire.prefixes import Digests
from ....proto.wire.steps import StepPlan
from ...engine.cache.part import CachePart
from ..replay_store import ReplayStore
from ..transfer import TakeTurn


class StepOutputLike(Protocol):
    """The engine's answer to a step."""

    @property
    def data(self) -> bytes: ...
    @property
    def started_at(self) -> float: ...
    @property
    def finished_at(self) -> float: ...
    @property
    def queue_seconds(self) -> float: ...
    @property
    def crowded(self) -> bool: ...
    @property
    def lost_guesses(self) -> int: ...


class SessionCompute(Protocol):
    """The rows of a session, behind the engine's thread."""

    async def step(self, plan: StepPlan, data: bytes, input_format: str) -> StepOutputLike: ...
    async def reset(self) -> None: ...
    async def export(self, starts: tuple[int, ...], max_tokens: int) -> CachePart: ...
    async def import_(self, part: CachePart) -> None: ...
    async def keep(self, prefixes: tuple[Digests, ...]) -> None: ...


class SuccessorLink(Protocol):
    """The link to the successor."""

    @property
    def usable(self) -> bool: ...
    def prepare(self) -> None: ...
    async def send(self, step: WireStep) -> None: ...
    async def close(self) -> None: ...


class Outlet(Protocol):
    """The messages of a session to its client."""

    async def step(self, step: WireStep) -> None: ...
    async def rerouted(self, epoch: int, applied_seq: int, buffer_complete: bool) -> None: ...
    async def rebuilt(self, epoch: int, tokens: int) -> None: ...
    async def kv_state(self, round_: int, applied_seq: int, part: CachePart, moved: Callable[[int], None]) -> None: ...
    async def failure(self, error: SwarmError, epoch: int, seq: int) -> None: ...


@dataclass
class Counters:
    """The work of a peer since it started."""

    steps_pushed: int = 0
    steps_relayed: int = 0
    steps_answered: int = 0
    rebuilt_tokens: int = 0
    prefix_hit_tokens: int = 0
    """Tokens of held prefixes that sessions began with and nobody had to compute."""
    guessed_tokens: int = 0
    """Tokens that clients had only guessed."""
    crowded_steps: int = 0
    """Steps whose client was told that there is no time for guesses."""
    tokens_served: int = 0
    """Tokens computed in steps of sessions, prompts, guesses and repetitions included. The engine's thread counts."""


@dataclass
class SessionParts:
    """Everything that a worker is made of."""

    compute: SessionCompute
    replay: ReplayStore
    outlet: Outlet
    counters: Counters
    clock: Callable[[], float]
    """Unix seconds, for timings."""
    take_turn: TakeTurn
    """For parts of the attention cache."""
    token_bytes: int
    """Bytes of a token in the outputs."""
    lengths: Callable[[], tuple[int, ...]] = field(repr=False)
    """The rows' present lengths."""
    on_visit: Callable[[float], None] = lambda seconds: None
    """Is told how many seconds each decode step spent here besides its computation and its wait for other sessions."""
    prefixes: tuple[Digests, ...] = ()
    """The prefixes, per row, that the client's first operation computes; kept for its next sessions after that."""
