"""Web pages of other origins cannot make their reader's browser ask."""

from __future__ import annotations

import pytest
from blockswarm.client.api.access.origins import is_allowed


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "answer"),
    [
        (None, "127.0.0.1:8000", (), True),
        (None, "localhost:8000", (), True),
        (None, "[::1]:8000", (), True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", (), True),
        ("http://evil.example", "127.0.0.1:8000", (), False),
        ("null", "127.0.0.1:8000", (), False),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", (), False),
        ("http://app.example", "127.0.0.1:8000", ("http://app.example",), True),
        ("http://app.example", "127.0.0.1:8000", ("*",), True),
        ("http://evil.example:8000", "evil.example:8000", (), False),
        (None, "evil.example:8000", (), False),
        (None, "", (), False),
        (None, "[", (), False),
        ("http://[", "127.0.0.1:8000", (), False),
    ],
)
def test_an_endpoint_on_loopback(origin: str | None, host: str, allowed: tuple[str, ...], answer: bool) -> None:
    """A name of somebody else's that leads here is no name of this endpoint."""
    assert is_allowed(origin, host, allowed, loopback_only=True) == answer


def test_an_endpoint_that_others_reach_has_names_that_it_does_not_know() -> None:
    assert is_allowed("https://swarm.example", "swarm.example", (), loopback_only=False)
    assert not is_allowed("https://evil.example", "swarm.example", (), loopback_only=False)
