"""Under what a peer runs: a service manager is told when it serves and when it stops, and a terminal may close."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
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


def test_a_peer_leaves_well_when_its_terminal_closes(tmp_path: Path) -> None:
    """It died at once and without a word, as in a power cut: others waited for it until its record had run out."""
    with hangup(signal.SIG_DFL), peer_processes(tmp_path) as processes:
        peer = processes.start(write_tiny_checkpoint("llama", tmp_path / "model"), "--blocks", "0:6").wait_ready()
        peer.process.send_signal(signal.SIGHUP)
        assert peer.process.wait(120) == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says which signals a process ignores")
def test_a_peer_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with hangup(signal.SIG_IGN), peer_processes(tmp_path) as processes:
        peer = processes.start(write_tiny_checkpoint("llama", tmp_path / "model"), "--blocks", "0:6").wait_ready()
        status = Path(f"/proc/{peer.process.pid}/status").read_text()
        assert int(re.findall(r"SigIgn:\s*(\w+)", status)[0], 16) & 1 << signal.SIGHUP - 1


@contextmanager
def hangup(disposition: signal.Handlers) -> Iterator[None]:
    """Give processes that start meanwhile this disposition for SIGHUP, whichever the tests were started with."""
    before = signal.signal(signal.SIGHUP, disposition)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
