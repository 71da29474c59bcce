"""The guard of a node of a private swarm's DHT: it lets in the calls of members."""

from __future__ import annotations

import hmac
import itertools
import secrets
import time
from collections.abc import Callable
from typing import Any

from ...errors import ClockSkew, describe_clocks
from ...wire.timing import DHT_CALL_AGE_SECONDS
from ..swarm_key import SwarmKey
from .shim import AuthorizerBase


class CallGuard(AuthorizerBase):
    """Every request and answer between nodes carries an HMAC under the swarm key.

    Answers are bound to their request, and requests are good once and for a minute.  A request is not bound to its
    receiver: a node that gets one may pass it on, and learns no more than sealed records.  Nonces age by the monotonic
    clock: with one that is set back, they would pile up until no call is let in.
    """

    def __init__(
        self,
        swarm_key: SwarmKey,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        max_nonces: int = 100_000,
    ) -> None:
        self._key = swarm_key.subkey(b"dht calls")
        self._clock = clock
        self._monotonic = monotonic
        self._max_nonces = max_nonces
        self._seen: dict[bytes, float] = {}

    @property
    def remembered_calls(self) -> int:
        """Number of nonces that are kept, 16 bytes each."""
        return len(self._seen)

    async def sign_request(self, request: Any, service_public_key: object) -> None:
        request.auth.time = self._clock()
        request.auth.nonce = secrets.token_bytes(16)
        request.auth.signature = self._tag(b"request", request)

    async def validate_request(self, request: Any) -> bool:
        """Raises ClockSkew for a member's call of another time: a member may know by how much the clocks differ."""
        now = self._monotonic()
        nonce = request.auth.nonce
        if not self._is_tagged(b"request", request):
            return False
        ahead = request.auth.time - self._clock()
        if not abs(ahead) <= DHT_CALL_AGE_SECONDS:
            raise ClockSkew(describe_clocks("the caller's clock", "the other node's", ahead))
        for old, seen_at in list(itertools.islice(self._seen.items(), 2)):  # two out for one in: it stays small
            if now - seen_at > 2 * DHT_CALL_AGE_SECONDS:
                del self._seen[old]
        if nonce in self._seen or len(self._seen) >= self._max_nonces:
            return False
        self._seen[nonce] = now
        return True

    async def sign_response(self, response: Any, request: Any) -> None:
        response.auth.nonce = request.auth.nonce
        response.auth.signature = self._tag(b"response", response)

    async def validate_response(self, response: Any, request: Any) -> bool:
        return response.auth.nonce == request.auth.nonce and self._is_tagged(b"response", response)

    def _tag(self, direction: bytes, message: Any) -> bytes:
        content = type(message).__name__.encode() + b"\0" + message.SerializeToString(deterministic=True)
        return hmac.digest(self._key, direction + b"\0" + content, "sha256")

    def _is_tagged(self, direction: bytes, message: Any) -> bool:
        bare = type(message)()
        bare.CopyFrom(message)
        bare.auth.ClearField("signature")
        return hmac.compare_digest(self._tag(direction, bare), message.auth.signature)
