"""Whom a client believes: what is proven, then networks, whatever number of ids somebody makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec
from blockswarm.routing.trust import Evidence, Trust, disputed, weigh
from hypothesis import given
from hypothesis import strategies as st

NUM_BLOCKS = 4


def peer(name: str, start: int, hashes: str, stop: int | None = None) -> PeerSpec:
    """A peer that announces a hash of one letter for each block from `start` on, or none."""
    blocks = BlockRange(start, stop if stop is not None else start + len(hashes))
    return PeerSpec(
        PeerId(name), blocks, ComputeCost(0.01), block_hashes=tuple(letter.encode() * 8 for letter in hashes)
    )


def trust(peers: Mapping[str, list[PeerSpec]], proven: str = "") -> Trust:
    """`peers` by the network in which they were reached; `proven`: the hashes of the first blocks."""
    networks = {member.id: network for network, members in peers.items() for member in members}
    everybody = [member for members in peers.values() for member in members]
    return weigh(everybody, networks, {block: letter.encode() * 8 for block, letter in enumerate(proven)})


HONEST = {
    "1.1.1.0/24": [peer("h1", 0, "gggggg")],
    "2.2.2.0/24": [peer("h2", 0, "gggggg")],
    "3.3.3.0/24": [peer("h3", 0, "gggggg")],
}
ATTACKERS = [peer(f"a{number:02d}", 0, "xxxxxx") for number in range(20)]


def believed(found: Trust) -> dict[str, str]:
    return {peer: evidence.value for peer, evidence in found.believed.items()}


def test_twenty_identities_do_not_displace_three_networks() -> None:
    found = trust({**HONEST, "9.9.9.0/24": ATTACKERS})
    assert believed(found) == {"h1": "majority", "h2": "majority", "h3": "majority"}
    assert set(found.doubted) == {member.id for member in ATTACKERS}
    assert found.doubted[PeerId("a00")] == (0, 1, 2, 3, 4, 5)


def test_disputed_are_those_on_both_sides() -> None:
    peers = [peer("a", 0, "gg"), peer("b", 1, "xg"), peer("c", 2, "gg"), peer("d", 0, "", 2), peer("e", 3, "g")]
    assert disputed(peers) == {"a", "b"}
    assert disputed(peers[2:]) == frozenset()


class TestIdentities:
    """Twenty ids of one person, who can have as many as he likes."""

    def test_do_not_displace_peers_that_are_the_only_hosts_of_their_blocks(self) -> None:
        """Block by block it is one against one; but one network contradicts three."""
        chain = {"1": [peer("h1", 0, "gg")], "2": [peer("h2", 2, "gg")], "3": [peer("h3", 4, "gg")]}
        found = trust({**chain, "9": ATTACKERS})
        assert believed(found) == {"h1": "undecided", "h2": "undecided", "h3": "undecided"}

    def test_do_not_win_by_sharing_the_blocks_among_them(self) -> None:
        chain = {"1": [peer("h1", 0, "ggg")], "2": [peer("h2", 3, "ggg")]}
        single = [peer(f"a{number}", number % 6, "x") for number in range(20)]
        assert set(trust({**chain, "9": single}).believed) == {"h1", "h2"}

    def test_do_not_win_in_the_network_of_an_honest_peer(self) -> None:
        found = trust({**HONEST, "1.1.1.0/24": [*HONEST["1.1.1.0/24"], *ATTACKERS]})
        assert set(found.believed) == {"h1", "h2", "h3"}

    def test_contradict_each_other_in_vain(self) -> None:
        """Many hashes of one network do not add up."""
        found = trust({**HONEST, "9": [peer(f"a{letter}", 0, letter * 6) for letter in "abcdefhijklm"]})
        assert set(found.believed) == {"h1", "h2", "h3"}

    def test_in_as_many_networks_as_the_honest_are_undecided_and_said_to_be(self) -> None:
        spread = {f"9.9.{number}.0/24": ATTACKERS[7 * number : 7 * number + 6] for number in range(3)}
        found = trust({**HONEST, **spread})
        assert {*believed(found).values()} == {"undecided"}

    def test_change_nothing_that_is_proven(self) -> None:
        spread = {f"9.9.{number}.0/24": [attacker] for number, attacker in enumerate(ATTACKERS)}
        assert believed(trust({**HONEST, **spread}, proven="gggggg")) == dict.fromkeys(("h1", "h2", "h3"), "proven")


class TestErrors:
    """Honest peers, one of which has a damaged block."""

    def test_without_contradiction_all_are_unopposed(self) -> None:
        assert believed(trust(HONEST)) == dict.fromkeys(("h1", "h2", "h3"), "unopposed")

    def test_a_large_peer_with_one_bad_block_does_not_displace_the_majority(self) -> None:
        """Though its neighbours host blocks that nobody else has."""
        found = trust({"1": [peer("a", 0, "gggxgg")], "2": [peer("b", 0, "gggg")], "3": [peer("c", 3, "ggg")]})
        assert believed(found) == {"b": "majority", "c": "majority"}
        assert found.doubted == {"a": (3,)}

    def test_in_one_network_the_peers_are_counted(self) -> None:
        found = trust({"127.0.0.1": [peer("a", 0, "x"), peer("b", 0, "g"), peer("c", 0, "g")]})
        assert believed(found) == {"b": "undecided", "c": "undecided"}

    def test_one_against_one_leaves_a_host_and_says_that_nothing_decides(self) -> None:
        assert believed(trust({"1": [peer("b", 0, "x")], "2": [peer("a", 0, "g")]})) == {"a": "undecided"}

    def test_what_is_proven_in_part_decides_there(self) -> None:
        found = trust({"1": [peer("a", 0, "xg")], "2": [peer("b", 0, "xg")], "3": [peer("c", 0, "gg")]}, proven="g")
        assert believed(found) == {"c": "unopposed"}
        assert found.doubted == {"a": (0,), "b": (0,)}

    def test_peers_without_hashes_contradict_nobody(self) -> None:
        found = trust({"1": [peer("a", 0, "", 2)], "2": [peer("b", 0, "x")], "3": [peer("c", 0, "g")]})
        assert found.believed[PeerId("a")] is Evidence.UNOPPOSED


@st.composite
def swarms(draw: st.DrawFn) -> dict[str, list[PeerSpec]]:
    """Up to eight peers in up to four networks; most hashes agree."""
    networks: dict[str, list[PeerSpec]] = {}
    for index in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, NUM_BLOCKS - 1))
        letters = "".join(draw(st.sampled_from("ggxy")) for _ in range(draw(st.integers(1, NUM_BLOCKS - start))))
        member = peer(f"p{draw(st.integers(0, 99)):02d}{index}", start, letters)
        networks.setdefault(draw(st.sampled_from("abcd")), []).append(member)
    return networks


def announced(member: PeerSpec) -> dict[int, bytes]:
    return dict(zip(member.blocks or (), member.block_hashes, strict=True))


def by_the_rule(networks: Mapping[str, Sequence[PeerSpec]]) -> set[PeerId]:
    """The rule word by word, with sets and nothing proven."""
    where = {member.id: network for network, members in networks.items() for member in members}
    everybody = [member for members in networks.values() for member in members]
    contradict = {
        (a.id, b.id)
        for a in everybody
        for b in everybody
        if any(announced(b).get(block, found) != found for block, found in announced(a).items())
    }

    def votes(block: int, found: bytes) -> int:
        return len({where[member.id] for member in everybody if announced(member).get(block) == found})

    def beaten(member: PeerSpec) -> bool:
        others = {(block, found) for other in everybody for block, found in announced(other).items()}
        return any(
            votes(block, found) < votes(*other)
            for block, found in announced(member).items()
            for other in others
            if other[0] == block
        )

    def order(member: PeerSpec) -> tuple[bool, int, int, PeerId]:
        against_network = {where[b] for a, b in contradict if where[a] == where[member.id]}
        return beaten(member), len(against_network), len({b for a, b in contradict if a == member.id}), member.id

    taken: list[PeerId] = []
    for member in sorted(everybody, key=order):
        if not any((member.id, other) in contradict for other in taken):
            taken.append(member.id)
    return set(taken)


@pytest.mark.long
@given(networks=swarms())
def test_those_are_believed_whom_the_rule_believes_word_by_word(networks: dict[str, list[PeerSpec]]) -> None:
    assert set(trust(networks).believed) == by_the_rule(networks)


@pytest.mark.long
@given(networks=swarms())
def test_no_two_that_are_believed_disagree(
    networks: dict[str, list[PeerSpec]],
) -> None:
    found = trust(networks)
    everybody = [member for members in networks.values() for member in members]
    agreed: dict[int, bytes] = {}
    for member in everybody:
        if member.id in found.believed:
            assert all(agreed.setdefault(block, digest) == digest for block, digest in announced(member).items())
    assert set(found.doubted) == {member.id for member in everybody} - set(found.believed)
    assert found.believed


def test_a_full_directory_of_contradictions_is_weighed_in_a_moment() -> None:
    """900 records, which is what a name holds, each from a network of its own and with hashes of its own."""
    peers = [peer(f"p{number:03d}", 0, "", 80) for number in range(900)]
    hashes = [tuple(f"{number:03d}{block:05d}".encode() for block in range(80)) for number in range(900)]
    different = [
        PeerSpec(member.id, member.blocks, member.cost, block_hashes=mine)
        for member, mine in zip(peers, hashes, strict=True)
    ]
    assert len(weigh(different, {member.id: member.id for member in different}, {}).believed) == 1


@pytest.mark.parametrize("evidence", Evidence)
def test_every_evidence_has_a_word_of_its_own(evidence: Evidence) -> None:
    assert Evidence(evidence.value) is evidence
