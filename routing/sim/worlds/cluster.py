"""Which servers a scenario has and how far they are: the published set-ups, and any RTT matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...perf import FloatArray


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of server, with one block's times; block_limit caps what it may host."""

    name: str
    memory_bytes: float
    decode_seconds: float
    prefill_seconds_per_token: float
    prefill_seconds: float
    forward_rps: float
    """Requests per second, as PETALS measures and announces them."""
    network_rps: float
    block_limit: int | None = None

    def prefill(self, prompt_tokens: int) -> float:
        """Seconds of one block for a prompt."""
        return self.prefill_seconds_per_token * prompt_tokens + self.prefill_seconds


A100 = Device("A100", 79.13e9, 3.2197e-3, 0.0743e-3, 32.99e-3, 20829.38146541331, 3020.3700586885343)
MIG = Device("MIG", 8.2e9, 16.2488e-3, 0.1041e-3, 206.3547e-3, 2757.7243405599083, 3138.1039624670034, 4)
CLUSTERED_A100 = Device("A100", 79.13e9, 2.2197e-3, 0.0743e-3, 7.2197e-3, 20829.38146541331, 3020.3700586885343)
CLUSTERED_MIG = Device("MIG", 8.2e9, 16.2488e-3, 0.1041e-3, 51.2488e-3, 2757.7243405599083, 3138.1039624670034, 4)


@dataclass(frozen=True, slots=True)
class Overhead:
    """The times of a token, and of a prompt, beyond the raw round trip (serialisation)."""

    token_seconds: float
    prompt_seconds: float
    prompt_seconds_per_token: float


SCATTERED_OVERHEAD = Overhead(0.1, 0.067, 0.7049e-3)
CLUSTERED_OVERHEAD = Overhead(0.05, 0.055, 0.0)


@dataclass(frozen=True)
class Cluster:
    """Servers and clients; `raw_rtt_seconds` is (C + n, C + n), clients first."""

    devices: tuple[Device, ...]
    clients: int
    raw_rtt_seconds: FloatArray
    overhead: Overhead

    def rtt_seconds(self) -> FloatArray:
        """(C, n): of one decoded token."""
        return self.raw_rtt_seconds[: self.clients, self.clients :] + self.overhead.token_seconds

    def prefill_rtt_seconds(self, prompt_tokens: int) -> FloatArray:
        """(C, n): of a prompt."""
        extra = self.overhead.prompt_seconds + self.overhead.prompt_seconds_per_token * prompt_tokens
        return self.raw_rtt_seconds[: self.clients, self.clients :] + extra


def scattered(
    node_rtt_seconds: FloatArray, servers: int, fast_fraction: float, clients: int, rng: np.random.Generator
) -> Cluster:
    """Servers and clients at distinct random nodes of a map; the rounded fraction of the servers is fast.

    Raises ValueError if the map has too few nodes.
    """
    nodes = len(node_rtt_seconds)
    if servers + clients > nodes:
        raise ValueError(f"{servers} servers and {clients} clients do not fit on {nodes} nodes")
    chosen = rng.permutation(nodes)[: servers + clients]
    where = np.concatenate([chosen[servers:], chosen[:servers]])
    fast = int(np.floor(fast_fraction * servers + 0.5))
    kinds = rng.permutation([A100] * fast + [MIG] * (servers - fast))  # type: ignore[arg-type]
    return Cluster(tuple(kinds), clients, node_rtt_seconds[np.ix_(where, where)], SCATTERED_OVERHEAD)


def clustered(fast: int, slow: int, *, near_seconds: float = 0.005, far_seconds: float = 0.1) -> Cluster:
    """The published testbed's shape: the client alone, the fast servers, the slow ones, each in a cluster."""
    site = np.array([0] + [1] * fast + [2] * slow)
    rtt = np.where(site[:, None] == site, near_seconds, far_seconds)
    np.fill_diagonal(rtt, 0.0)
    return Cluster((CLUSTERED_A100,) * fast + (CLUSTERED_MIG,) * slow, 1, rtt, CLUSTERED_OVERHEAD)
