"""Decides which web pages may send requests: the endpoint's own, and those of allowed origins.

Any web page can make its reader's browser send requests to this machine, without seeing the answers; and a host name
that resolves to this machine (DNS rebinding) can make the browser take the page for the endpoint's own.  Programs other
than browsers send no `Origin`.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_allowed(origin: str | None, host: str, allowed: Collection[str], loopback_only: bool) -> bool:
    """Return whether a request with these headers `Origin` and `Host` may be answered.

    `loopback_only`: the endpoint listens on a loopback address only, so other host names are refused.
    """
    if loopback_only and _host_name(f"//{host}") not in LOOPBACK_NAMES:
        return False
    if origin is None or origin in allowed or "*" in allowed:
        return True
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def _host_name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
