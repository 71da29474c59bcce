"""The options of `swarm-peer`, and the configuration that they give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...proto.errors import UsageError
from ...proto.network.address import PeerAddress
from ..config import BlockRequest, PeerConfig, RelayQuota, listening_host, reach_mode

Model = Annotated[str, typer.Argument(help="A local folder with a safetensors checkpoint, or a Hugging Face id.")]
NewSwarm = Annotated[bool, typer.Option("--new-swarm", help="Start a new swarm.")]
InitialPeers = Annotated[
    list[str] | None,
    typer.Option("--initial-peers", help="Join the swarm of this peer, ID@HOST:PORT; may be given several times."),
]
Blocks = Annotated[
    str,
    typer.Option(help="A range A:B (half-open, from 0), a number N, or auto for all blocks that fit into free memory."),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses of the machine.")]
Port = Annotated[int, typer.Option(help="Port for clients and peers; 0 for any free port.")]
DhtPort = Annotated[int, typer.Option(help="Port of the DHT node; 0 for any free port.")]
Announce = Annotated[
    list[str] | None,
    typer.Option(help="HOST:PORT at which others reach this peer, if not where it listens (port forwarding)."),
]
Reach = Annotated[
    str,
    typer.Option(
        help="How others reach this peer. auto: other peers dial it back; if that fails, it is reached through peers"
        " that offer --relay. direct: announce the address unchecked. relay: through relays only."
    ),
]
Relay = Annotated[
    bool,
    typer.Option(
        "--relay", help="Let peers without an open port be reached through this one. It sees only encrypted bytes."
    ),
]
RelayPeers = Annotated[int, typer.Option(help="With --relay: the most peers at once.")]
RelayConnections = Annotated[int, typer.Option(help="With --relay: the most connections at once, of all these peers.")]
RelayRate = Annotated[
    float,
    typer.Option(help="With --relay: MiB per second for all of them and both directions; one gets at most half."),
]
Identity = Annotated[
    Path | None,
    typer.Option(help="Key file of this peer; created if it does not exist.  [default: peer.key in --data]"),
]
Data = Annotated[Path, typer.Option(help="Folder for the peer's own files.")]
SwarmKey = Annotated[
    Path | None, typer.Option(help="Key file of a private swarm; make one with `swarm-client new-key FILE`.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="In a private swarm, the id of a client that needs no key; may be given several times."),
]
Lan = Annotated[
    bool,
    typer.Option(
        "--lan",
        help="The swarm is on your own network: also connect to private addresses that records name."
        " Not needed if an initial peer has such an address.",
    ),
]
KvTokens = Annotated[int, typer.Option(help="Tokens of attention cache to offer per block.")]
ClientShare = Annotated[float, typer.Option(help="Share of the room that one client may hold while others wait.")]
ReplayMemory = Annotated[
    int, typer.Option(help="MiB for replay buffers, from which clients recover when another peer fails.")
]
PrefixCache = Annotated[
    int,
    typer.Option(
        help="MiB for attention caches of earlier prompts: if a client's next prompt begins with the same text,"
        " only the rest is computed. Never shared between clients."
    ),
]
Device = Annotated[
    str, typer.Option(help="Device to compute on: cpu, cuda, cuda:N, or auto for a GPU if torch sees one.")
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16 or float16. auto: float32 on a CPU; on a GPU the dtype of the published model, if the"
        " GPU supports it."
    ),
]
Quantize = Annotated[
    str,
    typer.Option(
        help="Format of the weights in memory. none: as --dtype says. int8: a quarter of float32's memory,"
        " about 1 % error per layer. int4 (CPU), nf4 (GPU): an eighth, less exact. auto: what this machine"
        " computes fastest without loss. Clients see the format and can demand a better one."
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads for computing.  [default: the fastest number, measured]")
]
Nice = Annotated[
    bool,
    typer.Option(
        "--nice",
        help="Yield to other programs: run at low priority, and pause between steps while they use half of"
        " the machine or more. Sessions get slower then, and the announced speed follows.",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(help="Serve Prometheus metrics on this port; 0 for any free port.  [default: not served]"),
]
MetricsHost = Annotated[str, typer.Option(help="Address to serve metrics on.")]
Name = Annotated[str, typer.Option(help="A name for the public map of the swarm.")]
HideDevice = Annotated[bool, typer.Option("--hide-device", help="Do not announce the kind of device and its memory.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hugging Face model.")]
CacheLimit = Annotated[
    float | None,
    typer.Option(
        help="GiB of fetched blocks to keep in the cache folder: beyond that, those that no peer uses are deleted,"
        " least recently used first.  [default: no limit]"
    ),
]
MAX_CACHE_LIMIT_GIB = 2**20
AsJson = Annotated[bool, typer.Option("--json", help="When ready, print one line of JSON to standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")]


def peer_config(chosen: Mapping[str, Any]) -> PeerConfig:
    """Build a peer's configuration from its command-line options by name. Raises UsageError."""
    initial_peers, data = chosen["initial_peers"] or (), Path(chosen["data"])
    if chosen["new_swarm"] == bool(initial_peers):
        raise UsageError(
            "say which swarm to join, and only one",
            hint="Give --initial-peers ID@HOST:PORT, or --new-swarm for the first peer.",
        )
    swarm_key, cache_limit = chosen["swarm_key"], chosen["cache_limit"]
    return PeerConfig(
        model=chosen["model"],
        blocks=BlockRequest.parse(chosen["blocks"]),
        initial_peers=tuple(PeerAddress.parse(text) for text in initial_peers),
        identity_path=Path(chosen["identity"] or data / "peer.key").expanduser(),
        data_folder=data.expanduser(),
        host=listening_host(chosen["host"]),
        port=chosen["port"],
        announce=tuple(chosen["announce"] or ()),
        reach=reach_mode(chosen["reach"]),
        relay=_relay_quota(chosen) if chosen["relay"] else None,
        dht_port=chosen["dht_port"],
        swarm_key_path=Path(swarm_key) if swarm_key is not None else None,
        allowed_peers=frozenset(chosen["allow"] or ()),
        kv_tokens=chosen["kv_tokens"],
        client_share=chosen["client_share"],
        lan=chosen["lan"],
        replay_bytes=chosen["replay_memory"] << 20,
        prefix_cache_bytes=chosen["prefix_cache"] << 20,
        device=chosen["device"],
        dtype=chosen["dtype"],
        quantize=chosen["quantize"],
        threads=chosen["threads"],
        nice=chosen["nice"],
        metrics_host=chosen["metrics_host"],
        metrics_port=chosen["metrics_port"],
        name=chosen["name"],
        tell_device=not chosen["hide_device"],
        revision=chosen["revision"],
        cache_limit_bytes=_cache_limit_bytes(cache_limit) if cache_limit is not None else None,
    )


def _relay_quota(chosen: Mapping[str, Any]) -> RelayQuota:
    rate = chosen["relay_rate"] * 2**20
    return RelayQuota(chosen["relay_peers"], chosen["relay_connections"], bytes_per_second=rate)


def _cache_limit_bytes(gib: float) -> int:
    if not 0 <= gib <= MAX_CACHE_LIMIT_GIB:
        raise UsageError(f"--cache-limit must be between 0 and {MAX_CACHE_LIMIT_GIB} GiB")
    return int(gib * 2**30)
