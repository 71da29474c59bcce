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

from ..proto.exit_status import ExitStatus, exit_status
from ..proto.lean_imports import lighten_imports
from ..proto.logs import log_to_standard_error, print_whatever_comes
from ..proto.service_manager import READY, tell_service_manager
from ..proto.settings import ConfigFile, PrintConfig, Version, arguments_or_exit, as_file, settings_of
from ..routing.admit.table import CLIENT_SHARE
from .config import DEFAULT_KV_TOKENS
from .session.replay_store import DEFAULT_LIMIT_BYTES

if TYPE_CHECKING:
    from .config import PeerConfig
    from .serving import ReadyPeer

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SWARM_PEER"},
)

logger = logging.getLogger("blockswarm.peer")  # not __name__: this may be the main module

DEFAULT_FOLDER = Path("~/.local/share/blockswarm")

KvTokens = Annotated[int, typer.Option(help="Tokens of attention cache to offer in each block.")]

plan_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
"""`swarm-peer plan`, beside the command that has no name."""


doctor_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
"""`swarm-peer doctor`, likewise."""


@app.command()
def peer(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A local folder with a safetensors checkpoint, or a Hugging Face id.")],
    new_swarm: Annotated[bool, typer.Option("--new-swarm", help="Begin a new swarm.")] = False,
    initial_peers: Annotated[
        list[str] | None,
        typer.Option("--initial-peers", help="Join the swarm of this peer, ID@HOST:PORT; may be given several times."),
    ] = None,
    blocks: Annotated[
        str,
        typer.Option(
            help="A range A:B (half-open, from 0), a number N, or auto for all blocks that fit into free memory."
        ),
    ] = "auto",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses of the machine.")
    ] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port for clients and peers; 0 for any free port.")] = 0,
    dht_port: Annotated[int, typer.Option(help="Port of the DHT node; 0 for any free port.")] = 0,
    announce: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT under which others reach this peer, where that differs (port forwarding)."),
    ] = None,
    reach: Annotated[
        str,
        typer.Option(
            help="How others reach this peer. auto: other peers dial it back; where that fails, it is reached through"
            " peers that offer --relay. direct: announce the address unchecked. relay: through relays only."
        ),
    ] = "auto",
    relay: Annotated[
        bool,
        typer.Option(
            "--relay", help="Let peers without an open port be reached through this one. It sees only encrypted bytes."
        ),
    ] = False,
    relay_peers: Annotated[int, typer.Option(help="With --relay: for how many peers at once.")] = 8,
    relay_connections: Annotated[int, typer.Option(help="With --relay: connections of all these peers at once.")] = 64,
    relay_rate: Annotated[
        float,
        typer.Option(help="With --relay: MiB per second for all of them, both directions; each has at most half."),
    ] = 16.0,
    identity: Annotated[
        Path | None,
        typer.Option(help="Key file of this peer; created if it does not exist.  [default: peer.key in --data]"),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder for the peer's own files.")] = DEFAULT_FOLDER,
    swarm_key: Annotated[
        Path | None, typer.Option(help="Key file of a private swarm; make one with `swarm-client new-key FILE`.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="In a private swarm, the id of a client that needs no key; may be given several times."),
    ] = None,
    lan: Annotated[
        bool,
        typer.Option(
            "--lan",
            help="The swarm is on your own network: connect to private addresses, too, when a record has them."
            " Not needed where an initial peer is at such an address.",
        ),
    ] = False,
    kv_tokens: KvTokens = DEFAULT_KV_TOKENS,
    client_share: Annotated[
        float, typer.Option(help="Part of the room that one client may hold while others wait for room.")
    ] = CLIENT_SHARE,
    replay_memory: Annotated[
        int, typer.Option(help="MiB for replay buffers, from which clients recover when another peer fails.")
    ] = DEFAULT_LIMIT_BYTES >> 20,
    prefix_cache: Annotated[
        int,
        typer.Option(
            help="MiB for attention caches of earlier prompts: where a client's next prompt begins with the same text,"
            " only the rest is computed. Never shared between clients."
        ),
    ] = 256,
    device: Annotated[
        str, typer.Option(help="Device to compute on: cpu, cuda, cuda:N, or auto for a GPU if torch sees one.")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16 or float16. auto: float32 on a CPU; on a GPU as the model was published, if the"
            " GPU computes in that."
        ),
    ] = "auto",
    quantize: Annotated[
        str,
        typer.Option(
            help="Format of the weights in memory. none: as --dtype says. int8: a quarter of float32's memory,"
            " about 1 % error per layer. int4 (CPU), nf4 (GPU): an eighth, less exact. auto: what this machine"
            " computes fastest without loss. Clients see the format and can demand a better one."
        ),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads for computing.  [default: the fastest number, measured]")
    ] = None,
    nice: Annotated[
        bool,
        typer.Option(
            "--nice",
            help="Yield to other programs: run at low priority, and pause between steps while they use half of"
            " the machine or more. Sessions get slower then, and the announced speed follows.",
        ),
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Serve Prometheus metrics on this port; 0 for any free port.  [default: not served]"),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address to serve metrics on.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="A name for the public map of the swarm.")] = "",
    hide_device: Annotated[
        bool, typer.Option("--hide-device", help="Do not announce which kind of device this is, and its memory.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hugging Face model.")] = None,
    cache_limit: Annotated[
        float | None,
        typer.Option(
            help="GiB for fetched blocks in the cache folder: beyond that, those that no peer uses are deleted, the"
            " least recently used first.  [default: no limit]"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one line of JSON to standard output.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    config_file: ConfigFile = None,
    print_config: PrintConfig = False,
    version: Version = False,
) -> None:
    """Host a contiguous range of a model's transformer blocks and announce it in the swarm.

    \b
    swarm-peer ./model --new-swarm                                  # the first peer; it prints its address
    swarm-peer ./model --initial-peers ID@HOST:PORT --blocks 8:16   # another one

    Ctrl-C takes no new sessions, lets the open ones end and leaves; a second Ctrl-C leaves at once.

    Every option is also read from the environment: --kv-tokens from SWARM_PEER_KV_TOKENS.
    """
    with reported_errors(verbose):
        from ..proto.errors import UsageError
        from ..proto.network.address import PeerAddress
        from .config import BlockRequest, PeerConfig, RelayQuota, listening_host, reach_mode

        if new_swarm == bool(initial_peers):
            raise UsageError(
                "say which swarm to join, and only one",
                hint="Give --initial-peers ID@HOST:PORT, or --new-swarm for the first peer.",
            )
        config = PeerConfig(
            model=model,
            blocks=BlockRequest.parse(blocks),
            initial_peers=tuple(PeerAddress.parse(text) for text in initial_peers or []),
            identity_path=(identity or data / "peer.key").expanduser(),
            data_folder=data.expanduser(),
            host=listening_host(host),
            port=port,
            announce=tuple(announce or []),
            reach=reach_mode(reach),
            relay=RelayQuota(relay_peers, relay_connections, bytes_per_second=relay_rate * 2**20) if relay else None,
            dht_port=dht_port,
            swarm_key_path=swarm_key,
            allowed_peers=frozenset(allow or []),
            kv_tokens=kv_tokens,
            client_share=client_share,
            lan=lan,
            replay_bytes=replay_memory << 20,
            prefix_cache_bytes=prefix_cache << 20,
            device=device,
            dtype=dtype,
            quantize=quantize,
            threads=threads,
            nice=nice,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            name=name,
            tell_device=not hide_device,
            revision=revision,
            cache_limit_bytes=None if cache_limit is None else int(cache_limit * 2**30),
        )
        if print_config:
            print(as_file(settings_of(context)), end="")
        else:
            _run(config, as_json, context.obj)


@contextmanager
def reported_errors(verbose: bool) -> Iterator[None]:
    """Expected errors become one line and a hint, and set the exit code."""
    print_whatever_comes()
    log_to_standard_error(logging.INFO, verbose, "%(asctime)s %(levelname)s %(message)s")
    from ..proto.errors import SwarmError, one_line

    try:
        yield
    except SwarmError as error:
        typer.echo(f"swarm-peer: {one_line(str(error))}\n  {error.hint}", err=True)
        raise typer.Exit(exit_status(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitStatus.INTERRUPTED) from None


@plan_app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A local folder with a safetensors checkpoint, or a Hugging Face id.")],
    initial_peers: Annotated[
        list[str],
        typer.Option("--initial-peers", help="A peer of the swarm, ID@HOST:PORT; may be given several times."),
    ],
    blocks: Annotated[str, typer.Option(help="As for swarm-peer: a range A:B, a number N, or auto.")] = "auto",
    kv_tokens: KvTokens = DEFAULT_KV_TOKENS,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "auto",
    quantize: Annotated[str, typer.Option(help="Format of the weights in memory, as for swarm-peer.")] = "auto",
    swarm_key: Annotated[Path | None, typer.Option(help="Key file of a private swarm.")] = None,
    lan: Annotated[bool, typer.Option("--lan", help="Connect to private addresses, too, as for swarm-peer.")] = False,
    data: Annotated[Path, typer.Option(help="Folder with the measurements of earlier runs.")] = DEFAULT_FOLDER,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hugging Face model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Say what this machine would host, what that would bring, and what it would download. Nothing is downloaded."""
    import asyncio
    from tempfile import TemporaryDirectory

    with reported_errors(verbose), TemporaryDirectory() as scratch:
        from ..proto.network.address import PeerAddress
        from .config import BlockRequest, PeerConfig, ReachMode

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
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log more; the log may have addresses in it.")
    ] = False,
) -> None:
    """Say what would keep this machine from serving, and what to do about it.

    The output has no keys, addresses or names of files in it: it may be pasted anywhere. The status is 1 if anything is
    bad.
    """
    import asyncio

    with reported_errors(verbose):
        from ..proto.directory.swarm_key import SwarmKey
        from ..proto.network.address import HostPort, PeerAddress
        from .config import listening_host
        from .program import doctor as examination
        from .timing import PeerTiming

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
    from .node import run_peer  # the heavy part: after all that a bad command line could say
    from .program.ready import describe, print_ready, settle_memory
    from .program.terminal import LoadingBars

    with LoadingBars() as bars:

        def ready(peer: ReadyPeer) -> None:
            bars.stop()
            settle_memory()
            if as_json:
                print(json.dumps(describe(peer)), flush=True)
            else:
                print_ready(config.model, peer)
            tell_service_manager(READY)

        asyncio.run(run_peer(config, ready, bars.update, leave))


def leave_process() -> None:
    """End this process and those that it started, whatever their threads do."""
    import psutil

    for child in psutil.Process().children():
        with suppress(psutil.Error):
            child.kill()
    sys.stdout.flush()
    os._exit(0)  # as a peer that was stopped before it served ends anyway


def main() -> None:
    """The console script."""
    lighten_imports()
    if sys.argv[1:2] == ["plan"]:
        plan_app(sys.argv[2:], prog_name="swarm-peer plan")
    if sys.argv[1:2] == ["doctor"]:
        doctor_app(sys.argv[2:], prog_name="swarm-peer doctor")
    app(arguments_or_exit("swarm-peer", sys.argv[1:]), prog_name="swarm-peer", obj=leave_process)


if __name__ == "__main__":
    main()
