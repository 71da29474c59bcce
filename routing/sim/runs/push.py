"""A request's times where peers push to the next one: client -> p1 -> p2 -> ... -> client, once per token.

A message from i to j takes half their raw round trip, and half of what j adds to a client's round trip (serialisation),
whichever node sends it; the answer to the client likewise.  On one peer hub-and-spoke is the same; every further peer
saves the way back to the client and half of the serialisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...perf import FloatArray, PerfModel, Segment
from ...route.costs import PushCosts
from ...route.lattice import Lattice, Spans


@dataclass(frozen=True)
class PushTimes:
    """One kind of request; `raw_rtt_seconds` is (C + n, C + n), clients first, without serialisation.

    Raises ValueError if a client's round trip to a peer is less than the raw one.
    """

    model: PerfModel
    raw_rtt_seconds: FloatArray

    def __post_init__(self) -> None:
        if not (self._overhead(0).min() >= -1e-9 and self._overhead(1).min() >= -1e-9):
            raise ValueError("raw round trips between clients and servers exceed those with serialisation")

    @property
    def new_tokens(self) -> int:
        return self.model.new_tokens

    def _overhead(self, token: int) -> FloatArray:
        """(C, n): what peers add to the raw round trip of the prompt (token 0) or of a later token."""
        clients = self.model.num_clients
        round_trips = self.model.rtt_seconds if token else self.model.prefill_rtt_seconds
        overhead: FloatArray = round_trips - self.raw_rtt_seconds[:clients, clients:]
        return overhead

    def _trip_seconds(self, client: int, chain: Sequence[Segment], token: int) -> float:
        """All messages of the prompt (token 0) or of a later token."""
        clients = self.model.num_clients
        nodes = [client, *(clients + j for j, _ in chain), client]
        raw = sum(float(self.raw_rtt_seconds[a, b]) for a, b in itertools.pairwise(nodes))
        overhead = self._overhead(token)[client]
        return (raw + sum(float(overhead[j]) for j, _ in chain) + float(overhead[chain[-1][0]])) / 2

    def first_token_seconds(self, client: int, chain: Sequence[Segment]) -> float:
        """Time to first token, without waiting and fixed delays."""
        compute = sum(len(blocks) * float(self.model.prefill_seconds[j]) for j, blocks in chain)
        return self._trip_seconds(client, chain, 0) + compute

    def token_seconds(self, client: int, chain: Sequence[Segment]) -> float:
        """Time of every further token."""
        compute = sum(len(blocks) * float(self.model.decode_seconds[j]) for j, blocks in chain)
        return self._trip_seconds(client, chain, 1) + compute

    def costs(self, client: int, spans: Spans) -> PushCosts:
        """The same for whole requests, as the router's search takes it."""
        clients, later = self.model.num_clients, self.new_tokens - 1
        overhead = (self._overhead(0)[client] + later * self._overhead(1)[client]) / 2
        raw = self.raw_rtt_seconds / 2 * self.new_tokens
        between = raw[clients:, clients:] + overhead
        np.fill_diagonal(between, np.inf)
        return PushCosts(
            enter=raw[client, clients:] + overhead,
            per_block=self.model.request_hop_seconds(client)[1],
            leave=raw[clients:, client] + overhead,
            between=between,
            lattice=Lattice.of(spans, between),
            trips=1.0,
        )
