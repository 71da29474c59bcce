"""The predicted time of one step through a chain, hop by hop: network, visit, computation, and wait for room.

The router adds up the same terms over a whole request (`costs.py`); this module predicts a given chain, for people, for
time-outs, and for the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..releases import wait_for_room
from ..swarm import BlockRange, ComputeCost, PeerId, PeerSpec, RequestSpec


@dataclass(frozen=True, slots=True)
class HopTimes:
    """The times of one hop, in seconds."""

    peer: PeerId
    blocks: BlockRange
    way_seconds: float
    """From the previous node, the client or a peer; through the client if peers do not push."""
    visit_seconds: float
    """At the peer, beside computing."""
    compute_seconds: float
    wait_seconds: float
    """Until the peer has room for the request; the waits of a chain's peers run at the same time."""


@dataclass(frozen=True, slots=True)
class ChainTimes:
    """The times of one step through a chain."""

    hops: tuple[HopTimes, ...]
    return_seconds: float
    """From the last peer to the client."""

    @property
    def step_seconds(self) -> float:
        """Time of the whole step, without the wait for room."""
        times = (hop.way_seconds + hop.visit_seconds + hop.compute_seconds for hop in self.hops)
        return math.fsum(times) + self.return_seconds

    @property
    def wait_seconds(self) -> float:
        """Wait until every peer has room: the largest of the hops' waits."""
        return max((hop.wait_seconds for hop in self.hops), default=0.0)


def step_block_seconds(cost: ComputeCost, tokens: int, context_tokens: float = 0.0) -> float:
    """Seconds of one block for a step of one row: one token is a decode step, more are a prefill."""
    return cost.decode_seconds(1, context_tokens) if tokens == 1 else cost.prefill_seconds(tokens)


def predict_step(
    chain: Sequence[tuple[PeerSpec, BlockRange]],
    *,
    tokens: int,
    client_rtt_seconds: Mapping[PeerId, float],
    peer_rtt_seconds: Callable[[PeerId, PeerId], float] | None,
    context_tokens: float = 0.0,
    kv_tokens_per_block: int = 0,
    now_seconds: float = 0.0,
) -> ChainTimes:
    """The times of a step of one row with `tokens` new tokens through the peers of a chain.

    `peer_rtt_seconds`: round trips between peers that push to each other; None: every hop goes through the client.
    `kv_tokens_per_block`: the room that the request still needs in every block; 0: it has its room.
    Raises KeyError if the client has no round trip to a peer.
    """
    hops: list[HopTimes] = []
    before: PeerId | None = None
    for spec, blocks in chain:
        peer = spec.id
        if before is None:
            way = client_rtt_seconds[peer] / 2
        elif peer_rtt_seconds is not None:
            way = peer_rtt_seconds(before, peer) / 2
        else:
            way = (client_rtt_seconds[before] + client_rtt_seconds[peer]) / 2
        compute = step_block_seconds(spec.cost, tokens, context_tokens) * len(blocks)
        wait = wait_for_room(len(blocks) * kv_tokens_per_block, spec.kv_tokens_free, spec.releases, now_seconds)
        hops.append(HopTimes(peer, blocks, way, spec.cost.visit, compute, wait))
        before = peer
    return ChainTimes(tuple(hops), client_rtt_seconds[before] / 2 if before is not None else 0.0)


# --- a whole request -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PredictedRequest:
    """The predicted times of a request of one row on an otherwise idle chain, in seconds."""

    wait_seconds: float
    """Until every peer has room."""
    first_token_seconds: float
    """Time from then to the first token: the opening, and the prompt along the chain and back."""
    token_seconds: float
    """Time of each further token, at the mean length of the text."""


def predict_request(
    chain: Sequence[tuple[PeerSpec, BlockRange]],
    request: RequestSpec,
    *,
    step_tokens: int,
    client_rtt_seconds: Mapping[PeerId, float],
    peer_rtt_seconds: Callable[[PeerId, PeerId], float] | None,
    now_seconds: float = 0.0,
) -> PredictedRequest:
    """The times of a request whose prompt goes down the chain in steps of `step_tokens` tokens that overlap in time.

    Bandwidth is not known, and ignored.  O(steps x hops); raises as `predict_step`.
    """

    def step(tokens: int, context_tokens: float = 0.0, kv_tokens_per_block: int = 0) -> ChainTimes:
        return predict_step(
            chain,
            tokens=tokens,
            client_rtt_seconds=client_rtt_seconds,
            peer_rtt_seconds=peer_rtt_seconds,
            context_tokens=context_tokens,
            kv_tokens_per_block=kv_tokens_per_block,
            now_seconds=now_seconds,
        )

    whole, rest = divmod(request.prompt_tokens, step_tokens)
    steps = [step(step_tokens)] * whole + ([step(rest)] if rest else [])
    opening = max((client_rtt_seconds[spec.id] for spec, _ in chain), default=0.0)
    decode = step(1, request.mean_context_tokens, request.kv_tokens_per_block)
    return PredictedRequest(decode.wait_seconds, opening + _pipelined(steps), decode.step_seconds)


def _pipelined(steps: Sequence[ChainTimes]) -> float:
    """When the last of several steps sent at once is back; a hop begins a step when the previous one is finished."""
    free = [0.0] * len(steps[0].hops)
    back = 0.0
    for times in steps:
        moment = 0.0
        for index, hop in enumerate(times.hops):
            moment = free[index] = max(moment + hop.way_seconds, free[index]) + hop.visit_seconds + hop.compute_seconds
        back = moment + times.return_seconds
    return back
