"""Swarms of hundreds of peers that nobody runs, which change from look to look as real ones do."""

from __future__ import annotations

import random
from dataclasses import replace

from blockswarm.client.dashboard.watch.sighting import ModelState
from blockswarm.client.swarm.known import KnownPeer

from .sightings import FACTS, NOW, known, seen

NUM_BLOCKS = 80
SPAN = 10
"""Blocks of a peer: from `NUM_BLOCKS` / `SPAN` peers on every block has a server."""
KV_TOKENS = 8 * 2048


class Crowd:
    """One peer of twenty is silent, the others serve; equal seeds, equal swarms but for the peers' ids."""

    def __init__(self, count: int, rng: random.Random, at: float = NOW) -> None:
        """`at`: Unix seconds of the first look."""
        self._rng = rng
        self._at = at
        self._number = 0
        self._silent = [known("0:8", f"silent {number}") for number in range(count // 20)]
        self._peers = [self._newcomer() for _ in range(count - len(self._silent))]
        self._last: ModelState | None = None

    def state(self, at: float) -> ModelState:
        """The model as a look at `at`, Unix seconds, finds it."""
        before = self._last.sighting if self._last is not None else None
        self._last = seen(
            *self._peers, silent=self._silent, facts=replace(FACTS, num_blocks=NUM_BLOCKS), at=at, before=before
        )
        return self._last

    def work(self, share: float) -> None:
        """This share of the peers has other sessions, room, steps and round trips."""
        for index in self._rng.sample(range(len(self._peers)), self._count(share)):
            self._peers[index] = self._busy(self._peers[index])

    def turn_over(self, share: float) -> None:
        """This share of the peers leaves, and as many others join."""
        count = self._count(share)
        leaving = set(self._rng.sample(range(len(self._peers)), count))
        staying = [peer for index, peer in enumerate(self._peers) if index not in leaving]
        self._peers = [*staying, *(self._newcomer() for _ in range(count))]

    def _count(self, share: float) -> int:
        return max(1, round(share * len(self._peers)))

    def _newcomer(self) -> KnownPeer:
        """Later ones are slower."""
        number, self._number = self._number, self._number + 1
        start = number * SPAN % (NUM_BLOCKS - SPAN + 1)
        return known(
            f"{start}:{start + SPAN}", f"peer {number}", cost=0.001 + number / 1e5, block_bytes=1e6,
            kv_bytes_per_token=100.0, incarnation=int((self._at - self._rng.uniform(60, 864000)) * 1e9),
            rtt_seconds=self._rng.uniform(0.01, 0.2),
        )  # fmt: skip

    def _busy(self, peer: KnownPeer) -> KnownPeer:
        status = peer.status
        spec = replace(peer.record.spec, kv_tokens_free=self._rng.randrange(KV_TOKENS))
        answered = status.steps_answered + self._rng.randrange(1, 1000)
        return replace(
            peer, record=replace(peer.record, spec=spec), rtt_seconds=peer.rtt_seconds * self._rng.uniform(0.9, 1.1),
            status=replace(status, sessions=self._rng.randrange(1, 9), steps_answered=answered),
        )  # fmt: skip
