"""One operation of a session: the steps that it is sent as, and the answers so far."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...proto.wire.frames import WireStep
from ...proto.wire.steps import StepPlan, split_plan
from ...routing.swarm import PeerId
from .hop import HopChoice, HopStream
from .rebuild import Rollback

STEP_TOKENS = 128
"""Tokens of one step of a long prompt: chunks follow each other down the chain, so peers work at the same time."""
MAX_REFUSALS = 2
"""Queue for room after this many refusals by chains that seemed to have some, whatever is known of the next one."""


@dataclass
class Operation:
    """The steps of one `ChainSession.run`, or a part of it, and their answers so far."""

    steps: tuple[StepPlan, ...]
    data: tuple[bytes, ...]
    """The packed tokens of each step."""
    state: Rollback
    """The state that the operation starts from."""
    answers: dict[int, bytes] = field(default_factory=dict)
    """By seq."""
    sent: int = 0
    """Steps sent in the present epoch."""
    sent_at: dict[int, float] = field(default_factory=dict)
    """By seq, on the session's clock."""
    give_up_at: float | None = None
    """End of its wait for room, on the session's clock; None while it does not wait."""
    refusals: int = 0
    """Chains that were full though they seemed not to be."""

    @classmethod
    def of(cls, plan: StepPlan, data: bytes, token_bytes: int, state: Rollback) -> Operation:
        """The operation that computes `plan`, cut into steps; `data` holds `plan.tokens` packed tokens."""
        steps = split_plan(plan, STEP_TOKENS)
        if len(steps) == 1:
            return cls(steps, (data,), state)
        ends = itertools.accumulate(step.tokens * token_bytes for step in steps)
        return cls(steps, tuple(data[start:end] for start, end in itertools.pairwise([0, *ends])), state)

    def has_to_wait(self, chain: Sequence[HopStream | HopChoice]) -> bool:
        """Whether to queue for the new hops of a chain: there is no room now, or what is known of room is not true."""
        return self.refusals >= MAX_REFUSALS or longest_wait_seconds(chain) > 0

    @property
    def untouched(self) -> bool:
        """Whether no peer need have computed anything for the session yet."""
        return self.first_seq == 1 and not self.answers

    @property
    def first_seq(self) -> int:
        return self.state.next_seq

    @property
    def done(self) -> bool:
        return len(self.answers) == len(self.steps)

    @property
    def answer(self) -> bytes:
        """All answers, in order."""
        return b"".join(self.answers[seq] for seq in sorted(self.answers))

    @property
    def unanswered(self) -> int:
        """The first seq without an answer."""
        return next(seq for seq in itertools.count(self.first_seq) if seq not in self.answers)

    @property
    def in_flight(self) -> int:
        return self.sent - sum(1 for seq in self.answers if seq < self.first_seq + self.sent)

    def has_step(self, step: WireStep) -> bool:
        """Whether `step` answers a step of this operation."""
        index = step.seq - self.first_seq
        return 0 <= index < len(self.steps) and step.plan == self.steps[index]

    def next_step(self, epoch: int, timeout_seconds: float, now: float) -> WireStep:
        """The next step to send, noted as sent `now`."""
        seq = self.first_seq + self.sent
        step = WireStep(
            epoch=epoch,
            seq=seq,
            plan=self.steps[self.sent],
            data=self.data[self.sent],
            acked_seq=self.first_seq - 1,
            timeout_seconds=timeout_seconds,
        )
        self.sent_at[seq] = now
        self.sent += 1
        return step


def longest_wait_seconds(chain: Sequence[HopStream | HopChoice]) -> float:
    """Time until every hop of a chain is expected to have room."""
    return max((hop.wait_seconds for hop in chain if isinstance(hop, HopChoice)), default=0.0)


def peers_of(chain: Sequence[HopStream | HopChoice]) -> frozenset[PeerId]:
    return frozenset(hop.address.peer for hop in chain)
