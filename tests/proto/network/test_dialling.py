"""Where a node dials for others: which addresses are public, and what an initial peer shows of the swarm's place."""

from __future__ import annotations

import ipaddress

import pytest
from blockswarm.proto.network.dialling import (
    EVERY_RANGE,
    AddressRange,
    AddressRefused,
    DialRule,
    grpc_target,
    literal,
    range_of,
    rule_for,
)

PUBLIC = ["8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "169.253.0.1", "2606:4700::1111"]
PRIVATE = {
    "127.0.0.1": AddressRange.LOOPBACK,
    "127.255.0.9": AddressRange.LOOPBACK,
    "::1": AddressRange.LOOPBACK,
    "10.0.0.1": AddressRange.TEN,
    "172.16.0.1": AddressRange.ONE_SEVEN_TWO,
    "172.31.255.255": AddressRange.ONE_SEVEN_TWO,
    "192.168.178.1": AddressRange.ONE_NINE_TWO,
    "100.64.0.1": AddressRange.CARRIER,
    "100.127.255.255": AddressRange.CARRIER,
    "169.254.169.254": AddressRange.LINK_LOCAL,
    "fe80::1": AddressRange.LINK_LOCAL,
    "fd00::1": AddressRange.UNIQUE_LOCAL,
    "fec0::1": AddressRange.UNIQUE_LOCAL,
    "0.0.0.0": AddressRange.NOBODY,
    "0.1.2.3": AddressRange.NOBODY,
    "::": AddressRange.NOBODY,
    "224.0.0.251": AddressRange.NOBODY,
    "ff02::fb": AddressRange.NOBODY,
    "255.255.255.255": AddressRange.NOBODY,
    "240.0.0.1": AddressRange.RESERVED,
    "198.18.0.1": AddressRange.RESERVED,
    "192.0.0.8": AddressRange.RESERVED,
    "192.0.2.1": AddressRange.RESERVED,
    "2001:db8::1": AddressRange.RESERVED,
    "3fff::1": AddressRange.RESERVED,
}


def wrapped(address: str) -> list[str]:
    """The forms of IPv6 in which a gateway, or the machine itself, reads an IPv4 address."""
    number = int(ipaddress.IPv4Address(address))
    sixtofour = ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1)
    teredo = ipaddress.IPv6Address(
        (0x2001 << 112) | (int(ipaddress.IPv4Address("8.8.8.8")) << 64) | (~number & 0xFFFFFFFF)
    )
    return [f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}", str(sixtofour), str(teredo)]


@pytest.mark.parametrize(("address", "kind"), PRIVATE.items())
def test_every_private_address_is_known_as_one_also_where_ipv6_wraps_it(address: str, kind: AddressRange) -> None:
    assert range_of(ipaddress.ip_address(address)) is kind
    assert not DialRule().allows(ipaddress.ip_address(address))
    for other in wrapped(address) if "." in address else ():
        assert not DialRule().allows(ipaddress.ip_address(other)), other


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_dialled_in_every_swarm(address: str) -> None:
    assert DialRule().allows(ipaddress.ip_address(address))
    for other in wrapped(address)[:2] if "." in address else ():
        assert DialRule().allows(ipaddress.ip_address(other)), other


def test_every_address_is_in_one_range_or_another() -> None:
    """The standard library's own judgement is the second opinion: what it calls private is never public here."""
    for number in range(0, 1 << 32, 9_999_991):
        address = ipaddress.IPv4Address(number)
        if not address.is_global or address.is_multicast or address.is_reserved:
            assert range_of(address) is not AddressRange.PUBLIC, address


def reached(address: str) -> DialRule:
    return DialRule().reached(ipaddress.ip_address(address))


def dials(rule: DialRule, address: str) -> bool:
    return rule.allows(ipaddress.ip_address(address))


def test_what_an_initial_peer_shows_is_its_own_range_only() -> None:
    assert dials(reached("192.168.1.5"), "192.168.2.7")
    assert not dials(reached("192.168.1.5"), "10.0.0.1")
    assert not dials(reached("192.168.1.5"), "127.0.0.1")
    assert not dials(reached("100.64.0.7"), "192.168.1.1"), "an overlay network shows nothing of the one at home"
    assert reached("8.8.8.8") == DialRule()


def test_a_swarm_on_this_machine_may_be_on_its_networks_too() -> None:
    for address in ("127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "8.8.8.8"):
        assert dials(reached("127.0.0.1"), address)
    assert not dials(reached("127.0.0.1"), "0.0.0.0")


def test_nobody_is_where_no_machine_is() -> None:
    for address in ("0.0.0.0", "224.0.0.1", "::", "ff02::1", "::ffff:0.0.0.0"):
        assert not dials(EVERY_RANGE, address)
        assert not dials(reached(address), address)


def test_the_rule_at_the_start() -> None:
    assert rule_for(private=False, lan=False) == DialRule()
    assert rule_for(private=True, lan=False) == rule_for(private=False, lan=True) == EVERY_RANGE
    assert rule_for(private=False, lan=False, begun_at=["peer.example.org", "8.8.8.8"]) == DialRule()
    assert dials(rule_for(private=False, lan=False, begun_at=["10.0.0.1"]), "10.2.3.4")


def test_a_refusal_names_the_range_and_the_option() -> None:
    with pytest.raises(AddressRefused, match=r"h:1 is not dialled: it is in 10\.0\.0\.0/8, this machine") as refusal:
        DialRule().allowed([ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("10.0.0.1")], "h:1")
    assert "--lan" in refusal.value.hint
    both = [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("8.8.8.8")]
    assert DialRule().allowed(both, "h:1") == (both[1],)


@pytest.mark.parametrize("text", ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "localhost", "fe80::1%eth0x"])
def test_what_only_a_resolver_reads_is_a_name(text: str) -> None:
    """It is checked after it was resolved, whatever it looks like."""
    address = literal(text)
    assert address is None or not DialRule().allows(address)


def test_targets_for_grpc_name_addresses_only() -> None:
    four, six = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")
    assert grpc_target([four], 7) == "ipv4:192.0.2.1:7"
    assert grpc_target([six], 7) == "ipv6:[2001:db8::1]:7"
    assert grpc_target([six, four], 7) == "ipv6:[2001:db8::1]:7,[::ffff:192.0.2.1]:7"
