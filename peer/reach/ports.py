"""The ports of the last run, kept in the data folder: routers forward to them, and other peers remember them."""

from __future__ import annotations

import errno
import json
import logging
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...proto.errors import UsageError
from ...proto.files import keep_text
from ...proto.network.address import MAX_PORT, HostPort
from ...routing.swarm import PeerId

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports to listen on; 0: any free port."""

    data: int = 0
    dht: int = 0


ANY_PORTS = Ports()


class RememberedPorts:
    """The ports on which one peer listened last; other peers with the same data folder have their own."""

    def __init__(self, folder: Path, peer: PeerId) -> None:
        self._path = folder / f"ports-{peer[-16:]}.json"

    def load(self) -> Ports:
        """Return the ports that were saved last; zeros if the file is missing or garbled."""
        try:
            if self._path.stat().st_size > _MAX_FILE_BYTES:
                return ANY_PORTS
            content = json.loads(self._path.read_text(encoding="utf-8"))
            data, dht = content["data"], content["dht"]
        except FileNotFoundError:
            return ANY_PORTS
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            logger.warning("the ports of an earlier run in %s are not readable: %s", self._path, error)
            return ANY_PORTS
        return Ports(_checked(data), _checked(dht))

    def save(self, ports: Ports) -> None:
        """Replace the saved ports; a failure is only logged, because it is no reason to stop a peer."""
        try:
            keep_text(self._path, json.dumps(asdict(ports)))
        except OSError as error:
            logger.warning("the ports of this peer cannot be remembered: %s", error)


def _checked(port: object) -> int:
    return port if isinstance(port, int) and 0 < port <= MAX_PORT else 0


def check_port(option: str, host: str, port: int) -> None:
    """Check that this machine can listen on `port` now; 0, any free port, always passes. Raises UsageError."""
    target = HostPort.of(host, port)
    obstacle = _obstacle(target) if port else None
    if obstacle is not None:
        raise UsageError(
            f"cannot listen on {target}: {obstacle.strerror}",
            hint="Give an address of this machine."
            if obstacle.errno == errno.EADDRNOTAVAIL
            else f"Choose another {option}, or 0 for any free one; or end the program that has this port.",
        )


def usable_port(host: str, asked: int, remembered: int) -> int:
    """Return the port to listen on: the one asked for, else the remembered one if it is free now, else 0 for any."""
    if asked or not remembered:
        return asked
    return remembered if _obstacle(HostPort.of(host, remembered)) is None else 0


def _obstacle(target: HostPort) -> OSError | None:
    """Return the reason why this machine cannot listen there now; None: it can."""
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((target.host, target.port))
        except OSError as error:
            return error
    return None


def port_of(maddrs: Sequence[str]) -> int:
    """Return the TCP port in the first multiaddress that has one; 0 without any."""
    for maddr in maddrs:
        match = re.search(r"/tcp/([0-9]{1,5})(/|$)", maddr)
        if match:
            return _checked(int(match[1]))
    return 0
