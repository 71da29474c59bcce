"""A peer that comes back listens where it did before, if that is possible."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from blockswarm.peer.reach.ports import ANY_PORTS, Ports, RememberedPorts, check_port, port_of, usable_port
from blockswarm.proto.errors import UsageError
from blockswarm.routing.swarm import PeerId

ALICE, BOB = PeerId("alice-" + "a" * 20), PeerId("bob-" + "b" * 20)


def test_ports_are_remembered_for_each_peer(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    assert RememberedPorts(folder, ALICE).load() == ANY_PORTS
    RememberedPorts(folder, ALICE).save(Ports(4000, 4001))
    RememberedPorts(folder, BOB).save(Ports(5000, 5001))
    assert RememberedPorts(folder, ALICE).load() == Ports(4000, 4001)
    assert RememberedPorts(folder, BOB).load() == Ports(5000, 5001)


@pytest.mark.parametrize(
    ("content", "ports"),
    [
        ("", ANY_PORTS),
        ("[1, 2]", ANY_PORTS),
        ('{"data": 4000}', ANY_PORTS),
        ('{"data": "4000", "dht": 4001}', Ports(0, 4001)),
        ('{"data": 70000, "dht": -1}', ANY_PORTS),
        ("[" * 900, ANY_PORTS),
        ('{"data": 4000, "dht": 4001}' + " " * 2000, ANY_PORTS),
    ],
)
def test_a_garbled_file_is_as_good_as_none(tmp_path: Path, content: str, ports: Ports) -> None:
    RememberedPorts(tmp_path, ALICE).save(Ports(1, 2))
    [path] = tmp_path.iterdir()
    path.write_text(content)
    assert RememberedPorts(tmp_path, ALICE).load() == ports


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    RememberedPorts(tmp_path, ALICE).save(Ports(1, 2))


def test_the_asked_port_counts_then_the_remembered_one_if_it_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        assert usable_port("127.0.0.1", 4000, busy) == 4000
        assert usable_port("127.0.0.1", 0, busy) == 0
    assert usable_port("127.0.0.1", 0, busy) == busy
    assert usable_port("127.0.0.1", 0, 0) == 0
    assert usable_port("no.such.host.example", 0, busy) == 0


def test_the_port_of_a_node_of_the_dht() -> None:
    assert port_of(["/ip4/127.0.0.1/tcp/4001/p2p/x", "/ip4/10.0.0.1/tcp/4002"]) == 4001
    assert port_of(["/ip4/127.0.0.1/udp/1/quic", "/ip6/::1/tcp/77"]) == 77
    assert port_of(["/dns/tcp.example", "/ip4/1.1.1.1/tcp/99999"]) == 0
    assert port_of([]) == 0


def test_a_port_that_was_asked_for_must_be_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}: .* in use") as refused:
            check_port("--dht-port", "127.0.0.1", port)
        assert "--dht-port" in refused.value.hint
    check_port("--port", "127.0.0.1", port)
    check_port("--port", "192.0.2.1", 0)
    with pytest.raises(UsageError, match="cannot listen on"):
        check_port("--port", "192.0.2.1", port)
