"""The report of a peer that has begun to serve: for people, and as JSON."""

from __future__ import annotations

import gc
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...proto.network.address import RelayedAddress
from ..engine.machine.pages import return_freed_memory
from ..reach.verdict import ReachStatus

if TYPE_CHECKING:
    from ..serving import ReadyPeer


def settle_memory() -> None:
    """Return the memory that starting took, and exempt the present objects, which stay, from garbage collection.

    A full collection stops every thread.  Measured with the 380,000 objects that a peer imports: 0.4 s and more on a
    busy machine, once in every load of blocks; without them, a millisecond.  The blocks themselves are freed by their
    reference counts.
    """
    gc.collect()
    gc.freeze()
    return_freed_memory()


def describe(peer: ReadyPeer) -> dict[str, object]:
    """The object that `--json` prints."""
    return {
        "address": str(peer.address),
        "reach": describe_reach(peer),
        "peer_id": peer.address.peer,
        "blocks": [peer.blocks.start, peer.blocks.stop],
        "num_blocks": peer.num_blocks,
        "kv_tokens": peer.kv_tokens,
        "model_digest": peer.model_digest,
        "decode_seconds_per_block": peer.cost.decode_seconds(),
        "numeric_format": peer.numeric_format,
        "device": peer.device,
        "threads": peer.threads,
        "metrics_port": peer.metrics_port,
        "pid": os.getpid(),
    }


def print_ready(model: str, peer: ReadyPeer, shared_options: Sequence[str] = ()) -> None:
    """Tell a person that the peer is ready."""
    milliseconds = 1000 * peer.cost.decode_seconds() * len(peer.blocks)
    where = f"{peer.threads} thread{'s' * (peer.threads != 1)}" if peer.device == "cpu" else peer.device
    print(
        f"serving blocks {peer.blocks} of {peer.num_blocks} in {peer.numeric_format},"
        f" {milliseconds:.1f} ms per token with {where}"
    )
    entry = peer.address
    if isinstance(entry, RelayedAddress):
        print(f"reached through relay {entry.relay}")
        entry = entry.relay  # a peer of the same swarm, and one that can be dialled
    elif peer.verdict.reached is not ReachStatus.YES:
        who = "only one other peer" if peer.verdict.answers else "no other peer"
        print(f"{who} has checked that this one is reached from outside")
    words = shlex.join([model, "--initial-peers", str(entry), *shared_options])
    print(f"others join with:    swarm-peer {words}")
    print(f"generate text with:  swarm-client generate {words}", flush=True)


def describe_reach(peer: ReadyPeer) -> str:
    """Return how the peer is reached: "relay", "direct", or "unchecked" if fewer than two other peers have tried."""
    if isinstance(peer.address, RelayedAddress):
        return "relay"
    return "direct" if peer.verdict.reached is ReachStatus.YES else "unchecked"
