"""The boards of a state are computed once, and go with it."""

from __future__ import annotations

import gc
import weakref

from blockswarm.client.dashboard.board.model import model_board
from blockswarm.client.dashboard.watch.sighting import ModelState
from support.sightings import FACTS, known, seen


def test_a_board_is_made_once_and_lives_as_long_as_its_state() -> None:
    """A snapshot of a thousand peers takes much memory, and there is a new one every few seconds."""
    state = seen(known("0:8", "ann"))
    board = model_board(state)
    assert model_board(state) is board
    assert (board.tally.serving, board.missing_blocks, board.peers[0].name) == (1, (), "ann")
    gone = weakref.ref(state.sighting)
    del state, board
    gc.collect()
    assert gone() is None


def test_before_the_first_look_there_is_nothing() -> None:
    board = model_board(ModelState(FACTS))
    assert (board.peers, board.coverage, board.missing_blocks) == ((), None, ())
