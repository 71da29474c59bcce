"""Every error of the swarm has a status, and none of them looks like success."""

from __future__ import annotations

import pytest
from blockswarm.client.api.openai.errors import ApiError, from_swarm_error
from blockswarm.proto.errors import (
    WIRE_CLASSES,
    DeadlineExceeded,
    NoChainError,
    PeerBusy,
    SessionLost,
    SwarmError,
    UsageError,
)


def every_error() -> list[SwarmError]:
    special = {PeerBusy: lambda: PeerBusy(2.5), NoChainError: lambda: NoChainError([3])}
    return [special.get(kind, lambda kind=kind: kind("it broke"))() for kind in WIRE_CLASSES.values()]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_an_error_of_the_swarm_keeps_its_code_and_its_hint(error: SwarmError) -> None:
    told = from_swarm_error(error)
    assert 400 <= told.status < 600
    body = told.body()["error"]
    assert body["code"] == error.code
    assert str(error) in body["message"]
    assert error.hint in body["message"]
    assert (told.status == 400) == isinstance(error, UsageError), "only input is the client's fault"


def test_a_full_swarm_says_when_to_come_back() -> None:
    assert from_swarm_error(PeerBusy(2.5)).headers() == {"Retry-After": "3"}
    assert from_swarm_error(PeerBusy(0.0)).headers() == {"Retry-After": "1"}
    assert from_swarm_error(SessionLost("gone")).headers() == {}


def test_what_may_work_later_is_told_from_what_took_too_long() -> None:
    assert from_swarm_error(SessionLost("gone")).status == 503
    assert from_swarm_error(DeadlineExceeded("late")).status == 504
    assert from_swarm_error(PeerBusy(1.0)).status == 429


def test_an_error_has_openais_shape() -> None:
    error = ApiError(400, "no", param="n", code="invalid_value")
    assert error.body() == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }
