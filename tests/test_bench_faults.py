"""The script that plays faults says what happened, whatever happens to the client; its lines break as real ones do."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.benchlib import benchlib

faults, fault_links, processes = map(benchlib, ("faults", "fault_links", "processes"))

AT = 2
EXPECTED = [5, 6, 7, 8]


def case(error: bool = False) -> Any:
    return faults.Case("a fault", lambda moment: None, error=error, at=AT)


def said(*tokens: int, **end: Any) -> list[dict[str, Any]]:
    """The lines of a client: a token each second, and the end after the last one's second."""
    lines = [{"token": token, "at": float(second), "chain": []} for second, token in enumerate(tokens)]
    return [*lines, {"done": True, "error": None, "at": float(len(tokens)), **end}]


def played(lines: Sequence[Mapping[str, Any]], log: Path, hangs_seconds: float = 60.0) -> list[dict[str, Any]]:
    """The lines of `watch` over a client that says these lines and then takes no notice of anything."""
    text = "\n".join(map(json.dumps, [{"ready": True}, *lines]))
    program = f"import sys, time; print({text!r}, flush=True); sys.stdin.readline(); "
    program += "time.sleep(60)" if hangs_seconds < 60.0 else "sys.exit('no memory left')"
    with processes.Child("-c", program, log=log) as client:
        world = faults.World(None, log.parent)
        return list(faults.watch(case(), world, client, [1], hangs_seconds))


@pytest.fixture
def links() -> Iterator[Any]:
    with fault_links.Links() as running:
        yield running


def test_a_text_that_ends_before_the_fault_fails_the_case_in_words(tmp_path: Path) -> None:
    lines = played(said(5, error="NoChainError: no peer"), tmp_path / "log")
    for wanted in (False, True):
        outcome = faults.judge(case(error=wanted), lines, EXPECTED)
        assert not outcome.passed
        assert outcome.error == "the text ended before the fault: NoChainError: no peer"


@pytest.mark.long
def test_a_client_that_dies_is_told_from_one_that_hangs_and_its_log_is_kept(tmp_path: Path) -> None:
    dead = faults.judge(case(), played(said(5, 6, 7)[:-1], tmp_path / "dead"), EXPECTED)
    hanging = faults.judge(case(), played(said(5, 6, 7)[:-1], tmp_path / "hanging", hangs_seconds=0.5), EXPECTED)
    assert (dead.error, hanging.error) == ("the client ended by itself", "the client hangs")
    assert "no memory left" in dead.log
    assert not dead.passed
    assert not hanging.passed


def test_a_client_that_never_begins_fails_the_case(tmp_path: Path) -> None:
    with processes.Child("-c", "raise SystemExit('no such model')", log=tmp_path / "log") as client:
        lines = list(faults.watch(case(), faults.World(None, tmp_path), client, [1]))
    outcome = faults.judge(case(), lines, EXPECTED)
    assert not outcome.passed
    assert "no such model" in outcome.log


def test_the_stall_of_a_client_that_hangs_lasts_until_it_was_given_up() -> None:
    lines = [
        *said(5, 6)[:-1],
        {"fault": "a fault", "at": 1.0},
        {"done": False, "error": "the client hangs", "at": 31.0},
    ]
    assert faults.judge(case(), lines, EXPECTED).stall_seconds == 30.0


def test_a_case_passes_with_the_tokens_of_the_model_alone_or_with_the_error_that_it_is_about() -> None:
    fault = {"fault": "a fault", "at": 1.0}
    whole = said(*EXPECTED)
    assert faults.judge(case(), [*whole[:AT], fault, *whole[AT:]], EXPECTED).passed
    assert not faults.judge(case(error=True), [*whole[:AT], fault, *whole[AT:]], EXPECTED).passed
    short = said(5, 6, error="PeerUnavailable: gone")
    assert faults.judge(case(error=True), [*short[:AT], fault, *short[AT:]], EXPECTED).passed
    wrong = said(5, 6, 9, 9)
    assert not faults.judge(case(), [*wrong[:AT], fault, *wrong[AT:]], EXPECTED).passed


def test_the_table_names_the_moment_of_the_fault_where_it_is_one() -> None:
    outcome = faults.judge(case(), [{"done": False, "error": "x", "at": 0.0}], [])
    assert "| fault (after 2 tokens) |" in faults.table([outcome])
    kills = faults.random_kills(2, faults.random.Random(1))
    assert "| fault |" in faults.table([faults.judge(kill, said(5), EXPECTED) for kill in kills])


@pytest.mark.parametrize(
    "arguments", [["--kills", "3", "--short"], ["--kills", "3", "--only", "SIGSTOP"], ["--kills", "0"]]
)
def test_options_that_would_be_ignored_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        faults.main(arguments)
    assert refused.value.code == 2


def test_peers_that_never_get_ready_are_ended_with_the_others(links: Any, tmp_path: Path) -> None:
    started: list[Any] = []

    def launch(*arguments: Any, log: Path) -> Any:
        """A peer that does not say who it is."""
        started.append(processes.Child("-c", "import time; print('[]', flush=True); time.sleep(60)", log=log))
        return started[-1]

    world = faults.World(links, tmp_path, launch)
    with pytest.raises(TypeError):
        world.start_all(["0:4"])
    world.end()
    assert started
    assert not any(child.is_running() for child in started)


def test_a_reset_on_one_side_of_a_line_ends_the_other_side(links: Any) -> None:
    """Else the reset is played as a half-open connection, which is another fault."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        line, port = links.add()
        links.lead_to(line, server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(20)
            server.settimeout(20)
            accepted, _ = server.accept()
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
            accepted.close()
            began = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            assert time.monotonic() - began < 10


def test_the_lines_leave_nothing_open(recwarn: pytest.WarningsRecorder) -> None:
    links = fault_links.Links()
    with links:
        _, port = links.add()
    del links
    gc.collect()
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
