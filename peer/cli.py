"""`swarm-peer`: host blocks of a model for a swarm."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..proto.errors import SwarmError, error_as_json, one_line
from ..proto.exit_status import ExitStatus, exit_status, run_program
from ..proto.lean_imports import lighten_imports
from ..proto.logs import log_to_standard_error, print_whatever_comes
from ..proto.network.address import HostPort, PeerAddress
from ..proto.service_manager import READY, tell_service_manager
from ..proto.settings import ConfigFile, PrintConfig, Version, arguments_or_exit, as_file, settings_of
from ..routing.admit.table import CLIENT_SHARE
from .config import DEFAULT_KV_TOKENS, BlockRequest, PeerConfig, ReachMode, listening_host
from .program import options
from .session.replay_store import DEFAULT_LIMIT_BYTES
from .timing import PeerTiming

if TYPE_CHECKING:
    from .serving import ReadyPeer

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SWARM_PEER"},
)

logger = logging.getLogger("blockswarm.peer")  # not __name__: this may be the main module

DEFAULT_FOLDER = Path("~/.local/share/blockswarm")

plan_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
"""`swarm-peer plan`, beside the command that has no name."""


doctor_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
"""`swarm-peer doctor`, likewise."""


@app.command()
def peer(
    context: typer.Context,
    model: options.Model,
    new_swarm: options.NewSwarm = False,
    initial_peers: options.InitialPeers = None,
    blocks: options.Blocks = "auto",
    host: options.Host = "0.0.0.0",
    port: options.Port = 0,
    dht_port: options.DhtPort = 0,
    announce: options.Announce = None,
    reach: options.Reach = "auto",
    relay: options.Relay = False,
    relay_peers: options.RelayPeers = 8,
    relay_connections: options.RelayConnections = 64,
    relay_rate: options.RelayRate = 16.0,
    identity: options.Identity = None,
    data: options.Data = DEFAULT_FOLDER,
    swarm_key: options.SwarmKey = None,
    allow: options.Allow = None,
    lan: options.Lan = False,
    kv_tokens: options.KvTokens = DEFAULT_KV_TOKENS,
    client_share: options.ClientShare = CLIENT_SHARE,
    replay_memory: options.ReplayMemory = DEFAULT_LIMIT_BYTES >> 20,
    prefix_cache: options.PrefixCache = 256,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = "auto",
    threads: options.Threads = None,
    nice: options.Nice = False,
    metrics_port: options.MetricsPort = None,
    metrics_host: options.MetricsHost = "127.0.0.1",
    name: options.Name = "",
    hide_device: options.HideDevice = False,
    revision: options.Revision = None,
    cache_limit: options.CacheLimit = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    config_file: ConfigFile = None,
    print_config: PrintConfig = False,
    version: Version = False,
) -> None:
    """Host a contiguous range of a model's transformer blocks and announce it in the swarm.

    \b
    swarm-peer ./model --new-swarm                                  # the first peer; it prints its address
    swarm-peer ./model --initial-peers ID@HOST:PORT --blocks 8:16   # another one

    On Ctrl-C the peer takes no new sessions, lets the open ones end and leaves; on a second one it leaves at once.

    Every option is also read from the environment: --kv-tokens from SWARM_PEER_KV_TOKENS.
    """
    with reported_errors(verbose):
        config = options.peer_config(context.params)
        if print_config:
            print(as_file(settings_of(context)), end="")
        else:
            _run(config, as_json, context.obj)


@contextmanager
def reported_errors(verbose: bool, as_json: bool = False) -> Iterator[None]:
    """Turn expected errors into one line and a hint, and set the exit code; `as_json`: print one as JSON, too."""
    print_whatever_comes()
    log_to_standard_error(logging.INFO, verbose, "%(asctime)s %(levelname)s %(message)s")
    try:
        yield
    except (SwarmError, KeyboardInterrupt) as error:
        if as_json:
            print(json.dumps({"error": error_as_json(error)}), flush=True)
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(ExitStatus.INTERRUPTED) from None
        typer.echo(f"swarm-peer: {one_line(str(error))}\n  {error.hint}", err=True)
        raise typer.Exit(exit_status(error)) from None


@plan_app.command()
def plan(
    model: options.Model,
    initial_peers: Annotated[
        list[str],
        typer.Option("--initial-peers", help="A peer of the swarm, ID@HOST:PORT; may be given several times."),
    ],
    blocks: Annotated[str, typer.Option(help="As for swarm-peer: a range A:B, a number N, or auto.")] = "auto",
    kv_tokens: options.KvTokens = DEFAULT_KV_TOKENS,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "auto",
    quantize: Annotated[str, typer.Option(help="Format of the weights in memory, as for swarm-peer.")] = "auto",
    swarm_key: Annotated[Path | None, typer.Option(help="Key file of a private swarm.")] = None,
    lan: Annotated[bool, typer.Option("--lan", help="Connect to private addresses, too, as for swarm-peer.")] = False,
    data: Annotated[Path, typer.Option(help="Folder with the measurements of earlier runs.")] = DEFAULT_FOLDER,
    revision: options.Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Show what this machine would host, what that would gain, and what it would download. Nothing is downloaded."""
    import asyncio
    from tempfile import TemporaryDirectory

    with reported_errors(verbose, as_json), TemporaryDirectory() as scratch:
        config = PeerConfig(
            model=model, blocks=BlockRequest.parse(blocks),
            initial_peers=tuple(PeerAddress.parse(text) for text in initial_peers),
            identity_path=Path(scratch) / "plan.key", data_folder=data.expanduser(), host="0.0.0.0", port=0,
            announce=(), dht_port=0, swarm_key_path=swarm_key, allowed_peers=frozenset(), kv_tokens=kv_tokens,
            replay_bytes=DEFAULT_LIMIT_BYTES, prefix_cache_bytes=0, device=device, dtype="auto", quantize=quantize,
            threads=None, nice=False, metrics_host="127.0.0.1", metrics_port=None, name="", revision=revision,
            lan=lan,
            reach=ReachMode.DIRECT,
        )  # fmt: skip
        from .node import plan_peer
        from .program.plan import describe_plan, plan_as_json

        found = asyncio.run(plan_peer(config, lambda what, done, total: None))
        print(json.dumps(plan_as_json(found)) if as_json else describe_plan(model, found))


@doctor_app.command()
def doctor(
    initial_peers: Annotated[
        list[str] | None,
        typer.Option("--initial-peers", help="A peer that can be asked, ID@HOST:PORT; may be given several times."),
    ] = None,
    host: Annotated[str, typer.Option(help="As for swarm-peer.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="As for swarm-peer; 0 for any free port.")] = 0,
    announce: Annotated[str | None, typer.Option(help="HOST:PORT of a forwarded port, as for swarm-peer.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "auto",
    swarm_key: Annotated[Path | None, typer.Option(help="Key file of a private swarm.")] = None,
    lan: Annotated[bool, typer.Option("--lan", help="Connect to private addresses, too, as for swarm-peer.")] = False,
    data: Annotated[Path, typer.Option(help="Folder for the peer's own files.")] = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more; the log may contain addresses.")] = False,
) -> None:
    """Say what would keep this machine from serving, and what to do about it.

    The output contains no keys, addresses or file names, so it can be pasted anywhere. The exit status is 1 if anything
    is bad.
    """
    import asyncio

    with reported_errors(verbose, as_json):
        from ..proto.directory.swarm_key import SwarmKey
        from .program import doctor as examination

        patient = examination.Patient(
            tuple(PeerAddress.parse(text) for text in initial_peers or []), listening_host(host), port,
            HostPort.parse(announce).port if announce else None, data.expanduser(), device,
            SwarmKey.load(swarm_key) if swarm_key else None, lan,
        )  # fmt: skip
        findings = asyncio.run(examination.examine(patient, PeerTiming(), examination.device_finding))
    print(json.dumps(examination.as_json(findings)) if as_json else examination.describe(findings))
    if any(finding.health is examination.Health.BAD for finding in findings):
        raise typer.Exit(ExitStatus.MAY_PASS)


def _run(config: PeerConfig, as_json: bool, leave: Callable[[], object] | None) -> None:
    import asyncio

    logger.info("opening %s", config.model)
    from .node import run_peer  # heavy: imported only once the command line is known to be good
    from .program.ready import describe, print_ready, settle_memory
    from .program.terminal import LoadingBars

    with LoadingBars() as bars:

        def ready(peer: ReadyPeer) -> None:
            bars.stop()
            settle_memory()
            if as_json:
                print(json.dumps(describe(peer)), flush=True)
            else:
                print_ready(config.model, peer, config.shared_options)
            tell_service_manager(READY)

        asyncio.run(run_peer(config, ready, bars.update, leave))


def leave_process() -> None:
    """Kill the child processes and exit at once, whatever the threads are doing."""
    import psutil

    for child in psutil.Process().children():
        with suppress(psutil.Error):
            child.kill()
    sys.stdout.flush()
    os._exit(0)  # the status of every peer that is stopped before it serves


def main() -> None:
    """The console script."""
    lighten_imports()
    run_program("swarm-peer", _run_command)


def _run_command() -> None:
    if sys.argv[1:2] == ["plan"]:
        plan_app(sys.argv[2:], prog_name="swarm-peer plan")
    if sys.argv[1:2] == ["doctor"]:
        doctor_app(sys.argv[2:], prog_name="swarm-peer doctor")
    app(arguments_or_exit("swarm-peer", app, sys.argv[1:]), prog_name="swarm-peer", obj=leave_process)


if __name__ == "__main__":
    main()
