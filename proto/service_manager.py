"""Tells systemd when a program is ready and when it stops: `Type=notify` of a unit; nothing where there is none.

The protocol is a datagram of lines to the socket that `NOTIFY_SOCKET` names (sd_notify(3)).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

READY, STOPPING = "READY=1", "STOPPING=1"


def tell_service_manager(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the service manager was told. It is no reason to end if it does not listen."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not hasattr(socket, "AF_UNIX") or address[:1] not in ("/", "@"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract one
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.setblocking(False)
            told.sendto(state.encode(), address)
    except OSError:
        return False
    return True
