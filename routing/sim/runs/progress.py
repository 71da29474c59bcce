"""How far a running request has come on its chain, so that it can lose a peer or run slower half-way.

Its work is: the fixed delays, then for every hop in order a prefill (of the prompt; after a repair, on a replacement,
of all tokens so far), then one decode step per further token.  Times are of the hub-and-spoke model of `perf.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...perf import FloatArray, PerfModel, Segment

Prefill = Callable[[int], tuple[FloatArray, FloatArray]]
"""Tokens -> seconds per block (n,) and round trip (C, n) of a prefill of that length."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """The speeds at which one request's work is done; `slowness[j]` multiplies the compute time of peer j, (n,)."""

    model: PerfModel
    client: int
    prefill: Prefill
    slowness: FloatArray

    def stage_seconds(self, stage: PendingPrefill) -> float:
        """A prefill on one hop."""
        j, blocks = stage.hop
        per_block, rtt = self.prefill(stage.tokens)
        return float(rtt[self.client, j] + len(blocks) * per_block[j] * self.slowness[j])

    def step_seconds(self, chain: Sequence[Segment]) -> float:
        """One decode step."""
        model = self.model
        return float(
            sum(
                model.rtt_seconds[self.client, j] + len(blocks) * model.decode_seconds[j] * self.slowness[j]
                for j, blocks in chain
            )
        )


@dataclass(frozen=True, slots=True)
class PendingPrefill:
    """A prefill of `tokens` tokens that a hop has yet to do."""

    hop: Segment
    tokens: int


@dataclass(frozen=True, slots=True)
class Work:
    """The work that a running request has left at `at_seconds`."""

    chain: tuple[Segment, ...]
    at_seconds: float
    fixed_seconds: float
    stages: tuple[PendingPrefill, ...]
    stage_done: float
    """Fraction of the first stage."""
    steps: float
    """Decode steps to come, the one under way in part."""
    first_token_seconds: float | None = None
    """When the first token came."""

    @classmethod
    def of(
        cls, chain: tuple[Segment, ...], now_seconds: float, fixed_seconds: float, prompt_tokens: int, new_tokens: int
    ) -> Work:
        """A request that starts now."""
        stages = tuple(PendingPrefill(hop, prompt_tokens) for hop in chain)
        return cls(chain, now_seconds, fixed_seconds, stages, 0.0, float(new_tokens - 1))

    @property
    def whole_steps(self) -> int:
        """Decode steps to come, the one under way as if it began anew."""
        return math.ceil(self.steps - 1e-9)

    def remaining_seconds(self, speeds: Speeds) -> float:
        """Until the end, at these speeds."""
        stages = [speeds.stage_seconds(stage) for stage in self.stages]
        partly = self.stage_done * stages[0] if stages else 0.0
        return self.fixed_seconds + sum(stages) - partly + self.steps * speeds.step_seconds(self.chain)

    def until(self, now_seconds: float, speeds: Speeds) -> Work:
        """The same request later, having run at these speeds."""
        left = now_seconds - self.at_seconds
        spent = min(left, self.fixed_seconds)
        fixed, left = self.fixed_seconds - spent, left - spent
        stages, done = list(self.stages), self.stage_done
        while stages and left > 0:
            seconds = speeds.stage_seconds(stages[0])
            rest = (1.0 - done) * seconds
            if left < rest:
                done, left = done + left / seconds, 0.0
            else:
                stages.pop(0)
                done, left = 0.0, left - rest
        first, steps = self.first_token_seconds, self.steps
        if not stages:
            first = now_seconds - left if first is None else first
            step = speeds.step_seconds(self.chain)
            steps = max(steps - left / step, 0.0) if step > 0 else 0.0
        return replace(
            self,
            at_seconds=now_seconds,
            fixed_seconds=fixed,
            stages=tuple(stages),
            stage_done=done,
            steps=steps,
            first_token_seconds=first,
        )

    def broken_off(self, speeds: Speeds) -> tuple[Work, float]:
        """The stage or step under way has to begin anew; and the seconds that it had taken."""
        lost = self.stage_done * speeds.stage_seconds(self.stages[0]) if self.stages else 0.0
        lost += (self.whole_steps - self.steps) * speeds.step_seconds(self.chain)
        return replace(self, stage_done=0.0, steps=float(self.whole_steps)), max(lost, 0.0)

    def lost_hops(self, surviving: frozenset[Segment]) -> tuple[Segment, ...]:
        """The hops that had done their prefill and are not among the surviving."""
        pending = {stage.hop for stage in self.stages}
        return tuple(hop for hop in self.chain if hop not in pending and hop not in surviving)

    def on(self, chain: tuple[Segment, ...], surviving: frozenset[Segment], tokens: int) -> Work:
        """The work on another chain: surviving hops keep what they did, the others prefill `tokens` tokens."""
        pending = {stage.hop: stage for stage in self.stages}
        stages = tuple(
            pending.get(hop) if hop in surviving else PendingPrefill(hop, tokens)
            for hop in chain
            if hop not in surviving or hop in pending
        )
        return replace(self, chain=chain, stages=stages, stage_done=0.0)  # type: ignore[arg-type]
