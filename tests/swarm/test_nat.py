"""A peer in a home behind a router that translates addresses, with the router's packets: in namespaces of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nat import TCP, Router, checksum, ends_of
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).parents[2] / "scripts" / "demo_model"
PROMPT = "def f"
NAMESPACES = ["unshare", "--user", "--map-root-user", "--net"]
TRIAL = "ip tuntap add tun0 mode tun && ip addr add 192.0.2.1/24 dev tun0 && ip link set tun0 up"


def missing() -> str | None:
    """The reason why this machine can make no home with a router; None where it can."""
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            return f"there is no program {program}"
    tried = subprocess.run([*NAMESPACES, "sh", "-c", TRIAL], capture_output=True, text=True, check=False)
    return tried.stderr.strip() or "no namespaces" if tried.returncode else None


def played(folder: Path, ports: str) -> dict[str, Any]:
    """The outcome of a peer at home. Skips the test where namespaces with TUN devices cannot be made."""
    lacking = missing()
    if lacking is not None:
        pytest.skip(f"no network namespaces with TUN devices on this machine: {lacking}")
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "support.behind_nat", MODEL, folder, PROMPT, ports],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["status"] == 0, told["errors"] + told["log"]
    return told


@pytest.fixture(scope="module")
def alone() -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    inputs = AutoTokenizer.from_pretrained(MODEL)(PROMPT, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return list(map(int, output[0][inputs.input_ids.shape[1] :]))


@pytest.mark.swarm
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ports", ["closed", "forwarded"])
def test_a_peer_at_home_serves_through_a_relay_or_a_forwarded_port(
    tmp_path: Path, alone: list[int], ports: str
) -> None:
    """Started as a volunteer does, who says nothing of how it is reached but which ports are forwarded.

    An address counts as checked when two have dialled it; where one answers late the peer says so.
    """
    told = played(tmp_path, ports)
    assert told["reach"] in {"closed": ("relay",), "forwarded": ("direct", "unchecked")}[ports]
    assert told[{"closed": "refused", "forwarded": "invited"}[ports]] > 0, "it was dialled"
    answer = json.loads(told["answer"])
    assert answer["token_ids"] == alone
    assert [hop["blocks"] for hop in answer["chain"]] == [[0, 4], [4, 8]]


def segment(source: tuple[str, int], target: tuple[str, int], data: bytes) -> bytes:
    """A TCP segment in an IPv4 packet, with no checksums."""
    addresses = b"".join(bytes(map(int, host.split("."))) for host, _ in (source, target))
    ports = source[1].to_bytes(2, "big") + target[1].to_bytes(2, "big")
    tcp = ports + bytes(8) + bytes([5 << 4, 0]) + bytes(6) + data
    return bytes([0x45, 0]) + (20 + len(tcp)).to_bytes(2, "big") + bytes(4) + bytes([64, TCP, 0, 0]) + addresses + tcp


@pytest.mark.parametrize("data", [b"", b"odd", b"\xff" * 1400])
def test_the_router_translates_and_lets_nobody_in_unasked(data: bytes) -> None:
    router = Router("11.0.0.2")
    home, server, stranger = ("192.168.7.2", 5000), ("11.0.0.1", 80), ("11.0.0.1", 81)
    gone = router.outgoing(segment(home, server, data))
    assert gone is not None
    _, (source, port), target = ends_of(gone) or pytest.fail("no packet")
    assert (source, target) == (bytes([11, 0, 0, 2]), (bytes([11, 0, 0, 1]), 80))
    assert checksum(gone[:20]) % 0xFFFF == 0, "a header with its checksum sums up to nothing"
    assert checksum(gone[12:20] + bytes([0, TCP]) + (len(gone) - 20).to_bytes(2, "big") + gone[20:]) % 0xFFFF == 0
    assert gone[40:] == data
    assert router.incoming(segment(stranger, ("11.0.0.2", port), data)) is None
    back = router.incoming(segment(server, ("11.0.0.2", port), data))
    assert back is not None
    assert (ends_of(back) or pytest.fail("no packet"))[2] == (bytes([192, 168, 7, 2]), 5000)
    assert (router.passed, router.refused) == (2, 1)
    router.forward(7000, "192.168.7.2")
    assert router.incoming(segment(stranger, ("11.0.0.2", 7000), data)) is not None
    assert (router.invited, router.refused) == (1, 1)
