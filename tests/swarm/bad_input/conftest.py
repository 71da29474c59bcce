"""The swarms that strangers attack: each goes on serving, and is checked to have nothing left of the attack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blockswarm.peer.timing import PeerTiming
from support.stranger import World
from support.tiny_models import write_tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def world(folder: Path) -> Iterator[World]:
    made = World(folder)
    yield made
    made.close()


@pytest.fixture
def impatient_world(folder: Path) -> Iterator[World]:
    """Peers that give a stream little time to say what it wants, and to take what is said."""
    made = World(folder, PeerTiming(handshake_seconds=1.0, write_seconds=1.0))
    yield made
    made.close()
