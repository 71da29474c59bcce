"""A router with network address translation between a home and the Internet, as packets see it. No I/O here.

Every port of the home gets one port of the router when it first sends something (RFC 4787: endpoint-independent
mapping), and only those hear back whom it has sent to (address and port-dependent filtering).  IPv4 with TCP and UDP.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

TCP, UDP = 6, 17
CHECKSUM_AT = {TCP: 16, UDP: 6}
"""Where the checksum is in the header of each protocol."""
FIRST_PORT, MOST_PORTS = 40_000, 10_000

End = tuple[bytes, int]
"""An address as four bytes, and a port."""


@dataclass
class Router:
    """The translation between a home and the router's public address."""

    public: str
    ports: dict[tuple[int, End], int] = field(default_factory=dict)
    """By protocol and end in the home: the port of the router."""
    inside: dict[tuple[int, int], End] = field(default_factory=dict)
    sent_to: set[tuple[int, int, End]] = field(default_factory=set)
    """Protocol, port of the router, and the end outside that was sent to."""
    forwarded: set[tuple[int, int]] = field(default_factory=set)
    """Protocols and ports of the router that everybody may send to."""
    passed: int = 0
    refused: int = 0
    """Packets from outside that nobody in the home had asked for."""
    invited: int = 0
    """The same to a port that is forwarded."""

    def forward(self, port: int, host: str) -> None:
        """Lead what comes to this TCP port to the same port of a host in the home, as its owner may set the router."""
        end = ipaddress.IPv4Address(host).packed, port
        self.ports[TCP, end], self.inside[TCP, port] = port, end
        self.forwarded.add((TCP, port))

    def outgoing(self, packet: bytes) -> bytes | None:
        """A packet of the home as it leaves the router; None where it does not."""
        found = ends_of(packet)
        if found is None or ipaddress.IPv4Address(found[2][0]).is_multicast:
            return None
        protocol, source, target = found
        port = self.ports.get((protocol, source))
        if port is None:
            if len(self.ports) >= MOST_PORTS:
                return None
            port = self.ports[protocol, source] = FIRST_PORT + len(self.ports)
            self.inside[protocol, port] = source
        self.sent_to.add((protocol, port, target))
        self.passed += 1
        return readdressed(packet, (ipaddress.IPv4Address(self.public).packed, port), target)

    def incoming(self, packet: bytes) -> bytes | None:
        """A packet that came to the router as the home gets it; None if nobody there has sent to where it is from."""
        found = ends_of(packet)
        if found is None:
            return None
        protocol, source, (_, port) = found
        if (protocol, port, source) not in self.sent_to:
            if (protocol, port) not in self.forwarded:
                self.refused += 1
                return None
            self.invited += 1
        self.passed += 1
        return readdressed(packet, source, self.inside[protocol, port])


def ends_of(packet: bytes) -> tuple[int, End, End] | None:
    """The protocol, source and target of a whole IPv4 packet; None for anything else."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] not in CHECKSUM_AT:
        return None
    start = 4 * (packet[0] & 15)
    is_fragment = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF
    if is_fragment or len(packet) < start + 8:
        return None
    source, target = struct.unpack_from("!HH", packet, start)
    return packet[9], (packet[12:16], source), (packet[16:20], target)


def readdressed(packet: bytes, source: End, target: End) -> bytes:
    """The packet from another source, to another target, with right checksums."""
    changed, start = bytearray(packet), 4 * (packet[0] & 15)
    changed[12:20] = source[0] + target[0]
    struct.pack_into("!HH", changed, start, source[1], target[1])
    changed[10:12] = bytes(2)
    struct.pack_into("!H", changed, 10, checksum(changed[:start]))
    at = start + CHECKSUM_AT[packet[9]]
    changed[at : at + 2] = bytes(2)
    pseudo = changed[12:20] + struct.pack("!HH", packet[9], len(changed) - start)
    struct.pack_into("!H", changed, at, checksum(pseudo + changed[start:]))
    return bytes(changed)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071): a sum of 16-bit words with carries is the number modulo 65,535."""
    return 0xFFFF - int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF
