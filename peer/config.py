"""The configuration of a peer, built once from the command line."""

from __future__ import annotations

import enum
import itertools
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..proto.directory.records import (
    MAX_ADDRESSES,
    MAX_BLOCKS,
    MAX_KV_TOKEN_BLOCKS,
    MAX_REACH_BYTES,
    MAX_RELAY_PLACES,
    check_public_name,
)
from ..proto.errors import UsageError
from ..proto.network.address import HostPort, PeerAddress
from ..proto.network.dialling import DialRule, rule_for
from ..proto.wire.precision import QUANTIZATIONS
from ..routing.admit.table import CLIENT_SHARE
from ..routing.swarm import BlockRange
from .timing import PeerTiming

DEFAULT_KV_TOKENS = 16_384
MAX_ANNOUNCED_CHARS = MAX_REACH_BYTES * 2 // 3
"""Characters of all --announce together: the record also has the addresses of the DHT, at the same hosts."""
MAX_RELAY_CONNECTIONS = 4096
MAX_THREADS = 1024
"""With far more of them torch breaks down."""
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


def listening_host(text: str, resolve: Callable[..., Any] = socket.getaddrinfo) -> str:
    """Resolve the value of `--host` to an address without brackets: the DHT listens on addresses only.

    Raises UsageError if it is neither an address nor a name that resolves to one.
    """
    host = HostPort.of(text, 0).host
    try:
        found = resolve(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else "a part is empty or too long"
        raise UsageError(
            f"--host {text[:80]!r} is no address: {reason}",
            hint="Give an address of this machine, or 0.0.0.0 for all of them.",
        ) from None
    addresses = [str(entry[4][0]) for entry in found]
    return next((address for address in addresses if ":" not in address), addresses[0])


def check_listeners(ports: Sequence[tuple[str, str, int]]) -> None:
    """Check that no two listeners share a port; `ports` has option, host and port of each. Raises UsageError."""
    for (first, host, port), (second, other_host, other_port) in itertools.combinations(ports, 2):
        if port and port == other_port and (host == other_host or not _EVERY_HOST.isdisjoint((host, other_host))):
            raise UsageError(f"{second} {port} is the port of {first}", hint="Choose another one, or 0 for any.")


_EVERY_HOST = frozenset({"0.0.0.0", "::", "[::]"})


class ReachMode(enum.StrEnum):
    """The value of `--reach`."""

    AUTO = "auto"
    DIRECT = "direct"
    RELAY = "relay"


def reach_mode(text: str) -> ReachMode:
    """Read the value of `--reach`. Raises UsageError."""
    try:
        return ReachMode(text)
    except ValueError:
        raise UsageError(
            f"--reach {text[:40]!r} is not known", hint=f"Use one of {', '.join(mode.value for mode in ReachMode)}."
        ) from None


@dataclass(frozen=True, slots=True)
class RelayQuota:
    """The most that a relay does for others."""

    peers: int = 8
    """Reservations; a network has at most half of them."""
    connections: int = 64
    connections_per_peer: int = 16
    bytes_per_second: float = float(16 << 20)
    """For all peers together."""
    peer_share: float = 0.5
    """The share of it that one peer may have."""

    def __post_init__(self) -> None:
        if not 1 <= self.peers <= MAX_RELAY_PLACES:
            raise UsageError(f"--relay-peers must be between 1 and {MAX_RELAY_PLACES}")
        if not (1 <= self.connections <= MAX_RELAY_CONNECTIONS and self.connections_per_peer >= 1):
            raise UsageError(f"--relay-connections must be between 1 and {MAX_RELAY_CONNECTIONS}")
        if not (1 << 16 <= self.bytes_per_second <= 1 << 40 and 0 < self.peer_share <= 1):
            raise UsageError("--relay-rate must be between 0.0625 and 1048576 MiB/s")

    @property
    def bytes_per_second_per_peer(self) -> float:
        return self.bytes_per_second * self.peer_share


@dataclass(frozen=True)
class PeerConfig:
    """Everything that a peer is told when it starts."""

    model: str
    """A local folder, or "owner/name" on a Hugging Face hub."""
    blocks: BlockRequest
    initial_peers: tuple[PeerAddress, ...]
    """Empty: this peer begins a new swarm."""
    identity_path: Path
    host: str
    port: int
    announce: tuple[str, ...]
    """HOST:PORT at which others reach this peer, if these are not `host` and `port`."""
    dht_port: int
    swarm_key_path: Path | None
    allowed_peers: frozenset[str]
    kv_tokens: int
    """Tokens of attention cache, counted once for each hosted block."""
    replay_bytes: int
    prefix_cache_bytes: int
    """The most for attention caches of earlier prompts, lent from the room that no session has reserved."""
    device: str
    """auto, cpu, cuda or cuda:N; only torch knows whether there is such a device."""
    dtype: str
    """A dtype by name, or auto: float32 on a CPU; on a GPU that of the checkpoint, if the GPU supports it."""
    quantize: str
    """One of `QUANTIZATIONS`."""
    threads: int | None
    """None: the number that measures fastest."""
    nice: bool
    """Yield to the machine's owner."""
    data_folder: Path
    """For what the peer keeps between runs."""
    metrics_host: str
    metrics_port: int | None
    """None: no metrics are served."""
    name: str
    revision: str | None
    cache_limit_bytes: int | None = None
    """Limit for the files of fetched blocks; None: all are kept."""
    client_share: float = CLIENT_SHARE
    """The share of the room that one client may hold while others wait."""
    tell_device: bool = True
    """Announce the class of the device: "cpu, 2 threads", or the model and memory of the GPU."""
    lan: bool = False
    """Also dial private addresses: the swarm is on this machine's own network."""
    reach: ReachMode = ReachMode.AUTO
    relay: RelayQuota | None = None
    """The most that this peer relays for others; None: it relays for nobody."""
    timing: PeerTiming = field(default_factory=PeerTiming)

    def __post_init__(self) -> None:
        for target in self.announce:
            HostPort.parse(target)
        if len(self.announce) > MAX_ADDRESSES or sum(map(len, self.announce)) > MAX_ANNOUNCED_CHARS:
            raise UsageError(
                f"--announce is given too often: {MAX_ADDRESSES} addresses and {MAX_ANNOUNCED_CHARS} characters fit"
            )
        if self.reach is ReachMode.RELAY and (self.relay is not None or self.announce):
            raise UsageError(
                "--reach relay does not go with --relay and --announce",
                hint="A peer that is reached through a relay has no address of its own, and relays for nobody.",
            )
        if self.reach is ReachMode.RELAY and not self.initial_peers:
            raise UsageError("--reach relay does not go with --new-swarm", hint="There is nobody who could relay.")
        try:
            check_public_name(self.name)
        except ValueError as error:
            raise UsageError(f"--name {self.name[:80]!r}: {error}") from None
        for name, _, port in self.ports:
            if not 0 <= port < 65536:
                raise UsageError(f"{name} {port} is not a port")
        check_listeners(self.ports)
        if (self.blocks.count or len(self.blocks.blocks or ())) > MAX_BLOCKS:
            raise UsageError(f"--blocks: a peer hosts at most {MAX_BLOCKS} blocks", hint="Start several peers.")
        if not 1 <= self.kv_tokens <= MAX_KV_TOKEN_BLOCKS // MAX_BLOCKS:
            raise UsageError(f"--kv-tokens must be between 1 and {MAX_KV_TOKEN_BLOCKS // MAX_BLOCKS}")
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
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"--threads must be between 1 and {MAX_THREADS}")

    @property
    def shared_options(self) -> tuple[str, ...]:
        """The options that other peers and clients need, too, to be of the same swarm."""
        key = ("--swarm-key", str(self.swarm_key_path)) if self.swarm_key_path is not None else ()
        revision = ("--revision", self.revision) if self.revision is not None else ()
        return key + revision

    @property
    def model_name(self) -> str:
        """For people: the name of the folder, or owner/name."""
        path = Path(self.model)
        return path.resolve().name if path.exists() else self.model

    @property
    def ports(self) -> Sequence[tuple[str, str, int]]:
        """Option, host and port of everything that this peer listens on; 0: any free port."""
        metrics = [("--metrics-port", self.metrics_host, self.metrics_port)] if self.metrics_port is not None else []
        return [("--port", self.host, self.port), ("--dht-port", self.host, self.dht_port), *metrics]

    def dial_rule(self, private: bool) -> DialRule:
        """The rule for dialling addresses that records name; `private`: the swarm has a key."""
        begins = not self.initial_peers
        announced = [HostPort.parse(target).host for target in self.announce] or announced_hosts(self.host)
        return rule_for(private=private, lan=self.lan, begun_at=announced if begins else ())

    def addresses(self, port: int) -> tuple[str, ...]:
        """The host:port strings to announce when the peer listens on `port`."""
        if self.announce:
            return self.announce
        return tuple(str(HostPort.of(host, port)) for host in announced_hosts(self.host))


def announced_hosts(host: str) -> Sequence[str]:
    """The hosts to announce for a host to listen on: itself, or the machine's own addresses for "any"."""
    if host not in _EVERY_HOST:
        return [host]
    # No packet is sent: connecting a UDP socket only asks the routing table for the local address.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return [probe.getsockname()[0]]
        except OSError:
            return ["127.0.0.1"]
