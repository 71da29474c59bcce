"""A dashboard that could not work is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockswarm.client.dashboard.config import MOST_MODELS, DashboardConfig
from blockswarm.client.program.options import SwarmOptions
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.errors import UsageError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress

ADDRESS = PeerAddress(Identity.generate().peer_id, "127.0.0.1:1")


def test_a_private_swarm_needs_the_model() -> None:
    """Its peers tell nobody which model they serve."""
    private = SwarmOptions((ADDRESS,), SwarmKey.generate())
    with pytest.raises(UsageError, match="private swarm"):
        DashboardConfig(private)
    assert DashboardConfig(private, ("model",)).models == ("model",)


def test_those_that_join_are_told_what_they_need_beside_an_address() -> None:
    """The command on the page was refused by the peers of a private swarm."""
    assert DashboardConfig(SwarmOptions((ADDRESS,))).join_options == ()
    private = SwarmOptions((ADDRESS,), SwarmKey.generate(), revision="v2")
    options = DashboardConfig(private, ("model",), Path("secret/place/team.key")).join_options
    assert options == ("--swarm-key", "KEY_FILE", "--revision", "v2")


def test_bounds() -> None:
    swarm = SwarmOptions((ADDRESS,))
    with pytest.raises(UsageError, match="--port"):
        DashboardConfig(swarm, port=70000)
    with pytest.raises(UsageError, match="at most"):
        DashboardConfig(swarm, tuple(map(str, range(MOST_MODELS + 1))))


def test_the_program_that_probes_is_told_how_the_swarm_is_reached() -> None:
    swarm = SwarmOptions((ADDRESS,), identity=Path("id.key"), lan=True, revision="main", patience_seconds=7.0)
    setup = DashboardConfig(swarm, ("m",), Path("swarm.key")).probe_of("m")
    assert (setup.model, setup.revision, setup.lan, setup.patience_seconds) == ("m", "main", True, 7.0)
    assert (setup.initial_peers, setup.swarm_key, setup.identity) == ((str(ADDRESS),), "swarm.key", "id.key")
