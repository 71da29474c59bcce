"""The configuration of a peer, built once from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..proto.directory.records import (
    MAX_ADDRESSES,
    MAX_BLOCKS,
    MAX_KV_TOKENS,
    MAX_REACH_BYTES,
    check_public_name,
)
from ..proto.errors import UsageError
from ..proto.network.address import HostPort, PeerAddress
from ..proto.wire.precision import QUANTIZATIONS
from ..routing.admit.table import CLIENT_SHARE
from ..routing.swarm import BlockRange
from .timing import PeerTiming

DEFAULT_KV_TOKENS = 16_384
MAX_ANNOUNCED_CHARS = MAX_REACH_BYTES * 2 // 3
"""Characters of all --announce together: the record also has the addresses of the DHT, at the same hosts."""
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """The value of `--blocks`: a range, a number of blocks, or neither for all that fit."""

    blocks: BlockRange | None = None
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> BlockRequest:
        """Read "auto", "N" or "A:B". Raises UsageError."""
        if text == "auto":
            return cls()
        try:
            if text.isdecimal() and int(text) > 0:
                return cls(count=int(text))
            return cls(blocks=BlockRange.parse(text))
        except ValueError:
            raise UsageError(
                f"--blocks {text!r} is not a choice of blocks",
                hint="Write auto, a number of blocks (8), or a half-open range counted from 0 (8:16).",
            ) from None


@dataclass(frozen=True)
class PeerConfig:
    """Everything that a peer is started with."""

    model: str
    """A local folder, or "owner/name" on a Hugging Face hub."""
    blocks: BlockRequest
    initial_peers: tuple[PeerAddress, ...]
    """Empty: this peer begins a new swarm."""
    identity_path: Path
    host: str
    port: int
    announce: tuple[str, ...]
    """host:port under which others reach this peer, where that is not host:port."""
    dht_port: int
    swarm_key_path: Path | None
    allowed_peers: frozenset[str]
    kv_tokens: int
    """Tokens of attention cache, counted once for each hosted block."""
    replay_bytes: int
    prefix_cache_bytes: int
    """Attention caches of earlier prompts, kept where sessions need no room."""
    device: str
    """auto, cpu, cuda or cuda:N; whether there is such a device, torch knows."""
    dtype: str
    """auto or the name of one: auto is float32 on a CPU, on a GPU that of the checkpoint if it computes in it."""
    quantize: str
    """One of `QUANTIZATIONS`."""
    threads: int | None
    """None: what measures best."""
    nice: bool
    """Yield to the machine's owner."""
    data_folder: Path
    """For what the peer keeps between runs."""
    metrics_host: str
    metrics_port: int | None
    """None: no metrics are served."""
    name: str
    revision: str | None
    client_share: float = CLIENT_SHARE
    """The part of the room that one client may hold while others wait."""
    timing: PeerTiming = field(default_factory=PeerTiming)

    def __post_init__(self) -> None:
        for target in self.announce:
            HostPort.parse(target)
        if len(self.announce) > MAX_ADDRESSES or sum(map(len, self.announce)) > MAX_ANNOUNCED_CHARS:
            raise UsageError(
                f"--announce is given too often: {MAX_ADDRESSES} addresses and {MAX_ANNOUNCED_CHARS} characters fit"
            )
        try:
            check_public_name(self.name)
        except ValueError as error:
            raise UsageError(f"--name {self.name[:80]!r}: {error}") from None
        ports = (("--port", self.port), ("--dht-port", self.dht_port), ("--metrics-port", self.metrics_port or 0))
        for name, port in ports:
            if not 0 <= port < 65536:
                raise UsageError(f"{name} {port} is not a port")
        if (self.blocks.count or len(self.blocks.blocks or ())) > MAX_BLOCKS:
            raise UsageError(f"--blocks: a peer hosts at most {MAX_BLOCKS} blocks", hint="Start several peers.")
        if not 1 <= self.kv_tokens <= MAX_KV_TOKENS // MAX_BLOCKS:
            raise UsageError(f"--kv-tokens must be between 1 and {MAX_KV_TOKENS // MAX_BLOCKS}")
        if not 0 < self.client_share <= 1:
            raise UsageError("--client-share must be above 0 and at most 1")
        if self.replay_bytes < 0:
            raise UsageError("--replay-memory must not be negative")
        if self.prefix_cache_bytes < 0:
            raise UsageError("--prefix-cache must not be negative")
        if self.quantize not in QUANTIZATIONS:
            raise UsageError(
                f"--quantize {self.quantize!r} is not known", hint=f"Use one of {', '.join(QUANTIZATIONS)}."
            )
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device {self.device!r} is not known", hint="Use auto, cpu, cuda or cuda:1.")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise UsageError(f"--dtype {self.dtype!r} is not known", hint="Use auto, float32, bfloat16 or float16.")
        if self.threads is not None and self.threads < 1:
            raise UsageError("--threads must be at least 1")

    @property
    def model_name(self) -> str:
        """For people: the name of the folder, or owner/name."""
        path = Path(self.model)
        return path.resolve().name if path.exists() else self.model

    def addresses(self, port: int) -> tuple[str, ...]:
        """The host:port strings to announce when the peer listens on `port`."""
        if self.announce:
            return self.announce
        return tuple(str(HostPort.of(host, port)) for host in announced_hosts(self.host))


def announced_hosts(host: str) -> Sequence[str]:
    """The hosts to announce for a host to listen on: itself, or the machine's own addresses for "any"."""
    if host not in ("0.0.0.0", "::", "[::]"):
        return [host]
    import socket

    # No packet is sent: connecting a UDP socket only asks the routing table for the local address.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return [probe.getsockname()[0]]
        except OSError:
            return ["127.0.0.1"]
