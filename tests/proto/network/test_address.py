"""HOST:PORT and ID@HOST:PORT: one form each, read strictly, and every way to a peer in its record."""

from __future__ import annotations

import dataclasses

import pytest
from blockswarm.proto.directory.records import PeerRecord
from blockswarm.proto.errors import UsageError
from blockswarm.proto.network.address import (
    HostPort,
    PeerAddress,
    RelayedAddress,
    host_of_caller,
    network_of,
    reaches_of,
)
from blockswarm.routing.swarm import ComputeCost, PeerId, PeerSpec
from hypothesis import given
from hypothesis import strategies as st

ALICE = PeerId("12D3KooWA29sxFFTDw3qgZr3igFR4Cz3XLFKKBWPuJ85BYzMzjiX")
BOB = PeerId("12D3KooWKSqAZT22Pw5gL1xUM1YdgDzZZsenMzCxnkpcsM6sHdS3")
CAROL = PeerId("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp")
LONGEST_NAME = ".".join(["a" * 63] * 3 + ["b" * 61])


@pytest.mark.parametrize(
    ("text", "host", "port", "multiaddress"),
    [
        ("192.0.2.1:1", "192.0.2.1", 1, "/ip4/192.0.2.1/tcp/1"),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535, "/ip6/2001:db8::1/tcp/65535"),
        ("[::ffff:192.0.2.1]:80", "::ffff:192.0.2.1", 80, "/ip6/::ffff:192.0.2.1/tcp/80"),
        ("peer_1.example-net.org:4000", "peer_1.example-net.org", 4000, "/dns/peer_1.example-net.org/tcp/4000"),
        (f"{LONGEST_NAME}:80", LONGEST_NAME, 80, f"/dns/{LONGEST_NAME}/tcp/80"),
    ],
)
def test_host_and_port_are_read_and_written_back(text: str, host: str, port: int, multiaddress: str) -> None:
    address = HostPort.parse(text)
    assert (address.host, address.port, address.multiaddress) == (host, port, multiaddress)
    assert str(address) == text
    assert HostPort.of_multiaddress(multiaddress) == address
    assert HostPort.of_multiaddress(f"{multiaddress}/p2p/{ALICE}") == address


@pytest.mark.parametrize(
    "text",
    [
        "", "/ip4/192.0.2.1", "/ip4/192.0.2.1/udp/1", "/ip4/2001:db8::1/tcp/1", "/ip6/192.0.2.1/tcp/1", "/ip4/h/tcp/1",
        "/ip4/192.0.2.1/tcp/0", "/ip4/192.0.2.1/tcp/65536", "/ip4/192.0.2.1/tcp/1/quic", "/unix/tmp/tcp/1",
        f"/ip4/192.0.2.1/tcp/1/p2p/{ALICE}/p2p-circuit/p2p/{BOB}", "/ip6/fe80::1%eth0/tcp/1", "/ip4/192.0.2.1/tcp/1\n",
    ],
)  # fmt: skip
def test_other_kinds_of_multiaddresses_are_no_host_and_port(text: str) -> None:
    assert HostPort.of_multiaddress(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "host", ":80", "host:", "host:0", "host:65536", "host:99999", "host:080", "host:+80", "host:8\u0660",
        "host:80\n", " host:80", "a b:1", "h:1:2", "user@host:80", "2001:db8::1:80", "[2001:db8::1]", "[host]:80",
        "[1.2.3.4]:80", "[:::]:80", "[fe80::1%eth0]:80", "unix:/tmp/x", "dns:///host:1", "http://host:80",
        LONGEST_NAME + "c:80",
    ],
)  # fmt: skip
def test_what_is_not_exactly_host_and_port_is_refused(text: str) -> None:
    """A record must not make a peer open a file, or ask a resolver of the record's choice."""
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        HostPort.parse(text)


@given(st.text(max_size=40))
def test_whatever_is_read_is_written_back_as_it_was(text: str) -> None:
    try:
        address = HostPort.parse(text)
    except UsageError:
        return
    assert str(address) == text


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_a_person_may_leave_the_brackets_out_where_the_port_is_apart(host: str) -> None:
    assert str(HostPort.of(host, 0)) == "[::1]:0"


@pytest.mark.parametrize(("host", "port"), [("host:1", 1), ("[::1", 1), ("", 1), ("host", -1), ("host", 65536)])
def test_a_wrong_host_or_port_is_a_usage_error(host: str, port: int) -> None:
    with pytest.raises(UsageError):
        HostPort.of(host, port)


@pytest.mark.parametrize("target", ["example.org:4000", "192.0.2.1:1", "[2001:db8::1]:65535"])
def test_the_address_of_a_peer_reads_back_as_it_is_written(target: str) -> None:
    assert PeerAddress.parse(f" {ALICE}@{target}\n") == PeerAddress(ALICE, target)
    assert str(PeerAddress(ALICE, target)) == f"{ALICE}@{target}"


@pytest.mark.parametrize(
    "text", ["", "host:1", "x@host:1", "12D3KooWabc@host:1", ALICE, f"{ALICE}@", f"@{ALICE}", f"{ALICE}@unix:/x"]
)
def test_what_is_no_address_of_a_peer_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a peer"):
        PeerAddress.parse(text)


def test_a_record_gives_every_way_to_its_peer_with_its_own_addresses_first() -> None:
    """Where a relay is comes from the relay's own record, never from the peer that is reached through it."""
    spec = PeerSpec(id=ALICE, blocks=None, cost=ComputeCost(0.01))
    record = PeerRecord(model_digest="0" * 64, spec=spec, addresses=("192.0.2.1:1", "[::1]:2"), relays=(BOB, CAROL))
    known = {BOB: ("relay.example:3", "192.0.2.3:3", "192.0.2.4:3"), CAROL: ()}
    relays = [PeerAddress(BOB, "relay.example:3"), PeerAddress(BOB, "192.0.2.3:3")]
    own = (PeerAddress(ALICE, "192.0.2.1:1"), PeerAddress(ALICE, "[::1]:2"))
    reaches = reaches_of(record, known.__getitem__)
    assert reaches == (*own, *(RelayedAddress(ALICE, relay) for relay in relays))
    assert [reach.peer for reach in reaches] == [ALICE] * 4
    assert [reach.target for reach in reaches] == ["192.0.2.1:1", "[::1]:2", "relay.example:3", "192.0.2.3:3"]
    assert reaches_of(record) == own, "nobody knows the relays"
    assert reaches_of(dataclasses.replace(record, addresses=(), relays=())) == ()
    assert str(RelayedAddress(ALICE, relays[0])) == f"{ALICE} through {BOB}@relay.example:3"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("8.8.8.8:1", "8.8.8.9:2", True),
        ("8.8.8.8:1", "8.8.9.8:1", False),
        ("[::ffff:8.8.8.8]:1", "8.8.8.9:1", True),
        ("[2600:1:2:3::4]:1", "[2600:1:2:ffff::5]:1", True),
        ("[2600:1:2::]:1", "[2600:1:3::]:1", False),
        ("192.168.1.2:1", "192.168.1.2:2", True),
        ("192.168.1.2:1", "192.168.1.3:1", False),
        ("100.64.0.1:1", "100.64.0.2:1", False),
        ("127.0.0.1:1", "127.0.0.1:2", True),
        ("[fd00::1]:1", "[fd00::2]:1", False),
        ("a.example.org:1", "b.example.com:1", True),
        ("a.example.org:1", "8.8.8.8:1", False),
    ],
)
def test_a_network_is_what_many_addresses_cost_money_for(first: str, second: str, same: bool) -> None:
    """A /24 or a /48 on the internet, a machine at home; and a name is nothing that costs."""
    assert (network_of(first) == network_of(second)) is same


@pytest.mark.parametrize(
    ("caller", "host"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("ipv6:[2001:db8::1]:5000", "2001:db8::1"),
        ("ipv6:[fe80::1%25eth0]:5000", "fe80::1"),
        ("unix:/tmp/socket", ""),
        ("ipv4:example.org:5000", ""),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_the_address_that_a_caller_is_seen_at(caller: str, host: str) -> None:
    """As gRPC names it; an address that is only asked for by name, or of a socket file, is none to dial."""
    assert host_of_caller(caller) == host
