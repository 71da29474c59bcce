"""A program's end tells a service manager whether starting again can help: for each error as the page says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import typer
from blockswarm.client.program.edge import reported_errors as client_edge
from blockswarm.peer.cli import reported_errors as peer_edge
from blockswarm.proto.errors import WIRE_CLASSES, PeerBusy, SwarmError
from blockswarm.proto.exit_status import ExitStatus, exit_status, run_program
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.dialling import AddressRefused
from support.processes import command, environment

DOCS = Path(__file__).parents[2] / "docs"
NOBODY = f"{Identity.generate().peer_id}@127.0.0.1:1"
ROW = re.compile(r"^\| (\d+) \| [^|]* \| ([^|]*)\|$", re.MULTILINE)


def documented() -> dict[str, int]:
    """The status of each error, by its name, as the operator reads it."""
    rows = ROW.findall((DOCS / "operator.md").read_text(encoding="utf-8"))
    return {name: int(status) for status, names in rows for name in re.findall(r"`([a-z-]+)`", names)}


def made(error_class: type[SwarmError]) -> SwarmError:
    if error_class is PeerBusy:
        return PeerBusy(1.0)
    return error_class([1]) if error_class.code == "no-chain" else error_class("so it is")  # type: ignore[arg-type]


@pytest.mark.parametrize("error_class", WIRE_CLASSES.values(), ids=lambda error_class: error_class.code)
@pytest.mark.parametrize("edge", [peer_edge, client_edge], ids=["peer", "client"])
def test_an_error_ends_the_program_with_the_status_of_the_page(
    error_class: type[SwarmError], edge: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, edge(False):  # type: ignore[operator]
        raise made(error_class)
    assert ended.value.exit_code == documented()[error_class.code]
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_page_names_no_error_that_there_is_not() -> None:
    assert documented().keys() == {error_class.code for error_class in WIRE_CLASSES.values()}


def test_an_error_without_a_row_of_its_own_has_the_status_of_its_base() -> None:
    assert exit_status(AddressRefused("a private address")) == ExitStatus.MAY_PASS


@pytest.mark.parametrize("unit", sorted((DOCS / "units").glob("*.service")), ids=lambda unit: unit.name)
def test_the_units_start_again_unless_it_is_in_vain(unit: Path) -> None:
    lines = unit.read_text(encoding="utf-8").splitlines()
    assert f"RestartPreventExitStatus={ExitStatus.IN_VAIN:d}" in lines
    assert "Restart=on-failure" in lines


def test_the_unit_of_a_peer_asks_the_peer_alone_to_end() -> None:
    """Its daemon would end before it has passed on that the peer leaves."""
    assert "KillMode=mixed" in (DOCS / "units" / "swarm-peer.service").read_text(encoding="utf-8").splitlines()


PROGRAMS = {
    "swarm-peer": ("swarm-peer", "model", "--new-swarm", "--print-config"),
    "swarm-client": ("swarm-client", "serve", "model", "--initial-peers", NOBODY, "--print-config"),
    "swarm-dashboard": ("swarm-dashboard", "--initial-peers", NOBODY, "--print-config"),
}


def printed_to(program: str, output: int) -> tuple[int, str]:
    """Status and standard error of a program that prints its settings there."""
    surroundings = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command(*PROGRAMS[program]), stdout=output, stderr=subprocess.PIPE, text=True, env=surroundings, check=False
    )
    return done.returncode, done.stderr.removeprefix("starting\n")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is always full")
def test_output_that_cannot_be_written_is_told_in_a_line(program: str) -> None:
    with Path("/dev/full").open("w") as full:
        status, told = printed_to(program, full.fileno())
    assert status == ExitStatus.MAY_PASS
    assert told.splitlines()[0] == f"{program}: standard output cannot be written: No space left on device"
    assert told.count("\n") == 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_reader_that_has_read_enough_is_told_nothing(program: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert printed_to(program, write) == (ExitStatus.MAY_PASS, "")
    finally:
        os.close(write)


def test_an_interrupt_before_anything_has_begun_is_no_traceback() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_program("some", interrupt)
    assert ended.value.code == ExitStatus.INTERRUPTED
