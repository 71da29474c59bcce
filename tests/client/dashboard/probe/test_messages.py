"""Lines that the dashboard and the program that probes tell each other come back as they were."""

from __future__ import annotations

import pytest
from blockswarm.client.dashboard.probe import messages
from blockswarm.client.survey.survey import ModelName
from blockswarm.proto.errors import NoChainError, PeerUnavailable, SwarmError, UsageError
from blockswarm.routing.swarm import PeerId


def test_setup_model_and_outcome_come_back() -> None:
    setup = messages.ProbeSetup("m", None, ("a@b:1",), None, "id.key", True, 8, 10.0)
    assert messages.read_setup(messages.setup_line(setup)) == setup
    model = ModelName("ab" * 32, 2, {0: b"\0" * 8, 1: b"\xff" * 8})
    assert messages.read_opened(messages.opened_line(model)) == model
    hop = messages.ProbedHop(PeerId("p"), 0, 4, 0.1, 0.2, 0.3)
    for outcome in (messages.ProbeOutcome("", 1.5, 0.5, 7.0, (hop,)), messages.ProbeOutcome("no-chain", 2.0)):
        line = messages.outcome_line(outcome)
        assert line.count(b"\n") == 1
        assert messages.read_outcome(line) == outcome
    assert not messages.ProbeOutcome("no-chain", 2.0).works


@pytest.mark.parametrize(
    "error", [UsageError("no such\nfolder", hint="Look."), PeerUnavailable("x"), NoChainError([3])]
)
def test_an_error_comes_back_as_the_same_kind_with_its_hint(error: SwarmError) -> None:
    with pytest.raises(type(error)) as caught:
        messages.read_opened(messages.refused_line(error))
    assert caught.value.hint == error.hint
