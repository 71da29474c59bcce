"""Real peers behind lines that swallow, stall and break: a text costs time, never tokens. See `scripts/faults`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By name of the case: the script's figures for the cases of its short form."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "benchlib.faults", "--short", "--json", "--folder", str(folder)]
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as program:
        try:
            output, _ = program.communicate(timeout=360)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGINT)
            raise
    return {outcome["case"]: outcome for outcome in json.loads(output)["outcomes"]}


def test_the_tokens_are_those_of_the_model_alone_whatever_breaks(outcomes: dict[str, Any]) -> None:
    assert len(outcomes) >= 6
    assert not [outcome for outcome in outcomes.values() if not outcome["passed"]]


def test_every_fault_was_felt(outcomes: dict[str, Any]) -> None:
    """A line that breaks nothing would show nothing."""
    assert not outcomes.pop("no fault")["events"]
    assert not [case for case, outcome in outcomes.items() if not outcome["events"]]
