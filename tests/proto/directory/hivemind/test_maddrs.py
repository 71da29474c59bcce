"""Multiaddresses from people, records and the daemon: read, or refused with a reason."""

from __future__ import annotations

import pytest
from blockswarm.proto.directory.hivemind.maddrs import check_maddr, pin_ports, readable_maddrs, usable_maddrs
from blockswarm.proto.directory.hivemind.shim import Multiaddr
from blockswarm.proto.errors import UsageError
from blockswarm.proto.identity import Identity
from hypothesis import given
from hypothesis import strategies as st

ID = Identity.generate().peer_id
GOOD = "/ip4/192.0.2.1/tcp/31337"
NEWER = bytes.fromhex("04c0000201910207a1d103")
"""An address of WebTransport, which hivemind does not know."""


@pytest.mark.parametrize(
    "host", ["my_box", "-box", "box-", "a..b", "xn--bcher-kva.example", "box\n", "b\u00f6x.\u202e"]
)
def test_a_host_name_that_the_dht_cannot_carry_is_told(host: str) -> None:
    """hivemind takes some of them, and fails when it has to print them for the daemon: --announce was a traceback."""
    with pytest.raises(UsageError, match="no address") as caught:
        check_maddr(f"/dns/{host}/tcp/31337", needs_peer_id=False)
    assert "letters, digits, hyphens and dots" in caught.value.hint


@pytest.mark.parametrize("host", ["box", "my-box.example.org"])
def test_other_host_names_are_taken(host: str) -> None:
    check_maddr(f"/dns/{host}/tcp/31337", needs_peer_id=False)


def test_addresses_that_cannot_be_printed_are_passed_over() -> None:
    binary = Multiaddr(GOOD).to_bytes()
    underscore = b"\x35\x06my_box" + binary[5:]
    assert readable_maddrs([NEWER, b"", underscore, binary, b"\xff" * 11, binary[:-1]]) == (GOOD,)


ends = st.sampled_from([GOOD, f"{GOOD}/p2p/{ID}", "/dns/a", "/ip6/::1", "/unix/a\n", "/onion/x:1", "/p2p/x", "", "/"])


@given(data=st.binary(max_size=60) | st.builds(bytes.__add__, st.just(NEWER), st.binary(max_size=9)))
def test_any_bytes_are_an_address_or_none(data: bytes) -> None:
    assert len(readable_maddrs([data, Multiaddr(GOOD).to_bytes()])) in (1, 2)


@given(text=st.lists(st.text(max_size=9) | ends, max_size=4).map("".join))
def test_any_text_is_an_address_or_left_out(text: str) -> None:
    known = f"{GOOD}/p2p/{ID}"
    assert set(usable_maddrs([text, known])) <= {text, known}
    assert known in usable_maddrs([text, known])
    assert all(maddr.isprintable() for maddr in usable_maddrs([text]))


def test_the_port_that_was_got_is_asked_for_again() -> None:
    visible = ["/ip4/192.0.2.1/tcp/4001/p2p/x", "/ip6/::1/tcp/4002/p2p/x"]
    listen = ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0", "/ip4/0.0.0.0/tcp/99"]
    assert pin_ports(listen, visible) == ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4002", "/ip4/0.0.0.0/tcp/99")
    assert pin_ports(listen, []) == tuple(listen)
