"""Messages to a service manager: a datagram at the socket that it names."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from blockswarm.proto.service_manager import READY, tell_service_manager


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_the_state_arrives(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path if kind == "file" else f"\0{path}")
        assert tell_service_manager(READY, {"NOTIFY_SOCKET": path if kind == "file" else f"@{path}"})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all", "@nobody-listens-here", "/" + "x" * 300])
def test_where_nobody_listens_nothing_happens(address: str | None) -> None:
    assert not tell_service_manager(READY, {} if address is None else {"NOTIFY_SOCKET": address})


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        while tell_service_manager(READY, {"NOTIFY_SOCKET": path}):
            pass  # until its queue is full
