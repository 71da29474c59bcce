"""Whatever a user does and whatever the network does, a session gives what one local cache gives."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from support.session_machine import SessionMachine


@pytest.mark.long
def test_a_session_gives_what_one_cache_gives() -> None:
    run_state_machine_as_test(SessionMachine, settings=settings(max_examples=80, stateful_step_count=30, deadline=None))
