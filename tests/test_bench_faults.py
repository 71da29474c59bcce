"""The script that plays faults says what happened, whatever happens to the client; its lines break as real ones do."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.benchlib import benchlib

faults, processes = map(benchlib, ("faults", "processes"))
acts, cases, client_of_faults, forks, links_of, play, report, world = (
    benchlib(f"breaking.{name}") for name in ("acts", "cases", "client", "forks", "links", "play", "report", "world")
)

AT = 2
EXPECTED = [5, 6, 7, 8]


def case(error: bool = False) -> Any:
    return play.Case("a fault", lambda moment: None, error=error, at=AT)


def said(*tokens: int, **end: Any) -> list[dict[str, Any]]:
    """The lines of a client: a token each second, and the end after the last one's second."""
    lines = [{"token": token, "at": float(second)} for second, token in enumerate(tokens)]
    return [*lines, {"done": True, "error": None, "at": float(len(tokens)), **end}]


def at_second(second: float, over: float | None = None) -> dict[str, Any]:
    """The line of `watch` about a fault."""
    return {"fault": "a fault", "at": second, "over": second if over is None else over}


PAUSED = {"paused": True, "chain": [], "relays": [], "step_seconds": 0.01}


def played(lines: Sequence[Mapping[str, Any]], log: Path, hangs_seconds: float = 60.0) -> list[dict[str, Any]]:
    """The lines of `watch` over a client that says these lines and then takes no notice of anything."""
    text = "\n".join(map(json.dumps, [{"ready": True}, *lines]))
    program = f"import sys, time; print({text!r}, flush=True); sys.stdin.readline(); "
    program += "time.sleep(60)" if hangs_seconds < 60.0 else "sys.exit('no memory left')"
    with processes.Child("-c", program, log=log) as client:
        return list(play.watch(case(), world.World(None, log.parent), client, [1], hangs_seconds))


@pytest.fixture
def links() -> Iterator[Any]:
    with links_of.Links() as running:
        yield running


def test_a_text_that_ends_before_the_fault_fails_the_case_in_words(tmp_path: Path) -> None:
    lines = played(said(5, error="NoChainError: no peer"), tmp_path / "log")
    for wanted in (False, True):
        outcome = play.judge(case(error=wanted), lines, EXPECTED)
        assert not outcome.passed
        assert outcome.error == "the text ended before the fault: NoChainError: no peer"


@pytest.mark.long
def test_a_client_that_dies_is_told_from_one_that_hangs_and_its_log_is_kept(tmp_path: Path) -> None:
    lines = [*said(5, 6)[:-1], PAUSED]
    dead = play.judge(case(), played(lines, tmp_path / "dead"), EXPECTED)
    hanging = play.judge(case(), played(lines, tmp_path / "hanging", hangs_seconds=0.5), EXPECTED)
    assert "the client ended by itself" in dead.error
    assert "the client hangs" in hanging.error
    assert "no memory left" in dead.log
    assert not dead.passed
    assert not hanging.passed


def test_a_client_that_never_begins_fails_the_case(tmp_path: Path) -> None:
    with processes.Child("-c", "raise SystemExit('no such model')", log=tmp_path / "log") as client:
        lines = list(play.watch(case(), world.World(None, tmp_path), client, [1]))
    outcome = play.judge(case(), lines, EXPECTED)
    assert not outcome.passed
    assert "no such model" in outcome.log


def test_the_stall_of_a_client_that_hangs_lasts_until_it_was_given_up() -> None:
    lines = [
        *said(5, 6)[:-1],
        at_second(1.0),
        {"done": False, "error": "the client hangs", "at": 31.0},
    ]
    assert play.judge(case(), lines, EXPECTED).stall_seconds == 30.0


def test_a_text_goes_on_only_when_the_fault_has_been_played(tmp_path: Path) -> None:
    """A script that reads late on a busy machine what the client says found a text that was nearly over."""
    played_to = tmp_path / "played"
    program = (
        f"import json, pathlib, sys; print('[]', flush=True); sys.stdin.readline(); print({json.dumps(PAUSED)!r}, "
        f"flush=True); sys.stdin.readline(); print(json.dumps({{'done': pathlib.Path({str(played_to)!r}).exists()}}))"
    )
    at_the_pause = replace(case(), act=lambda moment: played_to.touch())
    on_the_way = replace(case(), into_step=0.5, act=lambda moment: clients[-1].read())
    clients, ends = [], []
    for a_case in (at_the_pause, on_the_way):
        played_to.unlink(missing_ok=True)
        with processes.Child("-c", program, log=tmp_path / "log") as client:
            clients.append(client)
            ends.append(list(play.watch(a_case, world.World(None, tmp_path), client, [1])))
    assert ends[0][-1]["done"] is True
    assert "ended by itself" in ends[1][-1]["error"]


def test_the_stall_is_counted_from_the_end_of_the_fault() -> None:
    """The text paused until then; what had happened meanwhile belongs to the fault all the same."""
    lost = {"event": "hop-lost", "detail": "gone", "at": 1.5}
    whole = said(*EXPECTED)
    outcome = play.judge(case(), [*whole[:AT], lost, at_second(1.0, over=1.75), *whole[AT:]], EXPECTED)
    assert outcome.passed
    assert outcome.stall_seconds == 1.0
    assert outcome.events == ("hop-lost -0.2",)
    late = play.judge(case(), [*whole[:AT], at_second(9.0), *whole[AT:]], EXPECTED)
    assert late.error == "the text ended before the fault: it is shorter"


def test_a_client_pauses_at_one_length_of_its_text_and_never_stops_it() -> None:
    pauses: list[float] = []
    pause_at = client_of_faults.PauseAt(3, pauses.append)
    stops = [pause_at(torch.zeros(1, length, dtype=torch.long), None) for length in (2, 3, 4)]
    assert not torch.cat(stops).any()
    assert len(pauses) == 1


def test_a_case_passes_with_the_tokens_of_the_model_alone_or_with_the_error_that_it_is_about() -> None:
    fault = at_second(1.0)
    whole = said(*EXPECTED)
    assert play.judge(case(), [*whole[:AT], fault, *whole[AT:]], EXPECTED).passed
    assert not play.judge(case(error=True), [*whole[:AT], fault, *whole[AT:]], EXPECTED).passed
    short = said(5, 6, error="PeerUnavailable: gone")
    assert play.judge(case(error=True), [*short[:AT], fault, *short[AT:]], EXPECTED).passed
    wrong = said(5, 6, 9, 9)
    assert not play.judge(case(), [*wrong[:AT], fault, *wrong[AT:]], EXPECTED).passed


def test_the_table_names_the_moment_of_the_fault_where_it_is_one() -> None:
    outcome = play.judge(case(), [{"done": False, "error": "x", "at": 0.0}], [])
    assert "| fault (after 2 tokens) |" in report.table([outcome])
    kills = cases.random_kills(2, random.Random(1))
    assert "| fault |" in report.table([play.judge(kill, said(5), EXPECTED) for kill in kills])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kills", "3", "--short"],
        ["--kills", "3", "--only", "SIGSTOP"],
        ["--kills", "0"],
        ["--churn", "1", "--kills", "3"],
        ["--churn", "0"],
        ["--only", "no such case"],
    ],
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

    started_here = world.World(links, tmp_path, launch)
    with pytest.raises(TypeError):
        started_here.arrange(world.PLAIN)
    started_here.end()
    assert started
    assert not any(child.is_running() for child in started)


def test_a_port_is_chosen_that_no_outgoing_connection_gets() -> None:
    """A peer listens there some seconds later, and found it taken. Linux gives out ports from 32768 on by default."""
    assert min(world.free_port() for _ in range(20)) >= 1024
    assert max(world.free_port() for _ in range(20)) < 32768


def test_the_cases_have_names_of_their_own_and_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert faults.main(["--list", "--only", "SIGSTOP"]) == 0
    assert capsys.readouterr().out.splitlines() == [name for name in names if "SIGSTOP" in name]


def test_a_replay_is_counted_with_the_time_until_its_caches_are_rebuilt() -> None:
    told = [
        {"event": "hop-lost", "detail": "gone", "at": 1.5},
        {"event": "replay", "detail": "41 tokens to X", "at": 2.0},
        {"event": "rebuilt", "detail": "", "at": 2.25},
    ]
    whole = said(*EXPECTED)
    outcome = play.judge(case(), [*whole[:AT], at_second(1.0), *told, *whole[AT:]], EXPECTED)
    assert (outcome.replayed_tokens, outcome.replay_seconds) == (41, 0.25)
    assert outcome.events == ("hop-lost +0.5", "replay +1.0", "rebuilt +1.2")
    assert "beyond the replay p50 0.75" in report.summary([outcome])


@pytest.fixture
def peer(tmp_path: Path) -> Any:
    """The log of a peer that does not run."""
    return world.Node(world.PLAIN[0], None, 0, tmp_path / "peer")


def log_line(peer: Any, text: str, pattern: str = "", patience_seconds: float = 0.0) -> str:
    """The line that `play` takes from those that come after a case has begun."""
    peer.log.write_text("2026-01-01 00:00:00,000 WARN before the case\n")
    nodes = world.World(None, peer.folder.parent, nodes={"peer": peer})
    logs = play.Logs.of(nodes)
    with peer.log.open("a") as log:
        log.write(text)
    result: str = play.log_line(replace(case(), log=pattern), logs, [peer], patience_seconds)
    return result


def test_a_case_tells_the_line_that_its_operator_sees(peer: Any) -> None:
    assert log_line(peer, "") == ""
    text = (
        "2026-01-01 00:00:00,000 INFO one\n2026-01-01 00:00:00,000 WARN announcing failed (12D3KooWabc@127.0.0.2:5)\n"
    )
    assert log_line(peer, text) == "WARN announcing failed (ID)"
    assert log_line(peer, text, "one$") == "one"


def test_a_defect_in_a_log_and_a_line_that_does_not_come_fail_a_case(peer: Any) -> None:
    with pytest.raises(play.CaseFailed, match="Traceback"):
        log_line(peer, "Traceback (most recent call last):\n", patience_seconds=60.0)
    with pytest.raises(play.CaseFailed, match="no log has a line"):
        log_line(peer, "", "the DHT daemon ended", patience_seconds=0.001)


def through(links: Any, rule: Any, sent: bytes, number: int) -> bytes:
    """The first bytes that come through a line with this rule, of those that its peer says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        line, port = links.add()
        links.lead_to(line, server.getsockname()[1])
        links.apply(replace(rule, peer=line))
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(60)
            server.settimeout(60)
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(sent)
                return client.recv(number)


def test_a_line_flips_bits_and_drips(links: Any) -> None:
    flipped = through(links, links_of.Rule(held=False, flip=True), bytes(8), 8)
    assert sum(byte.bit_count() for byte in flipped) == 1
    assert 0 < len(through(links, links_of.Rule(held=False, bytes_per_second=10.0), bytes(1000), 1000)) < 1000


@pytest.mark.long
def test_a_forked_child_is_one_like_any_other(tmp_path: Path) -> None:
    """It has a session, pipes and a log of its own; it can be asked to end, and its end is seen."""
    with forks.Zygote(libraries=()) as zygote:
        zygote.wait()
        child = zygote.start("-m", "json.tool", "--json-lines", log=tmp_path / "log")
        assert os.getsid(child.pid) == child.pid
        assert child.is_running()
        child.end()
        assert not child.is_running()
        wrong = zygote.start("-m", "json.tool", tmp_path / "no such file", log=tmp_path / "log")
        with pytest.raises(processes.ChildFailed, match="no such file"):
            wrong.read()
        wrong.end()


def test_a_reset_on_one_side_of_a_line_ends_the_other_side(links: Any) -> None:
    """Else the reset is played as a half-open connection, which is another fault."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        line, port = links.add()
        links.lead_to(line, server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(60)
            server.settimeout(60)
            accepted, _ = server.accept()
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
            accepted.close()
            with contextlib.suppress(ConnectionResetError):  # the client's time-out, a TimeoutError, fails the test
                assert client.recv(1) == b""


def test_the_lines_leave_nothing_open(recwarn: pytest.WarningsRecorder) -> None:
    links = links_of.Links()
    with links:
        _, port = links.add()
    del links
    gc.collect()
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, ResourceWarning)]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
