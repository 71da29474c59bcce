"""Predicts what a reader's machine would host and bring if it joined, by the rule of `swarm-peer plan`."""

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
"""An id that no peer has, and that sorts after all of them."""
MARGIN = 0.15
"""The share of free memory that a peer leaves unused."""
GIB = 2.0**30
MAX_GIB = 4096.0
MOST_MOVES = 16
"""How many moves of the rule are examined: peers that already wait for blocks come first."""
PACES: Mapping[str, str] = {
    "median": "like the median peer",
    "fast": "like the fastest peer",
    "slow": "like the slowest",
}


@dataclass(frozen=True, slots=True)
class JoinQuery:
    """A reader's machine."""

    memory_gib: float | None = None
    """Free memory; None: the reader has not filled in the form."""
    numeric_format: str = ""
    """"": the most frequent format of the peers."""
    pace: str = "median"

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> JoinQuery:
        """Parse the query of a URL. Raises UsageError."""
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
    """The command to start the peer, for a POSIX shell."""
    address_told: bool
    """Whether the command names a peer to join through, which the operator must have configured."""
    memory_bytes: float | None = None
    """Memory for weights and attention caches; None: nothing was asked."""
    block_bytes: float = 0.0
    blocks: tuple[int, int] | None = None
    """The blocks that it would host; None: nothing was asked, or there is no place for it now."""
    reason: str = ""
    """Why it would host nothing, in words."""
    weights_bytes: float = 0.0
    """The size of these blocks' weights in memory; a download is at least as large."""
    now: PlacementFigures | None = None
    then: PlacementFigures | None = None


def join_board(
    sighting: Sighting | None, planning: Planning | None, query: JoinQuery, model: str, addresses: Sequence[str],
    options: Sequence[str] = (),
) -> JoinBoard:  # fmt: skip
    """Build the board. Slow with many peers: call it in a thread.

    `sighting` is None if the present is unknown; `planning` belongs to it, and may be None if nothing was asked.
    `model`, `addresses` and `options` are for the command.
    """
    serving = _serving(sighting)
    formats = _formats(serving)
    board = JoinBoard(formats, join_command(model, addresses, options), bool(addresses))
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


def join_command(model: str, addresses: Sequence[str], options: Sequence[str] = ()) -> str:
    """Return the command to join, quoted for a shell; with a placeholder if there is no address."""
    initial = [part for address in addresses or ["ID@HOST:PORT"] for part in ("--initial-peers", address)]
    return shlex.join(["swarm-peer", model, *initial, *options])


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
    """Return the blocks that the rule gives the candidate in one of its next moves; later moves are not computed."""
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
    """Return a joining peer with the sizes and the pace of the peers that compute in its format."""
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
