"""Errors in OpenAI's shape with their HTTP status, and the mapping of the swarm's errors to them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ....proto.errors import (
    AuthenticationError,
    BadActivations,
    ClockSkew,
    DeadlineExceeded,
    GiveUp,
    NoChainError,
    OutOfMemory,
    PeerBusy,
    RetryElsewhere,
    SwarmError,
    UsageError,
    one_line,
)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RATE_LIMIT = "rate_limit_error"

STATUSES: Mapping[type[SwarmError], tuple[int, str]] = {
    UsageError: (400, INVALID_REQUEST),
    PeerBusy: (429, RATE_LIMIT),
    DeadlineExceeded: (504, SERVER_ERROR),
    BadActivations: (502, SERVER_ERROR),
    RetryElsewhere: (503, SERVER_ERROR),
    NoChainError: (503, SERVER_ERROR),
    AuthenticationError: (502, SERVER_ERROR),
    ClockSkew: (503, SERVER_ERROR),
    OutOfMemory: (503, SERVER_ERROR),
    GiveUp: (502, SERVER_ERROR),
    SwarmError: (502, SERVER_ERROR),
}
"""HTTP status and OpenAI's type, by the nearest class of the error."""

MAX_RETRY_AFTER_SECONDS_SHOWN = 3600


class ApiError(Exception):
    """The error of a request that gets no answer, or of an answer that ends early."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        """`kind` is OpenAI's `type`; `param` names the field that is at fault."""
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, object]:
        """Return the JSON of the response, or of the last event of a stream."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.retry_after_seconds is None:
            return {}
        seconds = min(max(1, math.ceil(self.retry_after_seconds)), MAX_RETRY_AFTER_SECONDS_SHOWN)
        return {"Retry-After": str(seconds)}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return an error that is the client's fault (status 400)."""
    return ApiError(400, message, param=param, code=code)


def from_swarm_error(error: SwarmError) -> ApiError:
    """Translate an error for a client of the endpoint. PeerBusy includes the time to come back."""
    status, kind = next(STATUSES[base] for base in type(error).__mro__ if base in STATUSES)
    busy = error.retry_after_seconds if isinstance(error, PeerBusy) else None
    message = one_line(f"{error}. {error.hint}")
    return ApiError(status, message, kind=kind, code=error.code, retry_after_seconds=busy)


def internal_error() -> ApiError:
    """Return the error for a bug of this program; the log has the details."""
    return ApiError(500, "the endpoint failed internally", kind=SERVER_ERROR, code="internal")
