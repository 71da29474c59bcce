"""The dashboard before real peers: what it says of them, and that it says so when one is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blockswarm.client.dashboard.config import DashboardConfig
from blockswarm.client.dashboard.timing import DashboardTiming
from blockswarm.client.program.options import SwarmOptions
from blockswarm.proto.directory.swarm_key import SwarmKey
from support.dashboards import running_dashboard
from support.swarm_thread import SwarmThread, swarm_thread

MODEL = Path(__file__).parents[2] / "scripts" / "demo_model"
QUICK = DashboardTiming(look_pause=0.1, retry_pause=0.1, fresh_page=0.1, probe_pause=0.5)

pytestmark = [pytest.mark.swarm, pytest.mark.long]


@pytest.fixture
def serving() -> Iterator[SwarmThread]:
    torch.set_num_threads(1)
    with swarm_thread(MODEL, "0:4", "4:8") as thread:
        yield thread


def config_for(serving: SwarmThread, *models: str) -> DashboardConfig:
    return DashboardConfig(SwarmOptions((serving.swarm.peers[0].address,), patience_seconds=1.0), models, timing=QUICK)


def test_the_page_says_when_a_peer_is_gone(serving: SwarmThread, tmp_path: Path) -> None:
    """Looking sees it at once; then the probes fail, too; and the history has it after a restart."""
    config = replace(config_for(serving, str(MODEL)), data=tmp_path)
    with running_dashboard(config) as page:
        status = page.wait("/api/v1/status", lambda found: any(card["probe"] for card in found["models"]))
        (card,) = status["models"]
        assert card["standing"] == "works"
        assert "tokens/s, measured" in card["sentence"]
        (listed,) = page.json("/api/v1/peers")
        assert all(peer["measured_block_seconds"] > 0 for peer in listed["peers"])
        assert (card["name"], card["digest"]) == ("demo_model", serving.swarm.digest)
        assert (card["num_blocks"], card["blocks_counted"], card["peers_serving"]) == (8, True, 2)
        assert card["missing_blocks"] == []
        routes = page.json(f"/api/v1/routes?model={card['id']}")
        assert [hop["peer"] for hop in routes["hops"]] == [peer.identity.peer_id for peer in serving.swarm.peers]
        assert all(hop["measured_compute_seconds"] > 0 for hop in routes["hops"])
        assert page.json(f"/api/v1/placement?model={card['id']}")["now"]["token_seconds"] > 0
        killed = serving.swarm.peers[1]
        serving.run(killed.kill())
        status = page.wait("/api/v1/status", lambda found: found["models"][0]["missing_blocks"])
        assert status["models"][0]["missing_blocks"] == [4, 5, 6, 7]
        ends = ("", "/peers", "/routes", "/placement", "/join?memory=1", "/history")
        screens = ["/", *(f"/models/{card['id']}{end}" for end in ends)]
        texts = [page.get(screen) for screen in screens]
        assert "no peer serves blocks 4:8 of 8" in texts[0]
        assert "silent 4:8" in texts[1]
        assert killed.identity.peer_id[-6:] in texts[2]
        for text in texts:
            assert "127.0.0.1" not in text
        page.wait("/api/v1/status", lambda found: found["models"][0]["probe"]["code"])
        kinds = {"incomplete", "silent", "probe-failed"}  # written by two tasks, in either order
        events = page.wait("/api/v1/events", lambda found: kinds <= {each["event"]["kind"] for each in found})
        assert {each["event"]["kind"] for each in events} == kinds
    with running_dashboard(config) as page:
        page.wait("/api/v1/status", lambda found: found["models"])
        past = page.json(f"/api/v1/history?model={card['id']}")
        assert past["probes"] > past["good_probes"] > 0
        assert {each["event"]["kind"] for each in page.json("/api/v1/events")} >= kinds


def test_without_the_files_it_shows_what_the_peers_announce(serving: SwarmThread) -> None:
    with running_dashboard(config_for(serving)) as page:
        status = page.wait("/api/v1/status", lambda found: any(card["seen_at"] for card in found["models"]))
        (card,) = status["models"]
        assert (card["digest"], card["num_blocks"], card["blocks_counted"]) == (serving.swarm.digest, 8, False)


def test_a_private_swarm_is_shown_with_its_key(tmp_path: Path) -> None:
    """The dashboard looks, and the program that probes is admitted, too."""
    key, file = SwarmKey.generate(), tmp_path / "team.key"
    key.save(file)
    with swarm_thread(MODEL, "0:8", swarm_key=key) as thread:
        options = SwarmOptions((thread.swarm.peers[0].address,), key, patience_seconds=1.0)
        config = DashboardConfig(options, (str(MODEL),), file, timing=QUICK)
        with running_dashboard(config) as page:
            found = page.wait("/api/v1/status", lambda found: any(card["probe"] for card in found["models"]))
            assert [card["standing"] for card in found["models"]] == ["works"]
