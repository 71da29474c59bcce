"""The order of a session's steps: which one runs now, which waits, which was done before, which is out of date.

Pushed and direct messages have no common order, and a client repeats a step when it does not know whether it was
applied.  The gate makes that harmless: steps are applied once, in order, and a repeated one gets its old output.
No I/O here; the worker feeds it one step at a time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ....proto.errors import RemoteProtocolError
from ....proto.wire.frames import CREDITS, WireStep

MOST_ARRIVALS = 8 * CREDITS
"""Enough for all that matter: at most `CREDITS` steps are held, and a client repeats no more."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Apply this step now; report it with `StepGate.applied`."""

    step: WireStep
    skip_permutation: bool


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same step was applied before; send `output` again."""

    output: WireStep


class Arrivals:
    """The steps of an epoch that have arrived; they tell a client which link has lost one.

    A step counts only when all earlier ones have arrived: otherwise a peer that sends another session's steps, or
    invents one, would make its successor look like the one that is stuck.
    """

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=MOST_ARRIVALS)

    def note(self, seq: int) -> None:
        """Note that step `seq` has arrived."""
        self._recent.append(seq)

    def until(self, applied_seq: int) -> int:
        """Return the last step after `applied_seq` up to which none is missing; `applied_seq` if there is none."""
        until, recent = applied_seq, frozenset(self._recent)
        while until + 1 in recent:
            until += 1
        return until


class StepGate:
    """Decides what to do with the steps of one session."""

    def __init__(self, epoch: int, credits: int, max_tokens: int) -> None:
        """At most `credits` steps are held, and at most `max_tokens` tokens in steps held and outputs kept."""
        self.epoch = epoch
        self.next_seq = 1
        self._credits = credits
        self._max_tokens = max_tokens
        self._permuted = False
        self._kept: dict[int, WireStep] = {}
        self._held: dict[int, WireStep] = {}
        self._acked_seq = 0

    @property
    def applied_seq(self) -> int:
        return self.next_seq - 1

    @property
    def tokens(self) -> int:
        """Tokens in the steps held and the outputs kept."""
        return sum(step.plan.tokens for step in (*self._kept.values(), *self._held.values()))

    def offer(self, step: WireStep) -> Compute | Repeat | None:
        """Decide what to do with a step that arrived. Raises RemoteProtocolError.

        None: nothing, because it belongs to another epoch, was answered and acknowledged, or has to wait for an earlier
        one. After a Compute was applied, `ready` gives the steps that waited for it.
        """
        if step.epoch != self.epoch:
            return None
        if step.acked_seq >= step.seq:
            raise RemoteProtocolError(f"step {step.seq} acknowledges itself")
        self._forget(step.acked_seq)
        if step.seq < self.next_seq:
            return self._repeat(step)
        if self.tokens + step.plan.tokens > self._max_tokens:
            raise RemoteProtocolError(f"more than {self._max_tokens} tokens are under way or not acknowledged")
        if step.seq > self.next_seq:
            if len(self._held) >= self._credits:
                raise RemoteProtocolError(f"more than {self._credits} steps are in flight")
            self._held[step.seq] = step
            return None
        return Compute(step, skip_permutation=self._permuted)

    def applied(self, output: WireStep) -> None:
        """Note that the step which `offer` let through is done; keep `output` until the client has acknowledged it."""
        assert output.seq == self.next_seq
        self.next_seq += 1
        self._permuted = False
        self._kept[output.seq] = output

    def ready(self) -> WireStep | None:
        """Return the held step whose turn it is, if any; offer it again."""
        return self._held.pop(self.next_seq, None)

    def reroute(self, epoch: int) -> None:
        """Begin a new epoch: drop the held steps of the old one. Raises RemoteProtocolError if it is not newer."""
        if epoch <= self.epoch:
            raise RemoteProtocolError(f"epoch {epoch} is not newer than {self.epoch}")
        self.epoch = epoch
        self._held.clear()

    def rebuilt(self, next_seq: int, permuted: bool) -> None:
        """Note that the cache was rebuilt to just before `next_seq`; `permuted`: with the permutation of that step."""
        self.next_seq = next_seq
        self._permuted = permuted
        self._kept.clear()
        self._held.clear()

    def _repeat(self, step: WireStep) -> Repeat | None:
        kept = self._kept.get(step.seq)
        if kept is None:
            if step.seq <= self._acked_seq:
                return None
            raise RemoteProtocolError(f"step {step.seq} was applied, and its output is gone")
        if kept.plan != step.plan:
            # The kept output does not answer this step, and one token sent must not make this peer send thousands.
            raise RemoteProtocolError(f"step {step.seq} was applied, and was another one")
        return Repeat(kept)

    def _forget(self, acked_seq: int) -> None:
        self._acked_seq = max(self._acked_seq, acked_seq)
        for seq in [seq for seq in self._kept if seq <= acked_seq]:
            del self._kept[seq]
