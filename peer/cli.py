"""`swarm-peer`: host blocks of a model for a swarm."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..routing.admit.table import CLIENT_SHARE

if TYPE_CHECKING:
    from ..routing.outlook import Outlook
    from .config import PeerConfig
    from .node import PeerPlan
    from .serving import ReadyPeer

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT_FOLDER = Path("~/.local/share/blockswarm")


plan_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
"""`swarm-peer plan`, beside the command that has no name."""


@app.command()
def peer(
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
    kv_tokens: Annotated[int, typer.Option(help="Tokens of attention cache to offer in each block.")] = 16384,
    client_share: Annotated[
        float, typer.Option(help="Part of the room that one client may hold while others wait for room.")
    ] = CLIENT_SHARE,
    replay_memory: Annotated[
        int, typer.Option(help="MiB for replay buffers, from which clients recover when another peer fails.")
    ] = 256,
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
    revision: Annotated[str | None, typer.Option(help="Revision of a Hugging Face model.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one line of JSON to standard output.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Host a contiguous range of a model's transformer blocks and announce it in the swarm.

    \b
    swarm-peer ./model --new-swarm                                  # the first peer; it prints its address
    swarm-peer ./model --initial-peers ID@HOST:PORT --blocks 8:16   # another one

    Ctrl-C takes no new sessions, lets the open ones end and leaves; a second Ctrl-C leaves at once.
    """
    with reported_errors(verbose):
        from ..proto.errors import UsageError
        from ..proto.network.address import PeerAddress
        from .config import BlockRequest, PeerConfig

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
            host=host,
            port=port,
            announce=tuple(announce or []),
            dht_port=dht_port,
            swarm_key_path=swarm_key,
            allowed_peers=frozenset(allow or []),
            kv_tokens=kv_tokens,
            client_share=client_share,
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
            revision=revision,
        )
        _run(config, as_json)


@contextmanager
def reported_errors(verbose: bool) -> Iterator[None]:
    """Expected errors become one line and a hint, and set the exit code."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("asyncio", "httpx", "httpcore", "transformers", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from ..proto.errors import SwarmError, UsageError, one_line

    try:
        yield
    except SwarmError as error:
        typer.echo(f"swarm-peer: {one_line(str(error))}\n  {error.hint}", err=True)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@plan_app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A local folder with a safetensors checkpoint, or a Hugging Face id.")],
    initial_peers: Annotated[
        list[str],
        typer.Option("--initial-peers", help="A peer of the swarm, ID@HOST:PORT; may be given several times."),
    ],
    blocks: Annotated[str, typer.Option(help="As for swarm-peer: a range A:B, a number N, or auto.")] = "auto",
    kv_tokens: Annotated[int, typer.Option(help="Tokens of attention cache to offer in each block.")] = 16384,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "auto",
    quantize: Annotated[str, typer.Option(help="Format of the weights in memory, as for swarm-peer.")] = "auto",
    swarm_key: Annotated[Path | None, typer.Option(help="Key file of a private swarm.")] = None,
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
        from .config import BlockRequest, PeerConfig

        config = PeerConfig(
            model=model, blocks=BlockRequest.parse(blocks),
            initial_peers=tuple(PeerAddress.parse(text) for text in initial_peers),
            identity_path=Path(scratch) / "plan.key", data_folder=data.expanduser(), host="0.0.0.0", port=0,
            announce=(), dht_port=0, swarm_key_path=swarm_key, allowed_peers=frozenset(), kv_tokens=kv_tokens,
            replay_bytes=256 << 20, prefix_cache_bytes=0, device=device, dtype="auto", quantize=quantize, threads=None,
            nice=False, metrics_host="127.0.0.1", metrics_port=None, name="", revision=revision,
        )  # fmt: skip
        from .node import plan_peer

        found = asyncio.run(plan_peer(config, lambda what, done, total: None))
        print(json.dumps(plan_as_json(found)) if as_json else describe_plan(model, found))


def describe_plan(model: str, plan: PeerPlan) -> str:
    """The plan for people."""
    if plan.blocks is None:
        return "this machine would host nothing: the swarm has no place for it now"
    lines = [
        f"would host blocks {plan.blocks} of {plan.num_blocks} in {plan.numeric_format}, and offer"
        f" {plan.memory_bytes / 2**30:.2f} GiB for weights and attention caches",
        f"would fetch {plan.checkpoint_bytes / 2**20:.0f} MiB at most, from {model}",
    ]
    for when, outlook in (("now", plan.before), ("then", plan.after)):
        if outlook is not None:
            lines.append(
                f"{when:>4}: a token takes {_milliseconds(outlook.token_seconds)}, no longer than"
                f" {_milliseconds(outlook.bound_seconds)} with {outlook.concurrency} sessions at once;"
                f" the weakest block is {outlook.weakest_block}, with {outlook.weakest_servers} servers"
            )
    return "\n".join(lines)


def plan_as_json(plan: PeerPlan) -> dict[str, object]:
    """Times in seconds, null where no chain is complete."""

    def figures(outlook: Outlook | None) -> dict[str, object] | None:
        if outlook is None:
            return None
        return {
            "R": outlook.concurrency,
            "token_seconds": _finite(outlook.token_seconds),
            "theorem2_bound_per_token_seconds": _finite(outlook.bound_seconds),
            "weakest_block": outlook.weakest_block,
            "weakest_block_servers": outlook.weakest_servers,
            "missing_blocks": list(outlook.uncovered),
        }

    return {
        "blocks": [plan.blocks.start, plan.blocks.stop] if plan.blocks else None,
        "num_blocks": plan.num_blocks,
        "numeric_format": plan.numeric_format,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "memory_bytes": plan.memory_bytes,
        "decode_seconds_per_block": plan.decode_seconds_per_block,
        "now": figures(plan.before),
        "then": figures(plan.after),
    }


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if math.isfinite(seconds) else "for ever (no chain is complete)"


def _run(config: PeerConfig, as_json: bool) -> None:
    import asyncio

    from .node import run_peer  # the heavy part: after all that a bad command line could say
    from .terminal import LoadingBars

    with LoadingBars() as bars:

        def ready(peer: ReadyPeer) -> None:
            bars.stop()
            if as_json:
                print(json.dumps(describe(peer)), flush=True)
            else:
                print_ready(config.model, peer)

        asyncio.run(run_peer(config, ready, bars.update))


def describe(peer: ReadyPeer) -> dict[str, object]:
    """The object that `--json` prints."""
    return {
        "address": str(peer.address),
        "peer_id": peer.address.peer,
        "blocks": [peer.blocks.start, peer.blocks.stop],
        "num_blocks": peer.num_blocks,
        "kv_tokens": peer.kv_tokens,
        "model_digest": peer.model_digest,
        "decode_seconds_per_block": peer.cost.decode_seconds(),
        "numeric_format": peer.numeric_format,
        "device": peer.device,
        "threads": peer.threads,
        "metrics_port": peer.metrics_port,
        "pid": os.getpid(),
    }


def print_ready(model: str, peer: ReadyPeer) -> None:
    """Tell a person that the peer is ready."""
    milliseconds = 1000 * peer.cost.decode_seconds() * len(peer.blocks)
    where = f"{peer.threads} threads" if peer.device == "cpu" else peer.device
    print(
        f"serving blocks {peer.blocks} of {peer.num_blocks} in {peer.numeric_format},"
        f" {milliseconds:.1f} ms per token with {where}"
    )
    print(f"others join with:    swarm-peer {model} --initial-peers {peer.address}")
    print(f"generate text with:  swarm-client generate {model} --initial-peers {peer.address}", flush=True)


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["plan"]:
        plan_app(sys.argv[2:], prog_name="swarm-peer plan")
    app(prog_name="swarm-peer")


if __name__ == "__main__":
    main()
