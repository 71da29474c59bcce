"""`swarm-sim plan`: what would be placed on a snapshot's peers, with what bound, and what one more peer brings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...papers.instances import Field, InstanceError, read_json
from ...perf import FloatArray, PerfModel
from ...place.cgbp import InfeasiblePlacementError, largest_feasible_concurrency, mean_request_seconds, place
from ...place.concurrency import best_concurrency
from ...swarm import BlockRange, ComputeCost, ModelSpec, PeerId, PeerSpec, RequestSpec, Swarm


@dataclass(frozen=True)
class Snapshot:
    """A swarm, the requests expected and their load: a concurrency R or a rate."""

    swarm: Swarm
    request: RequestSpec
    client_rtt_seconds: FloatArray
    concurrency: int | None
    requests_per_second: float | None

    def model(self) -> PerfModel:
        """The performance model of the snapshot's peers."""
        return PerfModel.of_swarm(self.swarm, request=self.request, client_rtt_seconds=self.client_rtt_seconds)


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot (JSON; seconds, bytes, blocks "A:B" from 0). Raises InstanceError naming file and field.

    {"model": {"num_blocks", "block_bytes", "kv_bytes_per_token"}, "request": {"prompt_tokens", "new_tokens"},
     "concurrency" or "requests_per_second", "peers": [{"id", "memory_bytes", "decode_seconds",
     "prefill_seconds_per_token", "client_rtt_seconds": [...], "blocks"?, "max_blocks"?}]}
    """
    root = read_json(path)
    root.keys({"model", "request", "peers"}, {"concurrency", "requests_per_second"})
    model, request = root.child("model"), root.child("request")
    model.keys({"num_blocks", "block_bytes", "kv_bytes_per_token"})
    request.keys({"prompt_tokens", "new_tokens"})
    rows = [_peer(peer) for peer in root.child("peers").items(least=1, most=100_000)]
    clients = {len(rtt) for _, rtt in rows}
    if len(clients) != 1:
        raise root.child("peers").error("every peer needs a round trip to the same clients")
    rows.sort(key=lambda row: row[0].id)
    load, rate = root.child("concurrency"), root.child("requests_per_second")
    if (load.value is None) == (rate.value is None):
        raise root.error("needs either concurrency or requests_per_second")
    try:
        return Snapshot(
            swarm=Swarm(
                ModelSpec(
                    model.child("num_blocks").integer(1, 10_000),
                    model.child("block_bytes").number(0, 1e18, above=True),
                    model.child("kv_bytes_per_token").number(0, 1e18, above=True),
                ),
                tuple(peer for peer, _ in rows),
            ),
            request=RequestSpec(
                request.child("prompt_tokens").integer(1, 10**8), request.child("new_tokens").integer(1, 10**8)
            ),
            client_rtt_seconds=np.array([rtt for _, rtt in rows], dtype=np.float64).T,
            concurrency=load.integer(1, 10**9) if load.value is not None else None,
            requests_per_second=rate.number(0, 1e6, above=True) if rate.value is not None else None,
        )
    except InstanceError:
        raise
    except ValueError as error:
        raise root.child("peers").error(str(error)) from error


def _peer(field: Field) -> tuple[PeerSpec, list[float]]:
    needed = {"id", "memory_bytes", "decode_seconds", "prefill_seconds_per_token", "client_rtt_seconds"}
    field.keys(needed, {"blocks", "max_blocks"})
    blocks, limit = field.child("blocks"), field.child("max_blocks")
    try:
        hosted = BlockRange.parse(blocks.text()) if blocks.value is not None else None
    except InstanceError:
        raise
    except ValueError as error:
        raise blocks.error(str(error)) from error
    peer = PeerSpec(
        id=PeerId(field.child("id").text()),
        blocks=hosted,
        cost=ComputeCost(
            decode_fixed=field.child("decode_seconds").number(0, 1e6),
            prefill_per_token=field.child("prefill_seconds_per_token").number(0, 1e6),
        ),
        memory_bytes=field.child("memory_bytes").number(0, 1e18),
        max_blocks=limit.integer(0, 10_000) if limit.value is not None else None,
    )
    return peer, [item.number(0, 1e6) for item in field.child("client_rtt_seconds").items(least=1, most=1000)]


def plan_report(snapshot: Snapshot) -> dict[str, Any]:
    """The plan as one JSON-able object. Raises InfeasiblePlacementError."""
    model = snapshot.model()
    concurrency = snapshot.concurrency or best_concurrency(model, snapshot.requests_per_second or 0.0, 0.0)
    plan = place(model, concurrency)
    hosted = zip(snapshot.swarm.peers, plan.ranges, strict=True)
    return {
        "R": concurrency,
        "largest_feasible_R": largest_feasible_concurrency(model),
        "theorem2_bound_per_token_seconds": plan.bound_seconds,
        "request_seconds": mean_request_seconds(model, plan.ranges),
        "present_request_seconds": _present(snapshot, model),
        "placement": {peer.id: str(blocks) for peer, blocks in hosted if blocks is not None},
        "one_more_peer": [_one_more(model, j, concurrency, snapshot.swarm.peers[j].id) for j in _exemplars(model)],
    }


def _present(snapshot: Snapshot, model: PerfModel) -> float | None:
    """The mean request under what the peers host now; None if that is no complete chain."""
    ranges = tuple(peer.blocks for peer in snapshot.swarm.peers)
    hosted = {block for blocks in ranges if blocks is not None for block in blocks}
    return mean_request_seconds(model, ranges) if len(hosted) == model.num_blocks else None


def _exemplars(model: PerfModel) -> list[int]:
    """The peers with the least, the median and the most memory: what a newcomer may look like."""
    by_memory = sorted(range(model.num_peers), key=lambda j: (model.memory_bytes[j], j))
    return sorted({by_memory[0], by_memory[len(by_memory) // 2], by_memory[-1]})


def _one_more(model: PerfModel, like: int, concurrency: int, name: str) -> dict[str, Any]:
    """The same swarm with a second peer like peer `like`."""
    grown = model.with_another(like)
    report: dict[str, Any] = {"like": name, "largest_feasible_R": largest_feasible_concurrency(grown)}
    try:
        plan = place(grown, concurrency)
    except InfeasiblePlacementError as error:
        return report | {"infeasible": str(error)}
    return report | {
        "theorem2_bound_per_token_seconds": plan.bound_seconds,
        "request_seconds": mean_request_seconds(grown, plan.ranges),
    }
