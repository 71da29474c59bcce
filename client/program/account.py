"""Describes how a reply was made: its chain, its repairs, and the peers' counters."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from ...proto.errors import SwarmError
from ...routing.swarm import PeerId
from ..config import SessionEvent
from ..connect import SwarmConnection
from ..model.generation import Generation
from ..report import ChainReport, GuessReport
from .talk import Reply, Talker

REPAIRS = ("hop-lost", "handed-over", "rerouted", "relayed", "stalled", "replay", "rebuilt")
"""The kinds of events that report a failure or a leaving peer."""


@dataclass(frozen=True, slots=True)
class StepCounts:
    """How many steps peers have pushed and relayed, over all sessions of all clients."""

    pushed: int
    relayed: int


def step_counts(swarm: SwarmConnection) -> StepCounts:
    """Sum the counters of the peers that the client knows, as of its last look at them."""
    statuses = [known.status for known in swarm.view.peers.values()]
    return StepCounts(sum(s.steps_pushed for s in statuses), sum(s.steps_relayed for s in statuses))


@dataclass(frozen=True)
class Account:
    """A reply, and how it was made."""

    reply: Reply
    chain: ChainReport
    names: dict[PeerId, str]
    steps: StepCounts
    """The peers' steps during the reply, those for other clients included."""
    events: tuple[SessionEvent, ...]
    guesses: GuessReport
    head: str
    """The numeric format of the client's head."""

    @property
    def repairs(self) -> tuple[SessionEvent, ...]:
        return tuple(event for event in self.events if event.kind in REPAIRS)


def account_for(talker: Talker, reply: Reply, before: StepCounts) -> Account:
    """Look at the peers once more and collect what is known of a reply.

    If none answers, what is known from an earlier look has to do. After an interrupt or a failure that look is short.
    """
    with suppress(SwarmError):
        talker.swarm.run(talker.swarm.view.refresh(), None if reply.whole else talker.swarm.timing.haste_seconds)
    after = step_counts(talker.swarm)
    steps = StepCounts(max(0, after.pushed - before.pushed), max(0, after.relayed - before.relayed))
    names = {peer: known.record.public_name for peer, known in talker.swarm.view.peers.items()}
    generation = reply.generation or Generation()
    return Account(
        reply, generation.report, names, steps, generation.events, generation.guesses, talker.model.head_format
    )
