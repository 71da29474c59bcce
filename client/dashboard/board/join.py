"""A machine that may join: the blocks that it would host, and what that brings, by the rule of `swarm-peer plan`."""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ....proto.errors import UsageError
from ....routing.outlook import outlook_of_view, view_with_peers_at
from ....routing.place.moves import ReplanPolicy
from ....routing.place.rule import moves_of
from ....routing.place.view import PlanningView
from ....routing.swarm import BlockRange, PeerId, PeerSpec, PeerState
from ..watch.sighting import Sighting
from .placement import PlacementFigures, Planning, figures_of

CANDIDATE = PeerId("~candidate")
"""No peer's id; it sorts behind them."""
MARGIN = 0.15
"""Share of free memory that a peer leaves alone."""
GIB = 2.0**30
MAX_GIB = 4096.0
MOST_MOVES = 16
"""Moves of the rule that are looked at: those of peers that wait for blocks already come before."""
PACES: Mapping[str, str] = {
    "median": "like the median peer",
    "fast": "like the fastest peer",
    "slow": "like the slowest",
}


@dataclass(frozen=True, slots=True)
class JoinQuery:
    """A reader's machine."""

    memory_gib: float | None = None
    """Free memory; None: nothing was asked."""
    numeric_format: str = ""
    """"": that of the most peers."""
    pace: str = "median"

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> JoinQuery:
        """From the fields of an address. Raises UsageError."""
        text, pace = fields.get("memory", "").strip(), fields.get("pace", "") or "median"
        if pace not in PACES:
            raise UsageError(f"pace must be one of {', '.join(PACES)}")
        if not text:
            return cls(None, fields.get("format", ""), pace)
        try:
            memory = float(text) if len(text) <= 16 else -1.0
        except ValueError:
            memory = -1.0
        if not 0 < memory <= MAX_GIB:
            raise UsageError(f"memory must be a number of GiB between 0 and {MAX_GIB:.0f}")
        return cls(memory, fields.get("format", ""), pace)


@dataclass(frozen=True, slots=True)
class JoinBoard:
    """The prospects of that machine."""

    formats: tuple[str, ...]
    """The numeric formats that peers announce, the most frequent first."""
    command: str
    """To be copied; for a POSIX shell."""
    address_told: bool
    """Whether the command names a peer to join through: the operator has to wish that."""
    memory_bytes: float | None = None
    """Offered for weights and attention caches; None: nothing was asked."""
    block_bytes: float = 0.0
    blocks: tuple[int, int] | None = None
    """None: nothing was asked, or there is no place for it now."""
    reason: str = ""
    """Why it would host nothing, in words."""
    weights_bytes: float = 0.0
    """The weights of these blocks in memory; a download has no less, and may have more."""
    now: PlacementFigures | None = None
    then: PlacementFigures | None = None


def join_board(
    sighting: Sighting | None, planning: Planning | None, query: JoinQuery, model: str, addresses: Sequence[str]
) -> JoinBoard:
    """`sighting` is None where nothing is known of now; `planning` is of it, and may be None where nothing was asked;
    `model` and `addresses` are for the command. Takes long with many peers: for a thread."""
    serving = _serving(sighting)
    formats = _formats(serving)
    board = JoinBoard(formats, join_command(model, addresses), bool(addresses))
    if query.memory_gib is None:
        return board
    if sighting is None or planning is None:
        return replace(board, reason="nothing is known of the swarm now")
    wanted = query.numeric_format or (formats[0] if formats else "")
    alike = [peer for peer in serving if peer.numeric_format == wanted and peer.block_bytes > 0]
    if not alike:
        return replace(board, reason="no peer that serves tells the sizes of blocks in that format")
    candidate = _candidate(query, alike)
    found = JoinBoard(
        board.formats, board.command, board.address_told, candidate.memory_bytes, candidate.block_bytes,
    )  # fmt: skip
    return _planned(found, planning, candidate, sighting.prepared.client_rtts)


def join_command(model: str, addresses: Sequence[str]) -> str:
    """Quoted for a shell; without an address a place for one."""
    initial = [part for address in addresses or ["ID@HOST:PORT"] for part in ("--initial-peers", address)]
    return shlex.join(["swarm-peer", model, *initial])


def _planned(board: JoinBoard, planning: Planning, candidate: PeerSpec, rtts: Mapping[PeerId, float]) -> JoinBoard:
    before, swarm = planning.outlook, planning.swarm
    board = replace(board, now=figures_of(before) if before is not None else None)
    joined = replace(swarm, peers=tuple(sorted((*swarm.peers, candidate), key=lambda peer: peer.id)))
    view = PlanningView.of(joined, ReplanPolicy())
    blocks = _first_blocks(view, joined.now_seconds)
    if view is None or blocks is None:
        fits = candidate.memory_bytes >= candidate.block_bytes + candidate.kv_bytes_per_token
        return replace(board, reason="the swarm has no place for it now" if fits else "not even one block fits")
    return replace(
        board,
        blocks=(blocks.start, blocks.stop),
        weights_bytes=len(blocks) * candidate.block_bytes,
        then=figures_of(outlook_of_view(view_with_peers_at(view, [(CANDIDATE, blocks)]), rtts)),
    )


def _first_blocks(view: PlanningView | None, now_seconds: float) -> BlockRange | None:
    """The blocks that the rule gives the candidate with one of its next moves; none behind it is decided."""
    moves = itertools.islice(moves_of(view, now_seconds), MOST_MOVES)
    return next((move.after for move in moves if move.peer == CANDIDATE), None)


def _serving(sighting: Sighting | None) -> list[PeerSpec]:
    if sighting is None:
        return []
    return [peer for peer in sighting.prepared.announced if peer.state is PeerState.SERVING]


def _formats(peers: Sequence[PeerSpec]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for peer in peers:
        if peer.block_bytes > 0:
            counts[peer.numeric_format] = counts.get(peer.numeric_format, 0) + 1
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def _candidate(query: JoinQuery, alike: Sequence[PeerSpec]) -> PeerSpec:
    """A peer that joins: its sizes and its pace are those of peers that compute in its format."""
    by_pace = sorted(alike, key=lambda peer: (peer.cost.decode_seconds(), peer.id))
    model = {"fast": by_pace[0], "slow": by_pace[-1], "median": by_pace[len(by_pace) // 2]}[query.pace]
    assert query.memory_gib is not None
    return PeerSpec(
        CANDIDATE,
        None,
        model.cost,
        PeerState.JOINING,
        memory_bytes=query.memory_gib * GIB * (1 - MARGIN),
        block_bytes=statistics.median(peer.block_bytes for peer in alike),
        kv_bytes_per_token=statistics.median(peer.kv_bytes_per_token for peer in alike),
        numeric_format=model.numeric_format,
        stream_format=model.stream_format,
        coordinate=model.coordinate,
    )
