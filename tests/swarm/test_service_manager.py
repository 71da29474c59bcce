"""A peer under a service manager: it is told when the peer serves and when it stops."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from support.processes import peer_processes
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm


def test_a_service_manager_is_told_of_the_start_and_of_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, peer_processes(tmp_path) as processes:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(120)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        peer = processes.start(write_tiny_checkpoint("llama", tmp_path / "model"), "--blocks", "0:6")
        assert manager.recv(100) == b"READY=1"
        peer.wait_ready()
        peer.process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert peer.process.wait(60) == 0
