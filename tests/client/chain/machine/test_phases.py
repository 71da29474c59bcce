"""The table of phases: as it is documented, and without a phase that nobody reaches or leaves."""

from __future__ import annotations

from pathlib import Path

import blockswarm.client.chain.machine.phases as phases
from blockswarm.client.chain.machine.phases import TRANSITIONS, Phase, describe_transitions

ROOT = Path(__file__).resolve().parents[4]


def test_the_docstring_shows_the_table() -> None:
    lines = [line.strip() for line in (phases.__doc__ or "").splitlines() if "->" in line]
    assert lines == describe_transitions().splitlines()


def test_the_page_on_the_architecture_shows_the_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert describe_transitions() in page, "copy the table of client/chain/machine/phases.py into docs/architecture.md"


def test_every_phase_can_be_reached_and_left() -> None:
    reached, frontier = {Phase.RESTING}, [Phase.RESTING]
    while frontier:
        for after in TRANSITIONS[frontier.pop()] - reached:
            reached.add(after)
            frontier.append(after)
    assert reached == set(Phase) - {Phase.ENDED}, "every phase may also end"
    assert all(TRANSITIONS[phase] - {phase} for phase in reached)
