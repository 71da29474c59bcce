"""gRPC takes any option without a word: the names of ours must be ones that it knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockswarm.proto.network.options import CHANNEL_OPTIONS, PortLimits, server_options
from grpc._cython import cygrpc


@pytest.mark.parametrize("option", sorted({name for name, _ in [*CHANNEL_OPTIONS, *server_options(PortLimits())]}))
def test_grpc_knows_every_option_that_it_is_given(option: str) -> None:
    """It ignores a misspelt one without a word."""
    assert option.encode() + b"\0" in Path(cygrpc.__file__).read_bytes()
