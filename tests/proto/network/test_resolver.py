"""Names are looked up for a bounded time, a bounded number at once."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.network.address import HostPort
from blockswarm.proto.network.resolver import MAX_ADDRESSES_OF_A_NAME, Resolver

NAME = HostPort("peer.example.org", 31337)


def answer(*hosts: str) -> Any:
    def lookup(host: str, port: int, **_: Any) -> Sequence[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in hosts]

    return lookup


def test_an_address_needs_no_look_up() -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be looked up")

    found = asyncio.run(Resolver(never).addresses(HostPort("2001:db8::1", 1)))
    assert found == (ipaddress.ip_address("2001:db8::1"),)


def test_a_name_has_at_most_a_few_addresses_and_none_of_one_link_only() -> None:
    many = [f"192.0.2.{n}" for n in range(1, 200)]
    found = asyncio.run(Resolver(answer("fe80::1%2", *many)).addresses(NAME))
    assert found == tuple(map(ipaddress.ip_address, many[:MAX_ADDRESSES_OF_A_NAME]))


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long"), OSError("no net")])
def test_a_name_that_nobody_knows_is_a_peer_that_is_not_there(error: Exception) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    with pytest.raises(PeerUnavailable, match=r"peer\.example\.org:31337: the name cannot be resolved"):
        asyncio.run(Resolver(fails).addresses(NAME))


def test_without_a_thread_for_it_a_name_is_not_looked_up_and_the_next_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        resolver = Resolver(answer("192.0.2.1"), most=1)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", no_thread)
                with pytest.raises(PeerUnavailable, match="cannot be looked up now"):
                    await resolver.addresses(NAME)
        assert await resolver.addresses(NAME) == (ipaddress.ip_address("192.0.2.1"),)

    asyncio.run(main())


def test_slow_names_are_given_up_and_do_not_take_all_threads() -> None:
    """The owner of a name can have its look-up take as long as it likes."""
    release = threading.Event()

    def slow(host: str, port: int, **_: Any) -> Any:
        release.wait(60)
        return answer("192.0.2.1")(host, port)

    async def main() -> None:
        resolver = Resolver(slow, timeout_seconds=0.05, most=3)
        results = await asyncio.gather(*(resolver.addresses(NAME) for _ in range(5)), return_exceptions=True)
        texts = sorted(str(result) for result in results)
        assert sum("cannot be resolved" in text for text in texts) == 3
        assert sum("too many names" in text for text in texts) == 2
        release.set()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await resolver.addresses(NAME)
                    break
                except PeerUnavailable:
                    await asyncio.sleep(0.01)

    asyncio.run(main())
