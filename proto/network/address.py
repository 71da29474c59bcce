"""How a node is reached: the text form of its addresses, parsed and checked here and nowhere else.

HOST:PORT is a host name, an IPv4 address or an IPv6 address in brackets, and a port; nothing that a resolver or a file
system would interpret.  A peer is reached at such an address under an id that it must prove (`PeerAddress`), or
through another peer (`RelayedAddress`); `reaches_of` lists both kinds for a record, best first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ...routing.swarm import PeerId
from ..errors import SwarmError, UsageError
from ..identity import public_key_of

if TYPE_CHECKING:
    from ..directory.records import PeerRecord

LOOPBACK = "127.0.0.1"
MAX_PORT = 65535
MAX_WAYS_TO_A_RELAY = 2
"""The most addresses of a relay that are tried."""
_MAX_NAME_CHARS = 253
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253})):([1-9][0-9]{0,4})")
_MULTIADDRESS = re.compile(
    r"/(ip[46]|dns[46]?)/([A-Za-z0-9._:-]{1,253})/tcp/([1-9][0-9]{0,4})(?:/p2p/[A-Za-z0-9]{1,64})?"
)
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{_MAX_NAME_CHARS}}}")
_ADDRESS_HINT = "An address is written ID@HOST:PORT, as a peer prints it when it starts."


@dataclass(frozen=True, slots=True)
class HostPort:
    """One end of a TCP connection, written HOST:PORT."""

    host: str
    """A name or an IP address; an IPv6 address without brackets."""
    port: int
    """0, when listening: any free port."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> HostPort:
        """Read HOST:PORT. Raises UsageError."""
        match = _HOST_PORT.fullmatch(text)
        if match is None or int(match[3]) > MAX_PORT or (match[1] and not _is_ip(match[1], 6)):
            raise UsageError(f"{text!r} is not HOST:PORT", hint="An IPv6 address is in brackets: [2001:db8::1]:31337.")
        return cls(match[1] or match[2], int(match[3]))

    @classmethod
    def of(cls, host: str, port: int) -> HostPort:
        """Make one from a host as people write it (IPv6 with or without brackets) and a port. Raises UsageError."""
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not (_NAME.fullmatch(bare) or _is_ip(bare, 6)):
            raise UsageError(f"{host!r} is not a host", hint="Give a name or an IP address.")
        if not 0 <= port <= MAX_PORT:
            raise UsageError(f"{port} is not a port", hint=f"Ports are numbers up to {MAX_PORT}.")
        return cls(bare, port)

    @classmethod
    def of_multiaddress(cls, text: str) -> HostPort | None:
        """Read a multiaddress, the form that libp2p writes; None if it is another kind of address."""
        match = _MULTIADDRESS.fullmatch(text)
        if match is None or int(match[3]) > MAX_PORT:
            return None
        kind, host = match[1], match[2]
        return cls(host, int(match[3])) if kind.startswith("dns") or _is_ip(host, int(kind[2])) else None

    @property
    def multiaddress(self) -> str:
        """The form that libp2p reads: /ip4/192.0.2.1/tcp/31337, /ip6/..., /dns/..."""
        for version in (4, 6):
            if _is_ip(self.host, version):
                return f"/ip{version}/{self.host}/tcp/{self.port}"
        return f"/dns/{self.host}/tcp/{self.port}"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer listens, and the id that it must prove; written ID@HOST:PORT."""

    peer: PeerId
    target: str
    """HOST:PORT, checked when this value was made."""

    def __str__(self) -> str:
        return f"{self.peer}@{self.target}"

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Read ID@HOST:PORT. Raises UsageError."""
        peer, at, target = text.strip().partition("@")
        if not at:
            raise UsageError(f"{text!r} is not the address of a peer", hint=_ADDRESS_HINT)
        try:
            public_key_of(peer)
            HostPort.parse(target)
        except SwarmError as error:
            raise UsageError(f"{text!r} is not the address of a peer: {error}", hint=_ADDRESS_HINT) from None
        return cls(PeerId(peer), target)


@dataclass(frozen=True, slots=True)
class RelayedAddress:
    """A peer without an address of its own, reached through a public peer; written ID through ID@HOST:PORT."""

    peer: PeerId
    relay: PeerAddress

    @property
    def target(self) -> str:
        """HOST:PORT of the relay."""
        return self.relay.target

    def __str__(self) -> str:
        return f"{self.peer} through {self.relay}"


def peer_ids(texts: Iterable[str]) -> frozenset[PeerId]:
    """Read peer ids, each alone or as the beginning of ID@HOST:PORT. Raises UsageError."""
    ids = set()
    for text in [texts] if isinstance(texts, str) else texts:
        peer = str(text).strip().partition("@")[0]
        try:
            public_key_of(peer)
        except SwarmError as error:
            hint = "`swarm-client peers` shows the ids of a swarm's peers."
            raise UsageError(f"{text!r} is not the id of a peer: {error}", hint=hint) from None
        ids.add(PeerId(peer))
    if not ids:
        raise UsageError("no peer is allowed", hint="Name at least one, or leave the option out to allow all.")
    return frozenset(ids)


Reach = PeerAddress | RelayedAddress
"""A way to reach a peer. Only `Dialer` distinguishes the kinds."""


AddressesOf = Callable[[PeerId], Sequence[str]]
"""Looks up the addresses that a peer announces; empty for a peer that is unknown or announces none."""


def nowhere(peer: PeerId) -> Sequence[str]:
    """An `AddressesOf` that knows no peer."""
    return ()


def reaches_of(record: PeerRecord, addresses_of: AddressesOf = nowhere) -> tuple[Reach, ...]:
    """Every way to reach a peer according to its record: its own addresses, best first, and then its relays.

    The address of a relay comes only from the relay's own record (`addresses_of`), so no peer can direct others to a
    third party.  A relay without an address of its own is left out, so there are no chains of relays.
    """
    peer = record.spec.id
    relays = (
        PeerAddress(relay, address) for relay in record.relays for address in addresses_of(relay)[:MAX_WAYS_TO_A_RELAY]
    )
    return (
        *(PeerAddress(peer, address) for address in record.addresses),
        *(RelayedAddress(peer, relay) for relay in relays),
    )


def network_of(target: str) -> str:
    """The network of HOST:PORT. Addresses in many networks cost money; ids and ports are free.

    The network of a public IPv4 address is its /24, of a public IPv6 address its /48, and of any other address, of a
    home or a single machine, the address itself. All host names together are one network: the owner of a name decides,
    each time, where it leads.
    """
    return network_of_host(HostPort.parse(target).host)


def network_of_host(host: str) -> str:
    """The network of a host; see `network_of`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "names"
    address = getattr(address, "ipv4_mapped", None) or address
    return prefix_of(address) if address.is_global else str(address)


def prefix_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The /24 of an IPv4 address or the /48 of an IPv6 one: about the size that one customer gets at once."""
    address = getattr(address, "ipv4_mapped", None) or address
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))


def host_of_caller(peer: str) -> str:
    """The IP address in gRPC's name for a caller ("ipv4:192.0.2.1:5000", "ipv6:%5B::1%5D:5000"); "" if it has none."""
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    return host if kind in ("ipv4", "ipv6") and (_is_ip(host, 4) or _is_ip(host, 6)) else ""


def _is_ip(text: str, version: int) -> bool:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return False
    return parsed.version == version and "%" not in text  # a zone has a meaning on one machine only
