"""Multiaddresses of the DHT: /ip4/203.0.113.7/tcp/31337, with /p2p/ID behind it where a certain node is meant."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterable, Sequence

from ...errors import UsageError
from .shim import Multiaddr, PeerID

log = logging.getLogger(__name__)

_MALFORMED = (ValueError, LookupError, TypeError, OverflowError)
"""The errors of hivemind's reader of addresses."""


def pin_ports(listen_maddrs: Sequence[str], visible: Sequence[str]) -> tuple[str, ...]:
    """`listen_maddrs` with "any port" (0) replaced by the port that was got, where it can be told."""
    ports = {}
    for maddr in visible:
        if match := re.match(r"/(ip[46])/[^/]+/tcp/(\d+)", maddr):
            ports[match[1]] = match[2]
    pinned = []
    for maddr in listen_maddrs:
        match = re.fullmatch(r"/(ip[46])/([^/]+)/tcp/0", maddr)
        pinned.append(f"/{match[1]}/{match[2]}/tcp/{ports[match[1]]}" if match and match[1] in ports else maddr)
    return tuple(pinned)


def with_known_ports(listen: Sequence[str], announced: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Both, with a free port in the place of "any port" (0) if one of the announced addresses has it.

    The daemon announces as it is told before it listens, so the port must be known before.  Raises UsageError.
    """
    if not any(maddr.endswith("/tcp/0") for maddr in announced):
        return tuple(listen), tuple(announced)
    port = 0
    pinned = []
    for maddr in listen:
        if match := re.fullmatch(r"/ip([46])/([^/]+)/tcp/(\d+)", maddr):
            port = int(match[3]) or _free_port(socket.AF_INET if match[1] == "4" else socket.AF_INET6, match[2])
            maddr = f"/ip{match[1]}/{match[2]}/tcp/{port}"
        pinned.append(maddr)
    return tuple(pinned), tuple(re.sub(r"/tcp/0$", f"/tcp/{port}", maddr) for maddr in announced)


def _free_port(family: socket.AddressFamily, host: str) -> int:
    """A port that is free at the moment. Raises UsageError."""
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise UsageError(f"the DHT cannot listen on {host}: {error.strerror}", hint="Choose another --host.") from None


def readable_maddrs(maddrs: Iterable[bytes]) -> tuple[str, ...]:
    """The text of those addresses that have one: the daemon passes on any bytes, and knows more protocols."""
    texts = []
    for maddr in maddrs:
        try:
            if text := str(Multiaddr(maddr)):
                texts.append(text)
        except _MALFORMED as error:
            log.debug("an address of the DHT is not readable: %r", error)
    return tuple(texts)


def check_maddr(maddr: str, needs_peer_id: bool) -> None:
    """Raises UsageError if it has no binary form, or none with the same text."""
    try:
        parsed = Multiaddr(maddr)
        if needs_peer_id:
            PeerID.from_base58(parsed["p2p"])
        if not str(parsed).isprintable():
            raise ValueError("it is not printable")
    except _MALFORMED:
        example = "/ip4/203.0.113.7/tcp/31337" + ("/p2p/12D3KooW..." if needs_peer_id else "")
        raise UsageError(
            f"{maddr!r} is no address of the DHT",
            hint=f"It looks like {example}; a name has letters, digits, hyphens and dots.",
        ) from None


def usable_maddrs(maddrs: Sequence[str], log_level: int = logging.WARNING) -> tuple[str, ...]:
    """The addresses that name a node; others are logged and left out."""
    usable = []
    for maddr in maddrs:
        try:
            check_maddr(maddr, needs_peer_id=True)
            usable.append(maddr)
        except UsageError as error:
            log.log(log_level, "%s; it is left out", error)
    return tuple(usable)
