"""The program as its operator sees it: one line when the page can be opened, one for an error, and Ctrl-C ends it."""

from __future__ import annotations

import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.dashboard.cli import app
from blockswarm.proto.identity import Identity
from blockswarm.proto.settings import arguments_or_exit
from support.processes import command, environment, kill_group, run_program
from typer.testing import CliRunner

NOBODY = f"{Identity.generate().peer_id}@127.0.0.1:9"


def refused(*arguments: object) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    return result.stderr


def test_bad_options_are_one_line_and_a_hint(tmp_path: Path) -> None:
    assert "no initial peers" in refused()
    assert "--port" in refused("--initial-peers", NOBODY, "--port", 99999)
    assert "not known: exprot d" in refused("exprot", "d", "--initial-peers", NOBODY, "--data", tmp_path)
    lines = refused("--initial-peers", "nonsense").splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("swarm-dashboard: ")


def test_what_it_prints_as_its_file_is_read_as_the_same_options(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["--initial-peers", NOBODY, "--model", "a", "--model", "b", "--print-config"])
    assert printed.exit_code == 0
    (tmp_path / "c.toml").write_text(printed.stdout)
    put = ["--config", str(tmp_path / "c.toml"), "--print-config"]
    read = arguments_or_exit("swarm-dashboard", app, put, positional=None)
    assert CliRunner().invoke(app, read).stdout == printed.stdout


@pytest.mark.long
def test_the_page_is_there_before_any_peer_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    """Also with a damaged history, which is told."""
    (tmp_path / "dashboard.sqlite").write_text("no database" * 100)
    line = command("swarm-dashboard", "--initial-peers", NOBODY, "--port", 0, "--data", tmp_path)
    with subprocess.Popen(
        line, env=environment(), start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith("showing the swarm at http://127.0.0.1:")
            with urllib.request.urlopen(said.split()[-1], timeout=60) as page:
                assert "Waiting for" in page.read().decode()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            kill_group(process)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "it is kept as dashboard.sqlite.broken-1, and a new one begins" in errors


@pytest.mark.long
def test_a_model_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    ended = run_program(
        "swarm-dashboard", "--initial-peers", NOBODY, "--port", 0, "--model", tmp_path, "--data", tmp_path / "data"
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert f"swarm-dashboard: {tmp_path}" in ended.stderr
