"""Peers that say anything in their answers: the tokens are right, or an error comes in time; nothing is left."""

from __future__ import annotations

import logging
import random

import pytest
from blockswarm.routing.swarm import PeerId
from support.liar import Liar
from support.toy_swarm import World

SESSIONS = 12


@pytest.mark.long
@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_one_of_eight_peers_says_anything(seed: int, share: float, caplog: pytest.LogCaptureFixture) -> None:
    """It alone has room for most sessions, so they try it first.

    The others have room for all in turn: every session gets its tokens, which `World.talk` compares.
    """
    world = World([100, *[40] * 7], clients=4, patience_seconds=60.0, seed=seed)
    names = [peer.identity.peer_id for peer in world.peers]
    liar = Liar(random.Random(seed), share, names)
    for client in range(4):
        for number in range(1, SESSIONS + 1):
            world.net.link(PeerId(f"client {client}, session {number}"), names[0]).alter = liar
    assert world.play(SESSIONS, seconds=30.0, vanishing=0.0) == {"tokens": SESSIONS}
    assert liar.changed > 0
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    told = [event.detail for visit in world.visits for event in visit.events]
    assert all(line.isprintable() for line in (*caplog.messages, *told))
    world.check_nothing_is_left()
