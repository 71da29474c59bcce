"""The client on systems without what Unix has: no fork, no fcntl, no /proc, no uvloop, and no hivemind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blockswarm.client import AutoSwarmModelForCausalLM
from support.prompts import prompt
from support.swarm_thread import SwarmThread, swarm_thread
from support.tiny_models import write_tiny_checkpoint

WITHOUT = """
import asyncio, builtins, importlib.abc, io, os, sys

MISSING = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "uvloop", "hivemind"}

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

# Libraries find out for themselves where they are, while they are imported.
import torch, transformers, grpc, subprocess, tempfile, typer, multiprocessing, torch.distributed, torch._dynamo
from transformers import GenerationConfig, GenerationMixin, LlamaConfig, LlamaForCausalLM

for name in MISSING & sys.modules.keys():
    del sys.modules[name]
sys.meta_path.insert(0, Missing())
for name in ("fork", "register_at_fork", "getuid", "geteuid", "sched_getaffinity", "killpg", "nice", "fchmod"):
    if hasattr(os, name):
        delattr(os, name)

def refuse(*_):
    raise NotImplementedError

asyncio.unix_events._UnixSelectorEventLoop.add_signal_handler = refuse
real_open = io.open
def open_elsewhere(file, *arguments, **options):
    if str(file).startswith(("/proc", "/sys", "/dev/fd")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return real_open(file, *arguments, **options)
builtins.open = io.open = open_elsewhere
"""
GENERATE = (
    WITHOUT
    + """
from blockswarm.client import AutoSwarmModelForCausalLM
from support.prompts import prompt
model = AutoSwarmModelForCausalLM.from_pretrained(sys.argv[1], initial_peers=sys.argv[2:])
print(*model.generate(**prompt(6), do_sample=False, max_new_tokens=8, eos_token_id=None)[0].tolist())
"""
)
COMMAND = (
    WITHOUT
    + """
from blockswarm.client.program.cli import main
sys.argv = ["swarm-client", *sys.argv[1:]]
main()
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[SwarmThread]:
    torch.set_num_threads(1)
    with swarm_thread(folder, "0:3", "3:6") as thread:
        yield thread


def run(program: str, *arguments: object) -> str:
    """The standard output of a program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_a_client_generates(folder: Path, serving: SwarmThread) -> None:
    addresses = [str(peer.address) for peer in serving.swarm.peers]
    model = AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses)
    expected = model.generate(**prompt(6), do_sample=False, max_new_tokens=8, eos_token_id=None)[0].tolist()
    model.session_factory.close()
    assert run(GENERATE, folder, *addresses).split() == [str(token) for token in expected]


@pytest.mark.long
@pytest.mark.parametrize("command", ["peers", "route", "status"])
def test_a_swarm_can_be_looked_at(folder: Path, serving: SwarmThread, command: str) -> None:
    (first, *_) = (str(peer.address) for peer in serving.swarm.peers)
    assert run(COMMAND, command, folder, "--initial-peers", first)
