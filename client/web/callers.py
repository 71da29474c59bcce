"""Where a request comes from, for the shares of the servers."""

from __future__ import annotations

from starlette.types import Scope

from ...proto.network.address import network_of_host


def network_of_caller(scope: Scope) -> str:
    """Return the network of a request's client: identities cost nothing, addresses in many networks do.

    uvicorn has put the address from `X-Forwarded-For` into the scope if the connection comes from a proxy that it
    trusts: one of this machine, or of those in the environment variable FORWARDED_ALLOW_IPS.  Behind any other proxy
    all clients are in the proxy's network.
    """
    client = scope.get("client")
    return network_of_host(client[0] if client else "")
