"""The command line of the peer: what a user sees when it works, and when it cannot."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.model.load import AutoSwarmModelForCausalLM
from blockswarm.peer.cli import app
from blockswarm.peer.key_lock import exclusive_key
from blockswarm.peer.offer.capacity import MemoryNeed, count_that_fits
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.errors import OutOfMemory, UsageError
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.address import PeerAddress
from support.processes import (
    PeerProcess,
    PeerProcesses,
    assert_gone,
    command,
    environment,
    kill_group,
    peer_processes,
    run_program,
    started_by,
)
from support.swarm_thread import SwarmThread, swarm_thread
from support.tiny_models import write_tiny_checkpoint
from support.waiting import until
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

pytestmark = pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning")  # hivemind's

NOBODY = "12D3KooWA29sxFFTDw3qgZr3igFR4Cz3XLFKKBWPuJ85BYzMzjiX@127.0.0.1:1"
"""An address where nothing listens; always the same, because it is part of a test's name."""
START_SECONDS = 90.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture(autouse=True)
def _never_serves() -> Iterator[None]:
    """A peer that starts in this process although it should not is stopped; the test then fails by its status."""
    timer = threading.Timer(START_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    timer.start()
    yield
    timer.cancel()
    signal.signal(signal.SIGTERM, handler)


def run(data: Path, *arguments: object) -> Any:
    line = [*arguments, "--host", "127.0.0.1", "--data", data]
    return CliRunner().invoke(app, [str(argument) for argument in line])


def check_refused(result: Any, code: int, *words: str) -> None:
    """One line that says what is wrong, one that says what to do; before them only dated lines of the log."""
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line[:4].isdecimal()]
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("swarm-peer: ")
    assert lines[1].startswith("  ")
    assert lines[1].strip()
    for word in words:
        assert word in "\n".join(lines)


# --- before anything starts ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--new-swarm"),
        (("--new-swarm", "--initial-peers", NOBODY), "only one"),
        (("--initial-peers", "127.0.0.1:8000"), "ID@HOST:PORT"),
        (("--new-swarm", "--port", "70000"), "--port 70000"),
        (("--new-swarm", "--dtype", "int3"), "float32"),
        (("--new-swarm", "--device", "gpu"), "cuda:1"),
        (("--new-swarm", "--device", "cuda:"), "cuda:1"),
        (("--new-swarm", "--device", "cuda:999"), "--device cpu" if not torch.cuda.is_available() else "cuda:0"),
        (("--new-swarm", "--kv-tokens", "0"), "--kv-tokens"),
        (("--new-swarm", "--kv-tokens", "1000000000000"), "--kv-tokens"),
        (("--new-swarm", "--blocks", "1000"), "--blocks"),
        (("--new-swarm", "--blocks", "0:1000000"), "--blocks"),
        (("--new-swarm", "--name", "x" * 65), "--name"),
        (("--new-swarm", "--name", "two\nlines"), "--name"),
        (("--new-swarm", *(part for i in range(9) for part in ("--announce", f"host:{i + 1}"))), "--announce"),
        (("--new-swarm", "--threads", "0"), "--threads"),
        (("--new-swarm", "--announce", "nowhere"), "HOST:PORT"),
        (("--new-swarm", "--reach", "sideways"), "auto, direct, relay"),
        (("--new-swarm", "--reach", "relay"), "--new-swarm"),
        (("--initial-peers", NOBODY, "--reach", "relay", "--relay"), "--relay"),
        (("--initial-peers", NOBODY, "--reach", "relay", "--announce", "host:1"), "--announce"),
        (("--new-swarm", "--relay", "--relay-peers", "0"), "--relay-peers"),
        (("--new-swarm", "--relay", "--relay-connections", "100000"), "--relay-connections"),
        (("--new-swarm", "--relay", "--relay-rate", "0"), "--relay-rate"),
        (("--new-swarm", "--relay", "--relay-rate", "nan"), "--relay-rate"),
        (("--new-swarm", "--swarm-key", "/nonexistent/key"), "/nonexistent/key"),
        *((("--new-swarm", "--blocks", text), "half-open") for text in ("all", "3:1", "0", "-1", "2:2", "1:2:3", "")),
        (("--new-swarm", "--blocks", "4:7"), "0:6"),
        (("--new-swarm", "--blocks", "7"), "6 blocks"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_option(folder: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    check_refused(run(tmp_path, folder, *options), 2, words)


def test_a_folder_that_is_no_model(folder: Path, tmp_path: Path) -> None:
    check_refused(run(tmp_path, tmp_path, "--new-swarm"), 2, "config.json")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    check_refused(run(tmp_path, tmp_path, "--new-swarm"), 2, "safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    check_refused(run(tmp_path, tmp_path, "--new-swarm"), 2, "pickled", "safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "warpdrive"}')
    (tmp_path / "model.safetensors").symlink_to(folder / "model-00001-of-00005.safetensors")
    check_refused(run(tmp_path, tmp_path, "--new-swarm"), 2, "warpdrive")


def test_a_key_that_others_can_read(folder: Path, tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / "peer.key")
    (tmp_path / "peer.key").chmod(0o644)
    check_refused(run(tmp_path, folder, "--new-swarm"), 2, "chmod 600")


# --- joining ---


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[SwarmThread]:
    with swarm_thread(folder, "0:6") as thread:
        yield thread


@pytest.mark.long
def test_unreachable_initial_peers(folder: Path, tmp_path: Path) -> None:
    check_refused(run(tmp_path, folder, "--initial-peers", NOBODY), 1, NOBODY, "--new-swarm")


@pytest.mark.long
def test_an_initial_peer_that_is_somebody_else(serving: SwarmThread, folder: Path, tmp_path: Path) -> None:
    address = PeerAddress(Identity.generate().peer_id, serving.swarm.peers[0].address.target)
    check_refused(run(tmp_path, folder, "--initial-peers", address), 1, "not the node that it claims to be")


@pytest.mark.long
def test_another_model_than_the_swarms(serving: SwarmThread, tmp_path: Path) -> None:
    other = write_tiny_checkpoint("llama", tmp_path / "other", rms_norm_eps=1e-5)
    words = ("serve test", serving.swarm.digest[:12], "same model")
    check_refused(run(tmp_path, other, *serving.initial), 2, *words)


# --- real peers ---


@pytest.fixture(scope="module")
def swarm_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "swarm.key"
    SwarmKey.generate().save(path)
    return path


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerProcesses]:
    with peer_processes(tmp_path_factory.mktemp("peers")) as started:
        yield started


@pytest.fixture(scope="module")
def first(processes: PeerProcesses, folder: Path, swarm_key: Path) -> PeerProcess:
    """The first peer of a private swarm."""
    return processes.start(folder, "--blocks", "0:3", "--swarm-key", swarm_key).wait_ready()


def metrics_of(peer: PeerProcess) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{peer.described['metrics_port']}/metrics", timeout=60) as page:
        text: str = page.read().decode()
    return text


@pytest.mark.swarm
def test_a_private_swarm_of_real_peers_gives_the_models_own_tokens(
    processes: PeerProcesses, first: PeerProcess, folder: Path, swarm_key: Path
) -> None:
    """And a peer that is asked to leave by its terminal does so, with its daemon, and says so to those that go on."""
    options = ("--blocks", 3, "--swarm-key", swarm_key, "--metrics-port", 0, "--nice")
    second = processes.start(folder, *options, initial=[first.address]).wait_ready()
    assert second.described["blocks"] == [3, 6], "a number of blocks goes where they are missing"
    assert stat.S_IMODE((processes.folder / "peer-0" / "peer.key").stat().st_mode) == 0o600
    model = AutoSwarmModelForCausalLM.from_pretrained(
        folder, initial_peers=[first.described["address"]], swarm_key=swarm_key
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).generate(ids, **options)
    assert model.generate(ids, **options).tolist() == alone.tolist()
    # One step for the prompt, one for each further token; the last one may be counted after it was answered.
    until(lambda: "blockswarm_step_rows_count 12.0" in metrics_of(second))
    until(lambda: "blockswarm_admission_wait_seconds_count 1.0" in metrics_of(second))
    assert os.getpriority(os.PRIO_PROCESS, second.process.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    model.session_factory.close()
    daemons = started_by(second.process)
    assert second.stop() == 0
    assert_gone(daemons)
    log = second.log.read_text()
    assert "Traceback" not in log
    assert "the DHT daemon ended" not in log
    assert "could not announce" not in log
    assert first.process.poll() is None
    asked = ("--initial-peers", first.address, "--swarm-key", swarm_key, "--json")
    leaving: list[dict[str, Any]] = []
    while not leaving:  # the other peer may answer from its last look; the test's time-out bounds this
        listed = json.loads(run_program("swarm-client", "peers", folder, *asked).stdout)["peers"]
        leaving = [peer for peer in listed if peer["state"] == "leaving"]
    (left,) = leaving
    assert left["tokens_served"] == 4 + 11, "the prompt and each further token but the last, which nobody computed"
    assert re.fullmatch(r"cpu, \d+ threads?", left["device_class"])


@pytest.mark.swarm
def test_a_plan_says_what_would_be_hosted_and_what_that_brings(
    first: PeerProcess, folder: Path, swarm_key: Path, tmp_path: Path
) -> None:
    """And leaves no trace in the swarm."""
    joining = ("--initial-peers", first.address, "--swarm-key", swarm_key, "--json")
    told = run_program("swarm-peer", "plan", folder, *joining, "--blocks", 3, "--data", tmp_path)
    assert told.returncode == 0, told.stderr
    plan = json.loads(told.stdout)
    assert plan["blocks"] == [3, 6]
    checkpoint = open_checkpoint(folder)
    assert plan["checkpoint_bytes"] == sum(checkpoint.block_bytes(block) for block in range(3, 6))
    assert (plan["now"]["missing_blocks"], plan["now"]["token_seconds"]) == ([3, 4, 5], None)
    assert (plan["then"]["missing_blocks"], plan["then"]["weakest_block_servers"]) == ([], 1)
    assert plan["then"]["token_seconds"] > 0
    seen = run_program("swarm-client", "peers", folder, *joining)
    present = [peer["peer"] for peer in json.loads(seen.stdout)["peers"] if peer["state"] != "leaving"]
    assert present == [first.address.peer]


@pytest.mark.swarm
def test_two_peers_with_one_key(processes: PeerProcesses, first: PeerProcess, folder: Path) -> None:
    check_refused(run(processes.folder / "peer-0", folder, "--new-swarm"), 2, "peer.key", "--data", "--identity")


@pytest.mark.swarm
def test_joining_a_private_swarm_without_its_key(first: PeerProcess, folder: Path, tmp_path: Path) -> None:
    check_refused(run(tmp_path, folder, "--initial-peers", first.address, "--blocks", "3:6"), 2, "private", "key file")


def test_joining_a_public_swarm_with_a_key(serving: SwarmThread, folder: Path, swarm_key: Path, tmp_path: Path) -> None:
    check_refused(run(tmp_path, folder, *serving.initial, "--swarm-key", swarm_key), 2, "public", "--swarm-key")


@pytest.mark.swarm
def test_joining_a_private_swarm_with_another_key(first: PeerProcess, folder: Path, tmp_path: Path) -> None:
    SwarmKey.generate().save(tmp_path / "other.key")
    options = ("--blocks", "3:6", "--swarm-key", tmp_path / "other.key")
    check_refused(run(tmp_path, folder, "--initial-peers", first.address, *options), 2, "swarm key", "key file")


@pytest.mark.swarm
@pytest.mark.parametrize("which", ["--port", "--dht-port"])
def test_a_port_that_is_taken(first: PeerProcess, folder: Path, tmp_path: Path, which: str) -> None:
    _, _, port = first.address.target.rpartition(":")
    check_refused(run(tmp_path, folder, "--new-swarm", "--blocks", "0:1", which, port), 2, "listen", "port")


@pytest.mark.swarm
def test_more_memory_than_there_is(folder: Path, tmp_path: Path) -> None:
    check_refused(run(tmp_path, folder, "--new-swarm", "--kv-tokens", 10**10), 1, "free memory", "--kv-tokens")


# --- decisions ---


def test_blocks_that_fit_into_free_memory() -> None:
    need = MemoryNeed(block_bytes=100, kv_bytes=50, fixed_bytes=200)
    assert count_that_fits(need, 10_000, 80) == (8500 - 200) // 150
    assert count_that_fits(need, 10_000, 4) == 4
    for free in (0, 1, 411):  # 85 % of 411 is one byte short of 350
        with pytest.raises(OutOfMemory, match="one block needs"):
            count_that_fits(need, free, 80)
    assert count_that_fits(need, 413, 80) == 1


def test_a_key_file_is_held_by_one(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / "peer.key")
    with (
        exclusive_key(tmp_path / "peer.key"),
        pytest.raises(UsageError, match="another peer"),
        exclusive_key(tmp_path / "peer.key"),
    ):
        pass
    with exclusive_key(tmp_path / "peer.key"):
        pass


@pytest.mark.swarm
@pytest.mark.long
def test_the_doctor_says_by_its_status_whether_anything_is_bad(tmp_path: Path) -> None:
    told = run_program("swarm-peer", "doctor", "--json", "--host", "127.0.0.1", "--data", tmp_path, "--device", "cpu")
    findings = {found["subject"]: found for found in json.loads(told.stdout)}
    assert findings["port"]["health"] == "ok"
    assert findings["device"]["text"] == "cpu"
    assert told.returncode == any(found["health"] == "bad" for found in findings.values())
    ill = run_program("swarm-peer", "doctor", "--host", "127.0.0.1", "--data", tmp_path, "--initial-peers", NOBODY)
    assert ill.returncode == 1
    assert "0 of 1 initial peers answer" in ill.stdout
    assert "12D3KooW" not in ill.stdout + ill.stderr
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


@pytest.mark.swarm
def test_the_ready_line_is_json_of_what_others_need(first: PeerProcess, folder: Path) -> None:
    told = first.described
    assert json.loads(json.dumps(told)) == told
    assert told["model_digest"] == open_checkpoint(folder).model_digest().hex()
    assert (told["blocks"], told["num_blocks"]) == ([0, 3], 6)
    assert told["pid"] == first.process.pid


@pytest.mark.long
def test_a_signal_ends_a_peer_that_waits_for_a_hub(tmp_path: Path) -> None:
    """The hub has taken the request and says nothing; the thread that waits for it cannot be ended."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(START_SECONDS)
        line = command("swarm-peer", "owner/name", "--new-swarm", "--host", "127.0.0.1", "--data", tmp_path)
        endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        with subprocess.Popen(line, env=environment() | endpoint, start_new_session=True) as peer:
            try:
                connection, _ = hub.accept()
                peer.send_signal(signal.SIGTERM)
                assert peer.wait(START_SECONDS) == 0
                connection.close()
            finally:
                kill_group(peer)
