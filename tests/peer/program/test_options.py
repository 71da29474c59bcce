"""Every option of `swarm-peer` reaches the configuration, in the unit and the type that the peer works with."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from blockswarm.peer.cli import app
from blockswarm.peer.config import BlockRequest, PeerConfig, ReachMode, RelayQuota
from blockswarm.peer.program.options import peer_config
from blockswarm.proto.errors import UsageError
from blockswarm.proto.network.address import PeerAddress
from blockswarm.routing.swarm import BlockRange

ADDRESS = "12D3KooWA29sxFFTDw3qgZr3igFR4Cz3XLFKKBWPuJ85BYzMzjiX@127.0.0.1:31337"


def config_of(*arguments: str) -> PeerConfig:
    """As the program makes it from these arguments; the environment's SWARM_PEER_ variables are left out."""
    command = typer.main.get_command(app)
    context = command.make_context("swarm-peer", list(arguments), auto_envvar_prefix="NO_SUCH_PROGRAM")
    return peer_config(context.params)


def test_every_option_arrives() -> None:
    config = config_of(
        "./model", "--initial-peers", ADDRESS, "--blocks", "2:6", "--host", "127.0.0.1", "--port", "31338",
        "--dht-port", "31339", "--announce", "192.0.2.7:31340", "--reach", "direct", "--relay", "--relay-peers", "3",
        "--relay-connections", "5", "--relay-rate", "0.5", "--data", "data", "--identity", "mine.key",
        "--swarm-key", "swarm.key", "--allow", "someone", "--lan", "--kv-tokens", "100", "--client-share", "0.25",
        "--replay-memory", "7", "--prefix-cache", "9", "--device", "cpu", "--dtype", "bfloat16", "--quantize", "int8",
        "--threads", "3", "--nice", "--metrics-port", "0", "--metrics-host", "127.0.0.2", "--name", "a name",
        "--hide-device", "--revision", "r1", "--cache-limit", "0.5",
    )  # fmt: skip
    assert config == PeerConfig(
        model="./model", initial_peers=(PeerAddress.parse(ADDRESS),), blocks=BlockRequest(BlockRange(2, 6)),
        host="127.0.0.1", port=31338, dht_port=31339, announce=("192.0.2.7:31340",), reach=ReachMode.DIRECT,
        relay=RelayQuota(3, 5, bytes_per_second=2**19), data_folder=Path("data"), identity_path=Path("mine.key"),
        swarm_key_path=Path("swarm.key"), allowed_peers=frozenset({"someone"}), lan=True, kv_tokens=100,
        client_share=0.25, replay_bytes=7 * 2**20, prefix_cache_bytes=9 * 2**20, device="cpu", dtype="bfloat16",
        quantize="int8", threads=3, nice=True, metrics_port=0, metrics_host="127.0.0.2", name="a name",
        tell_device=False, revision="r1", cache_limit_bytes=2**29,
    )  # fmt: skip
    assert config.shared_options == ("--swarm-key", "swarm.key", "--revision", "r1")


def test_the_key_of_a_peer_is_in_its_folder_unless_another_one_is_named() -> None:
    config = config_of("./model", "--new-swarm", "--data", "~/peer")
    assert config.data_folder == Path.home() / "peer"
    assert config.identity_path == Path.home() / "peer" / "peer.key"
    assert config.swarm_key_path is None
    assert config.shared_options == ()
    assert config.relay is None


@pytest.mark.parametrize("swarm", [[], ["--new-swarm", "--initial-peers", ADDRESS]])
def test_a_peer_serves_one_swarm(swarm: list[str]) -> None:
    with pytest.raises(UsageError, match="which swarm"):
        config_of("./model", *swarm)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--cache-limit", ["nan", "inf", "-inf", "1e308", "-1"]),
        ("--threads", ["0", "-1", "1025", "4294967297", "9" * 30]),
    ],
)
def test_a_number_that_no_machine_can_take_is_refused(option: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"{option} must be between"):
            config_of("./model", "--new-swarm", f"{option}={value}")
