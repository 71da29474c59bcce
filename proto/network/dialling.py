"""The dial rule: the ranges of addresses to which a node connects because a record names them.

An address in a record is a claim.  A node that dialled every claimed address would let strangers probe its own home:
the router, the printer, the database that listens on loopback.  So in a public swarm a node dials only public
addresses, and the ranges in which the swarm has proven to be: those in which an initial peer was reached, which the
node's operator has named and whose key proves it.  In a private swarm, and with `--lan`, every range is dialled.

A name is resolved once for each connection, and the address that was checked is dialled: a name cannot lead elsewhere
after the check.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from ..errors import PeerUnavailable

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefused(PeerUnavailable):
    """An address that this node does not dial for others."""

    default_hint = "If the swarm is on your own network, start with --lan."


class AddressRange(Enum):
    """The ranges of addresses that the dial rule distinguishes; reaching a peer in one says nothing about another."""

    PUBLIC = "the Internet"
    LOOPBACK = "this machine"
    TEN = "10.0.0.0/8"
    ONE_SEVEN_TWO = "172.16.0.0/12"
    ONE_NINE_TWO = "192.168.0.0/16"
    CARRIER = "100.64.0.0/10"
    LINK_LOCAL = "link-local addresses"
    UNIQUE_LOCAL = "unique local addresses"
    RESERVED = "a reserved range"
    NOBODY = "addresses of no certain machine"
    """Multicast, broadcast, and "any address", which operating systems take for this machine."""


_KNOWN = tuple(
    (ipaddress.ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", AddressRange.NOBODY),
        ("224.0.0.0/4", AddressRange.NOBODY),
        ("255.255.255.255/32", AddressRange.NOBODY),
        ("::/128", AddressRange.NOBODY),
        ("ff00::/8", AddressRange.NOBODY),
        ("127.0.0.0/8", AddressRange.LOOPBACK),
        ("::1/128", AddressRange.LOOPBACK),
        ("10.0.0.0/8", AddressRange.TEN),
        ("172.16.0.0/12", AddressRange.ONE_SEVEN_TWO),
        ("192.168.0.0/16", AddressRange.ONE_NINE_TWO),
        ("100.64.0.0/10", AddressRange.CARRIER),
        ("169.254.0.0/16", AddressRange.LINK_LOCAL),
        ("fe80::/10", AddressRange.LINK_LOCAL),
        ("fc00::/7", AddressRange.UNIQUE_LOCAL),
        ("fec0::/10", AddressRange.UNIQUE_LOCAL),
        # Versions of the standard library disagree about these.
        ("192.0.0.0/24", AddressRange.RESERVED),
        ("64:ff9b:1::/48", AddressRange.RESERVED),
        ("3fff::/20", AddressRange.RESERVED),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_LAN = frozenset(AddressRange) - {AddressRange.PUBLIC, AddressRange.LOOPBACK, AddressRange.NOBODY}


def range_of(address: IpAddress) -> AddressRange:
    """The range of an address; an IPv6 address that wraps an IPv4 one (mapped, NAT64, 6to4, Teredo) has its range."""
    for network, kind in _KNOWN:
        if address in network:
            return kind
    wrapped = [range_of(inner) for inner in _wrapped_in(address)]
    private = next((kind for kind in wrapped if kind is not AddressRange.PUBLIC), None)
    if private is not None:
        return private
    if wrapped or (address.is_global and not address.is_reserved):
        return AddressRange.PUBLIC
    return AddressRange.RESERVED


def _wrapped_in(address: IpAddress) -> Sequence[ipaddress.IPv4Address]:
    """The IPv4 addresses to which a gateway, or this machine itself, would forward packets for an IPv6 address."""
    if not isinstance(address, ipaddress.IPv6Address):
        return ()
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64 or address in _V4_COMPATIBLE:
        return (low,)
    found = (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()))
    return tuple(inner for inner in found if inner is not None)


@dataclass(frozen=True)
class DialRule:
    """The ranges in which a node dials addresses from records."""

    ranges: frozenset[AddressRange] = frozenset({AddressRange.PUBLIC})

    def allows(self, address: IpAddress) -> bool:
        """Whether the node dials an address that a record names."""
        return range_of(address) in self.ranges

    def allowed(self, addresses: Sequence[IpAddress], target: object) -> tuple[IpAddress, ...]:
        """The addresses of `target` that may be dialled. Raises AddressRefused if there are none."""
        found = tuple(address for address in addresses if self.allows(address))
        if not found:
            ranges = ", ".join(sorted({range_of(address).value for address in addresses}))
            raise AddressRefused(f"{target} is not dialled: it is in {ranges}, and this swarm is elsewhere")
        return found

    def reached(self, address: IpAddress) -> DialRule:
        """The rule once an initial peer was reached at `address`: the swarm is in that range.

        A swarm that is reached on this machine itself may also be on this machine's networks: peers that listen on all
        addresses announce one of these.
        """
        kind = range_of(address)
        more = {AddressRange.LOOPBACK} | _LAN if kind is AddressRange.LOOPBACK else {kind}
        return DialRule(self.ranges | (more - {AddressRange.NOBODY}))


EVERY_RANGE = DialRule(frozenset(AddressRange) - {AddressRange.NOBODY})
"""For private swarms, whose members trust each other, and with `--lan`."""


def rule_for(*, private: bool, lan: bool, begun_at: Iterable[str] = ()) -> DialRule:
    """The rule at the start of a program.

    `private`: it has the key of a private swarm. `begun_at`: the hosts at which a peer that begins a swarm announces
    itself; a swarm that begins in a private range is one of that range.
    """
    if private or lan:
        return EVERY_RANGE
    rule = DialRule()
    for host in begun_at:
        address = literal(host)
        if address is not None:
            rule = rule.reached(address)
    return rule


def literal(host: str) -> IpAddress | None:
    """`host` as an IP address; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def grpc_target(addresses: Sequence[IpAddress], port: int) -> str:
    """The addresses as a gRPC target, which needs no resolving; gRPC tries one after the other."""
    if len(addresses) == 1 and addresses[0].version == 4:
        return f"ipv4:{addresses[0]}:{port}"
    six = (f"::ffff:{address}" if address.version == 4 else str(address) for address in addresses)
    return "ipv6:" + ",".join(f"[{address}]:{port}" for address in six)
