"""A peer whose server has ended, for whatever reason, says why and ends, instead of announcing itself on."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support.processes import STOP_SECONDS, PeerProcess, environment, kill_group
from support.raw_http2 import raw_http2_call
from support.tiny_models import write_tiny_checkpoint

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(400)]

UNKNOWN_GRPC = """
from grpc._cython import cygrpc

known = cygrpc.AioServer
cygrpc.AioServer = lambda *parts: known(*parts)  # nothing to build on: gRPC's own server is used, which can be ended
"""
CLOSED_PORT = """
import os, signal, socket


def stop_listening(*_):
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


signal.signal(signal.SIGUSR1, stop_listening)
"""
MAIN = "from blockswarm.peer.cli import main\n\nmain()\n"


def start(before: str, folder: Path) -> PeerProcess:
    """Start `swarm-peer` in a process in which something has happened to what lies below the peer."""
    model = write_tiny_checkpoint("llama", folder / "model")
    line = [sys.executable, "-c", before + MAIN, str(model), "--new-swarm", "--host", "127.0.0.1"]
    line += ["--data", str(folder / "data"), "--device", "cpu", "--threads", "1", "--json"]
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            line, env=environment(), start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    return PeerProcess(process, log)


def reason_of(peer: PeerProcess) -> str:
    """The last words of a peer that ends with an error."""
    assert peer.process.wait(STOP_SECONDS + 60) == 1
    *_, reason, hint = peer.log.read_text().splitlines()
    assert "Start the program again" in hint
    return reason


def test_a_peer_whose_server_a_stranger_has_ended_ends_with_the_reason(tmp_path: Path) -> None:
    peer = start(UNKNOWN_GRPC, tmp_path)
    try:
        address = peer.wait_ready().address
        assert "grpcio" in peer.log.read_text()
        with suppress(OSError, asyncio.IncompleteReadError):  # it may end before it has answered
            asyncio.run(raw_http2_call(address, b"/\xff\xfe/x"))
        assert "answering calls failed: UnicodeDecodeError" in reason_of(peer)
    finally:
        kill_group(peer.process)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are listed by Linux only")
def test_a_peer_whose_port_is_closed_ends_with_the_reason(tmp_path: Path) -> None:
    peer = start(CLOSED_PORT, tmp_path)
    try:
        port = peer.wait_ready().address.target.rpartition(":")[2]
        peer.process.send_signal(signal.SIGUSR1)
        assert f"answering calls failed: connections to port {port} are refused" in reason_of(peer)
    finally:
        kill_group(peer.process)
