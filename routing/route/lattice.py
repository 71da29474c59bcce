"""The segments of all peers' ranges, arranged so that one pass over the blocks finds the cheapest walk.

A *segment* is a part of a peer's range: (peer, entry, exit).  A *walk* is a sequence of segments that computes every
block once, in order; a chain is a walk that uses no peer twice.  Everything here depends on the placement only, not on
a request, and is compiled once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..perf import FloatArray, IntArray, Segment
from ..swarm import BlockRange

_ARRAYS_OF_SEGMENTS = 16
"""While a lattice is compiled: its own arrays and those that are sorted for it."""


@dataclass(frozen=True)
class Spans:
    """The range that every peer hosts, [start, stop), empty where start == stop; compiled once per placement."""

    num_blocks: int
    start: IntArray
    stop: IntArray

    @classmethod
    def of(cls, num_blocks: int, ranges: Sequence[BlockRange | None]) -> Spans:
        """From one range (or None) per peer."""
        return cls(
            num_blocks,
            np.array([r.start if r else 0 for r in ranges], dtype=np.int64),
            np.array([r.stop if r else 0 for r in ranges], dtype=np.int64),
        )

    @cached_property
    def lattice(self) -> Lattice:
        """For hub costs; compiled once."""
        return Lattice.of(self, None)

    def within(self, blocks: BlockRange) -> Spans:
        """The ranges clipped to a part of the model, with blocks counted from its first."""
        start, stop = (np.clip(ends, blocks.start, blocks.stop) - blocks.start for ends in (self.start, self.stop))
        return Spans(len(blocks), start, stop)

    def hosts(self, which: IntArray) -> IntArray:
        """(L,): the number of these peers that host each block."""
        begin, end = (np.bincount(ends[which], minlength=self.num_blocks + 1) for ends in (self.start, self.stop))
        return np.cumsum(begin - end)[:-1]

    def lattice_bytes(self, which: IntArray, *, linked: bool) -> int:
        """Approximate memory that it takes to compile the lattice of these peers, with or without their links."""
        lengths = (self.stop - self.start)[which]
        segments, hosts = int((lengths * (lengths + 1) // 2).sum()), self.hosts(which)
        return 8 * (_ARRAYS_OF_SEGMENTS * segments + (int(hosts[1:] @ hosts[:-1]) if linked else 0))

    def cheapest_hosts(self, seconds: FloatArray, few: int) -> IntArray:
        """The peers that are among the `few` with the least finite `seconds` (n,) for any block; ascending."""
        hosts = np.zeros(self.num_blocks, dtype=np.int64)
        chosen = []
        for j in np.argsort(seconds, kind="stable")[: np.isfinite(seconds).sum()].tolist():
            if (hosts[self.start[j] : self.stop[j]] < few).any():
                hosts[self.start[j] : self.stop[j]] += 1
                chosen.append(j)
        return np.sort(np.array(chosen, dtype=np.int64))


@dataclass(frozen=True)
class Step:
    """One boundary: the segments that begin and end there, as slices into the lattice's segments, sources, targets."""

    boundary: int
    segments: slice
    heads: IntArray
    """Where each source's segments begin, in `segments`."""
    sources: slice
    targets: slice
    ending: slice
    """The segments that end here, in `by_target`."""
    tails: IntArray
    """Where each target's segments begin, in `ending`."""
    link: FloatArray | None
    """(sources, targets): trips from the targets' to the sources' peers; None for hub costs."""


@dataclass(frozen=True)
class Lattice:
    """Segments arranged for passes over the blocks.

    A walk enters a segment at its source, (entry, peer), and leaves it at its target, (exit, peer); with hub costs,
    sources and targets are only boundaries, because the cost does not depend on the previous peer.
    """

    num_blocks: int
    peer: IntArray
    """(A,); the segments are in order of their source."""
    entry: IntArray
    exit: IntArray
    source: IntArray
    """(A,): 0, 1, ..., N - 1 in order of (entry, peer)."""
    target: IntArray
    """(A,): 0, 1, ..., X - 1 in order of (exit, peer)."""
    links: tuple[FloatArray | None, ...]
    """Per boundary, see `Step`."""

    @classmethod
    def of(cls, spans: Spans, between: FloatArray | None) -> Lattice:
        """Every segment of the spans; O(sum of squared range lengths + pairs of peers that can follow each other)."""
        lengths = spans.stop - spans.start
        parts = [np.zeros((3, 0), dtype=np.int64)]
        for size in np.unique(lengths[lengths > 0]):
            members = np.flatnonzero(lengths == size)
            first, last = np.triu_indices(size)
            entries, exits = spans.start[members][:, None] + first, spans.start[members][:, None] + last + 1
            parts.append(np.stack([np.repeat(members, len(first)), entries.ravel(), exits.ravel()]))
        segments = np.concatenate(parts, axis=1)
        peer, entry, exit_ = segments[:, np.lexsort((segments[0], segments[1]))]
        n = len(lengths)
        place = peer if between is not None else np.zeros_like(peer)
        sources, source = np.unique(entry * n + place, return_inverse=True)
        targets, target = np.unique(exit_ * n + place, return_inverse=True)
        links: list[FloatArray | None] = [None] * spans.num_blocks
        if between is not None:
            first_source, first_target = (
                np.searchsorted(keys, np.arange(spans.num_blocks + 1) * n) for keys in (sources, targets)
            )
            for b in range(spans.num_blocks):
                before = targets[first_target[b] : first_target[b + 1]] % n
                after = sources[first_source[b] : first_source[b + 1]] % n
                links[b] = np.ascontiguousarray(between[before[:, None], after].T)
        return cls(spans.num_blocks, peer, entry, exit_, source, target, tuple(links))

    def only(self, which: IntArray) -> Lattice:
        """The segments at these ascending places."""
        source, target = self.source[which], self.target[which]
        kept_sources, kept_targets = np.zeros(self.num_sources, dtype=bool), np.zeros(self.num_targets, dtype=bool)
        kept_sources[source] = kept_targets[target] = True
        links = list(self.links)
        for step in self.steps:
            after, before = kept_sources[step.sources], kept_targets[step.targets]
            if step.link is not None and not (after.all() and before.all()):
                links[step.boundary] = step.link[after][:, before]
        return Lattice(
            self.num_blocks,
            self.peer[which],
            self.entry[which],
            self.exit[which],
            (np.cumsum(kept_sources) - 1)[source],
            (np.cumsum(kept_targets) - 1)[target],
            tuple(links),
        )

    def inside(self, spans: Spans) -> Lattice:
        """The segments inside these ranges, which may be smaller than the ranges that the lattice was compiled from."""
        fits = (self.entry >= spans.start[self.peer]) & (self.exit <= spans.stop[self.peer])
        return self.only(np.flatnonzero(fits))

    def within(self, blocks: BlockRange) -> Lattice:
        """The segments inside a part of the model, with blocks counted from its first.

        All links inside the part stay as they are: every peer that could be entered or left there still can be.
        """
        part = self.only(np.flatnonzero((self.entry >= blocks.start) & (self.exit <= blocks.stop)))
        return replace(
            part,
            num_blocks=len(blocks),
            entry=part.entry - blocks.start,
            exit=part.exit - blocks.start,
            links=part.links[blocks.start : blocks.stop],
        )

    def segment(self, index: int) -> Segment:
        """A segment as other modules see it."""
        return int(self.peer[index]), BlockRange(int(self.entry[index]), int(self.exit[index]))

    @cached_property
    def length(self) -> IntArray:
        return self.exit - self.entry

    @cached_property
    def num_sources(self) -> int:
        return int(self.source.max(initial=-1)) + 1

    @cached_property
    def num_targets(self) -> int:
        return int(self.target.max(initial=-1)) + 1

    @cached_property
    def by_target(self) -> IntArray:
        """(A,): the segments in order of their target."""
        return np.argsort(self.target, kind="stable")

    @cached_property
    def heads(self) -> IntArray:
        """(N + 1,): where each source's segments begin, and A."""
        return np.searchsorted(self.source, np.arange(self.num_sources + 1))

    @cached_property
    def tails(self) -> IntArray:
        """(X + 1,): where each target's segments begin in `by_target`, and A."""
        return np.searchsorted(self.target[self.by_target], np.arange(self.num_targets + 1))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The boundaries in order."""
        boundaries = np.arange(self.num_blocks + 2)
        begin = np.searchsorted(self.entry, boundaries)
        end = np.searchsorted(self.exit[self.by_target], boundaries)
        heads, tails = np.searchsorted(self.heads, begin), np.searchsorted(self.tails, end)
        return tuple(
            Step(
                b,
                slice(begin[b], begin[b + 1]),
                self.heads[heads[b] : heads[b + 1]] - begin[b],
                slice(heads[b], heads[b + 1]),
                slice(tails[b], tails[b + 1]),
                slice(end[b], end[b + 1]),
                self.tails[tails[b] : tails[b + 1]] - end[b],
                self.links[b] if b < self.num_blocks else None,
            )
            for b in range(self.num_blocks + 1)
        )

    @cached_property
    def inner_steps(self) -> tuple[Step, ...]:
        """The boundaries within the model where a walk can change peers, in order."""
        return tuple(step for step in self.steps[1:-1] if len(step.heads) and len(step.tails))

    @cached_property
    def widest_step(self) -> int:
        """The most segments that begin at one boundary, or targets that end there."""
        return max(int(max(step.segments.stop - step.segments.start, len(step.tails))) for step in self.steps)

    @cached_property
    def work(self) -> int:
        """Approximate number of additions in a pass, per limit."""
        return 8 * len(self.peer) + sum(link.size for link in self.links if link is not None)
