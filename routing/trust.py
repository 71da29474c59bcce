"""Which peers are believed when they announce different weights for a block: at most one hash of it is right.

A node that holds the whole files of a model knows the hashes of its blocks.  Other nodes have only the peers' own word,
and ids cost nothing: twenty peers may be one person.  Addresses in many networks do cost something.  So each network in
which peers were reached has one vote for each hash of a block, however many peers announce it from there.

1. A peer that contradicts what this node's own files prove is not believed.
2. The other peers are taken in this order, and a peer that contradicts one taken before it is not believed:
   a. first the peers with no *beaten* hash; a hash is beaten if another hash of the same block has more votes;
   b. then by the number of networks that contradict their network about any block, the fewest first: so a single
      network that contradicts everybody loses even if every block has only one honest host;
   c. then by the number of peers that contradict them, which decides within one network, such as one machine;
   d. then by id, so that equal records always give the same result.

So no two believed peers disagree.  An attacker with addresses in as many networks as the honest hosts of a block can
still get these excluded; that is why the evidence is reported.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .swarm import PeerId, PeerSpec


class Evidence(enum.Enum):
    """Why a peer's weights are believed."""

    PROVEN = "proven"
    """This node's own files have the same hashes."""
    UNOPPOSED = "unopposed"
    """No peer announces other hashes."""
    MAJORITY = "majority"
    """For every disputed block, more networks announce the peer's hash than any other."""
    UNDECIDED = "undecided"
    """For some block as many or more networks announce another hash; the rest of the rule decided."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The believed peers, with the reason, and the doubted peers, with the blocks in doubt."""

    believed: Mapping[PeerId, Evidence]
    doubted: Mapping[PeerId, tuple[int, ...]]


def disputed(peers: Sequence[PeerSpec]) -> frozenset[PeerId]:
    """The peers that contradict another peer about the hash of some block. O(announced hashes)."""
    found: dict[int, set[bytes]] = {}
    for peer in peers:
        for block, block_hash in _announced_by(peer).items():
            found.setdefault(block, set()).add(block_hash)
    several = {block for block, hashes in found.items() if len(hashes) > 1}
    return frozenset(peer.id for peer in peers if several.intersection(_announced_by(peer)))


_Announced = Mapping[PeerId, Mapping[int, bytes]]
"""Peer -> block -> hash."""


def contradicted(first: PeerSpec, second: PeerSpec) -> tuple[int, ...]:
    """The blocks for which the two announce different hashes."""
    mine, theirs = _announced_by(first), _announced_by(second)
    return tuple(block for block, found in mine.items() if theirs.get(block, found) != found)


def weigh(peers: Sequence[PeerSpec], networks: Mapping[PeerId, str], proven: Mapping[int, bytes]) -> Trust:
    """Decide which peers to believe, by the module's rule; a peer without hashes contradicts nobody.

    `networks`: the network in which each peer was reached; peers without an entry count as one network. `proven`:
    block -> hash, as far as this node's files prove it. O(announced hashes); for disputed blocks, times peers / 64.
    """
    announced = {peer.id: _announced_by(peer) for peer in peers}
    wrong = {
        peer: tuple(block for block, found in hashes.items() if proven.get(block, found) != found)
        for peer, hashes in announced.items()
    }
    doubted = {peer: blocks for peer, blocks in wrong.items() if blocks}
    voters = {peer: hashes for peer, hashes in announced.items() if peer not in doubted}
    disputed = {block for block, found in _votes(voters, dict.fromkeys(voters, 1)).items() if len(found) > 1}
    at_stake = {
        peer: {block: found for block, found in hashes.items() if block in disputed} for peer, hashes in voters.items()
    }
    ranking = _Ranking(at_stake, {peer: networks.get(peer, "") for peer in voters})
    taken: dict[int, bytes] = {}
    believed = {}
    for peer in sorted(voters, key=ranking.place):
        against = tuple(block for block, found in at_stake[peer].items() if taken.get(block, found) != found)
        if against:
            doubted[peer] = against
            continue
        taken |= at_stake[peer]
        if announced[peer] and announced[peer].keys() <= proven.keys():
            believed[peer] = Evidence.PROVEN
        elif not at_stake[peer]:
            believed[peer] = Evidence.UNOPPOSED
        else:
            believed[peer] = Evidence.MAJORITY if ranking.leads(peer) else Evidence.UNDECIDED
    return Trust(believed, doubted)


def _announced_by(peer: PeerSpec) -> dict[int, bytes]:
    """Block -> hash; empty for a peer without hashes."""
    return dict(zip(peer.blocks or (), peer.block_hashes, strict=False))


class _Ranking:
    """The order in which peers are taken; sets of networks and of peers are the bits of a number."""

    def __init__(self, announced: _Announced, network: Mapping[PeerId, str]) -> None:
        self._announced = announced
        self._network = network
        numbers = {name: 1 << number for number, name in enumerate(sorted(set(network.values())))}
        networks = {peer: numbers[name] for peer, name in network.items()}
        votes = _votes(announced, networks)
        self._margins = {block: _margins(of_block) for block, of_block in votes.items()}
        self._against_network: dict[str, int] = {}
        for peer, others in _contradictions(announced, votes).items():
            self._against_network[network[peer]] = self._against_network.get(network[peer], 0) | others
        single = {peer: 1 << number for number, peer in enumerate(sorted(announced))}
        self._against_peer = _contradictions(announced, _votes(announced, single))

    def place(self, peer: PeerId) -> tuple[bool, int, int, PeerId]:
        """The sort key of a peer, see the module's rule."""
        return (
            self._margin(peer) < 0,
            self._against_network[self._network[peer]].bit_count(),
            self._against_peer[peer].bit_count(),
            peer,
        )

    def leads(self, peer: PeerId) -> bool:
        """Whether each of its hashes has more votes than any other of that block."""
        return self._margin(peer) > 0

    def _margin(self, peer: PeerId) -> int:
        """The smallest margin of its hashes."""
        return min((self._margins[block][found] for block, found in self._announced[peer].items()), default=0)


def _margins(voters: Mapping[bytes, int]) -> dict[bytes, int]:
    """Hash -> its votes, less those of the strongest other hash of the block."""
    votes = {found: bits.bit_count() for found, bits in voters.items()}
    second, most = sorted([0, *votes.values()])[-2:]
    return {found: count - (most if count < most else second) for found, count in votes.items()}


def _votes(announced: _Announced, voter: Mapping[PeerId, int]) -> dict[int, dict[bytes, int]]:
    """Block -> hash -> the voters (bits) that announce it."""
    votes: dict[int, dict[bytes, int]] = {}
    for peer, hashes in announced.items():
        for block, found in hashes.items():
            of_block = votes.setdefault(block, {})
            of_block[found] = of_block.get(found, 0) | voter[peer]
    return votes


def _contradictions(announced: _Announced, votes: Mapping[int, Mapping[bytes, int]]) -> dict[PeerId, int]:
    """Peer -> the voters (bits) that announce another hash for any of its blocks."""
    everybody, several = {}, {}
    for block, of_block in votes.items():
        seen = twice = 0
        for voters in of_block.values():
            twice |= seen & voters
            seen |= voters
        everybody[block], several[block] = seen, twice
    against = {}
    for peer, hashes in announced.items():
        others = 0
        for block, found in hashes.items():
            own = votes[block][found]
            others |= (everybody[block] & ~own) | (several[block] & own)
        against[peer] = others
    return against
