"""The configuration of an endpoint: its bounds, names, and who is warned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.api.config import EndpointConfig, ModelConfig, usual_name
from blockswarm.client.program.options import SwarmOptions
from blockswarm.proto.errors import UsageError

SWARM = SwarmOptions(())


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("::1", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("swarm.example", None, True),
        ("0.0.0.0", Path("keys.toml"), False),
    ],
)
def test_an_endpoint_that_anybody_may_use_warns(host: str, keys: Path | None, warns: bool) -> None:
    assert (EndpointConfig((), host, keys=keys).warning is not None) == warns


@pytest.mark.parametrize("fields", [{"port": 65536}, {"max_running": 0}, {"max_queue": -1}], ids=str)
def test_numbers_have_bounds(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        EndpointConfig((), **fields)


def test_two_models_need_two_names() -> None:
    with pytest.raises(UsageError, match="same name"):
        EndpointConfig((ModelConfig("a/x", "x", SWARM), ModelConfig("b/x", "x", SWARM)))


def test_the_usual_name_tells_nothing_of_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "my-model"
    folder.mkdir(parents=True)
    assert usual_name(str(folder)) == "my-model"
    assert usual_name("org/my-model") == "org/my-model"
