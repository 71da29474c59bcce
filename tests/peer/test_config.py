"""The configuration of a peer, as it is read from the command line."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from blockswarm.peer.config import check_listeners, listening_host
from blockswarm.proto.errors import UsageError


def resolver(**names: list[str]) -> Any:
    def resolve(host: str, port: None, type: int) -> list[tuple[Any, ...]]:
        if host not in names and not host.replace(".", "").replace(":", "").isalnum():
            raise socket.gaierror(-2, "Name or service not known")
        return [(None, None, None, "", (address, 0)) for address in names.get(host, [host])]

    return resolve


@pytest.mark.parametrize(
    ("text", "address"),
    [("0.0.0.0", "0.0.0.0"), ("::1", "::1"), ("[::1]", "::1"), ("localhost", "127.0.0.1"), ("six", "2001:db8::1")],
)
def test_a_host_to_listen_on_is_an_address(text: str, address: str) -> None:
    """The DHT takes no names."""
    names = resolver(localhost=["::1", "127.0.0.1"], six=["2001:db8::1"])
    assert listening_host(text, names) == address


@pytest.mark.parametrize("text", ["no-such-host", "two words", "", "[::1", "/ip4/127.0.0.1"])
def test_what_is_no_host_is_refused_in_the_words_of_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="is no"):
        listening_host(text, resolver())


@pytest.mark.parametrize("text", ["peer..example", ".", "x" * 70])
def test_a_name_that_cannot_be_asked_for_is_refused_alike(text: str) -> None:
    """The resolver itself raises no OSError for these; nothing is asked of the network."""
    with pytest.raises(UsageError, match=r"--host .* is no address: a part is empty or too long"):
        listening_host(text)


@pytest.mark.parametrize(("host", "other"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.2", "::")])
def test_two_listeners_on_one_port_are_refused_before_anything_is_done(host: str, other: str) -> None:
    with pytest.raises(UsageError, match="--metrics-port 5000 is the port of --port"):
        check_listeners([("--port", host, 5000), ("--dht-port", host, 5001), ("--metrics-port", other, 5000)])


def test_any_free_port_and_that_of_another_address_are_no_conflict() -> None:
    check_listeners([("--port", "::1", 0), ("--dht-port", "::1", 0), ("--metrics-port", "127.0.0.1", 0)])
    check_listeners([("--port", "127.0.0.2", 5000), ("--metrics-port", "127.0.0.1", 5000)])
