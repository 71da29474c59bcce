"""Errors at the start of a peer are told before anything dear is done: torch alone takes seconds to import."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockswarm.peer.key_lock import exclusive_key
from blockswarm.proto.identity import Identity
from support.processes import environment
from support.swarm_thread import SwarmThread, swarm_thread
from support.tiny_models import write_tiny_checkpoint

PROGRAM = """
import atexit, sys
from blockswarm.peer.cli import main
heavy = ("torch", "transformers", "hivemind")
atexit.register(lambda: print("loaded:", *(name for name in heavy if name in sys.modules), file=sys.stderr))
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[SwarmThread]:
    with swarm_thread(folder, "0:6") as thread:
        yield thread


def refusal(data: Path, *arguments: object, **variables: str) -> str:
    """The words of a program that ends at once, without its log; it must not have loaded anything large."""
    line = [*arguments, "--data", data]
    if "--host" not in line:
        line += ["--host", "127.0.0.1"]
    program = [sys.executable, "-c", PROGRAM, *map(str, line)]
    done = subprocess.run(
        program, env={**environment(), **variables}, capture_output=True, text=True, check=False, timeout=60
    )
    *told, loaded = done.stderr.splitlines()
    assert loaded.split() == ["loaded:"], told
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    found = [line for line in told if not line[:4].isdecimal()]
    assert len(found) == 2, told
    return "\n".join(found)


@pytest.mark.long
@pytest.mark.parametrize("option", ["--port", "--dht-port", "--metrics-port"])
def test_a_port_that_another_program_has(folder: Path, tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = refusal(tmp_path, folder, "--new-swarm", option, taken.getsockname()[1])
    assert "cannot listen on 127.0.0.1:" in told
    assert option in told


@pytest.mark.long
def test_an_address_that_is_not_this_machines(folder: Path, tmp_path: Path) -> None:
    told = refusal(tmp_path, folder, "--new-swarm", "--host", "192.0.2.1", "--port", 4000)
    assert "cannot listen on 192.0.2.1:4000" in told
    assert "an address of this machine" in told


@pytest.mark.long
def test_a_key_that_is_in_use(folder: Path, tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / "peer.key")
    with exclusive_key(tmp_path / "peer.key"):
        assert "another peer on this machine" in refusal(tmp_path, folder, "--new-swarm")


@pytest.mark.long
def test_blocks_that_the_model_does_not_have(folder: Path, tmp_path: Path) -> None:
    assert "0:6" in refusal(tmp_path, folder, "--new-swarm", "--blocks", "4:7")


@pytest.mark.long
def test_a_model_that_the_swarm_does_not_serve(serving: SwarmThread, folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"rms_norm_eps": 2e-5}))
    told = refusal(tmp_path, other, *serving.initial)
    assert "not this model" in told
    assert serving.swarm.digest[:12] in told


@pytest.mark.long
def test_initial_peers_that_do_not_run(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"{Identity.generate().peer_id}@127.0.0.1:{closed.getsockname()[1]}"
    assert "none of the initial peers answers" in refusal(tmp_path, folder, "--initial-peers", address)


@pytest.mark.long
def test_a_gpu_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    """The driver lists what there is; this number no machine has."""
    assert "--device cuda:999" in refusal(tmp_path, folder, "--new-swarm", "--device", "cuda:999")
