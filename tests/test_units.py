"""The unit files: systemd understands them, and so does the program that each of them starts."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from blockswarm.proto.identity import Identity
from support.processes import run_program

UNITS = sorted((Path(__file__).parents[1] / "docs" / "units").glob("*.service"))
FILE = f'initial-peers = ["{Identity.generate().peer_id}@swarm.example:31337"]\nport = 8000\n'


def started_by(unit: Path) -> list[str]:
    """The command of a unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return shlex.split(parser["Service"]["ExecStart"])


def test_there_is_a_unit_for_each_program_that_serves() -> None:
    assert [Path(started_by(unit)[0]).name for unit in UNITS] == ["swarm-dashboard", "swarm-client", "swarm-peer"]


@pytest.mark.long
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_program_takes_the_options_of_its_unit(unit: Path, tmp_path: Path) -> None:
    file = tmp_path / "program.toml"
    program, *arguments = started_by(unit)
    file.write_text(FILE if "dashboard" in unit.name else f'{FILE}model = "org/model"\n')
    arguments[arguments.index("--config") + 1] = str(file)
    done = run_program(Path(program).name, *arguments, "--print-config")
    assert done.returncode == 0, done.stderr
    assert "port = 8000" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
@pytest.mark.parametrize("content", ["prot = 8000\n", "port = 'eight'\n", "port = \n"], ids=["name", "value", "syntax"])
def test_a_mistake_in_the_options_is_no_reason_to_start_again(unit: Path, content: str, tmp_path: Path) -> None:
    """systemd would start the program every ten seconds, for ever."""
    file = tmp_path / "program.toml"
    file.write_text(content)
    program, *arguments = started_by(unit)
    arguments[arguments.index("--config") + 1] = str(file)
    done = run_program(Path(program).name, *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "RestartPreventExitStatus=2" in unit.read_text().splitlines()


@pytest.mark.long
@pytest.mark.parametrize("program", ["swarm-peer", "swarm-client", "swarm-dashboard", "swarm-sim"])
def test_programs_tell_their_version_and_what_is_missing(program: str) -> None:
    told = run_program(program, "--version")
    assert (told.returncode, told.stdout) == (0, f"blockswarm {version('blockswarm')}\n")
    alone = run_program(program)
    assert alone.returncode == 2
    assert "Traceback" not in alone.stderr
    assert alone.stdout + alone.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(started_by(unit)[0], "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr, "a warning"
