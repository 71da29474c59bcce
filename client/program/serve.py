"""`swarm-client serve`: the options of the endpoint; and the commands that make keys."""

from __future__ import annotations

import secrets
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...proto.service_manager import READY, tell_service_manager
from ...proto.settings import ConfigFile, PrintConfig, as_file, placed, read_settings, settings_of
from .arguments import (
    AllowPeer,
    Draft,
    GuessAhead,
    Head,
    IdentityFile,
    InitialPeers,
    Lan,
    MinPrecision,
    NoPrefixCache,
    NoPush,
    Patience,
    Revision,
    SwarmKeyFile,
    Verbose,
    WireFormat,
)
from .edge import check_installed, reported_errors
from .served_models import entries_of, models_of

if TYPE_CHECKING:
    from ..api.config import EndpointConfig

EXTRA = ("starlette", "uvicorn", "llguidance")
"""Packages that only the endpoint needs."""

KeysFile = Annotated[Path | None, typer.Option(help="File of API keys, see new-api-key.  [default: no key is needed]")]
AllowOrigin = Annotated[
    list[str] | None, typer.Option(help="Origin of web pages that may send requests; may be given several times.")
]


def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="A local folder with a safetensors checkpoint, or a Hugging Face id.", show_default=False),
    ] = None,
    initial_peers: InitialPeers = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; use another one to serve other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name in requests.  [default: the id, or the folder's name]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Most tokens of a prompt and its answer.  [default: the model's own limit]")
    ] = None,
    default_max_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer whose request sets no limit.")
    ] = 1024,
    max_running: Annotated[int, typer.Option(help="Requests that generate at the same time.")] = 16,
    max_queue: Annotated[int, typer.Option(help="Requests that wait for their turn; further ones are refused.")] = 256,
    keys: KeysFile = None,
    allow_origin: AllowOrigin = None,
    swarm_key: SwarmKeyFile = None,
    identity: IdentityFile = None,
    lan: Lan = False,
    no_push: NoPush = False,
    wire_format: WireFormat = "auto",
    min_precision: MinPrecision = None,
    allow_peer: AllowPeer = None,
    patience: Patience = 30.0,
    no_prefix_cache: NoPrefixCache = False,
    head: Head = "auto",
    guess: GuessAhead = "auto",
    draft: Draft = None,
    revision: Revision = None,
    verbose: Verbose = False,
    config_file: ConfigFile = None,
    print_config: PrintConfig = False,
) -> None:
    """Serve a model through OpenAI's API, for programs that use it.

    \b
    swarm-client serve ./model --initial-peers ID@HOST:PORT

    A file (--config) may name several models, of one swarm or several: a [[models]] for each, with its own options.
    Every option is also read from the environment: --port from SWARM_CLIENT_SERVE_PORT.
    """
    with reported_errors(verbose):
        file, tables = models_in(config_file)
        if print_config:
            print("\n[[models]]\n".join(map(as_file, [settings_of(context), *tables])), end="")
            return
        check_installed("the endpoint", EXTRA, "serve")
        from ..api.config import EndpointConfig

        entries = entries_of(context.params, tables, file)
        _serve(EndpointConfig(entries, host, port, max_running, max_queue, keys, tuple(allow_origin or ())))


def models_in(config_file: Path | None) -> tuple[Path | None, list[dict[str, Any]]]:
    """Return the file and the options that its [[models]] set. Raises UsageError, which names the file."""
    if config_file is None:
        return None, []
    file = config_file.expanduser()
    with placed(file):
        return file, models_of(read_settings(file))


def new_api_key(
    file: Annotated[Path, typer.Argument(help="The file of keys, created if missing.")],
    name: Annotated[str, typer.Argument(help="The holder of the key.")],
    requests_per_minute: Annotated[int | None, typer.Option(help="[default: no limit]")] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(help="Prompts and answers together.  [default: no limit]")
    ] = None,
) -> None:
    """Add an API key to a file for `serve --keys`, and print it; it is not shown again."""
    with reported_errors(False):
        check_installed("the endpoint", EXTRA, "serve")
        from ..api.access.keys import add_key

        print(add_key(file, name, requests_per_minute, tokens_per_day, secrets.token_urlsafe(32)))


def new_key(file: Annotated[Path, typer.Argument(help="The file to write; it must not exist yet.")]) -> None:
    """Make the key of a new private swarm. Give it only to its members."""
    with reported_errors(False):
        from ...proto.directory.swarm_key import SwarmKey

        SwarmKey.generate().save(file)
        print(
            f"{file} is the key of a new private swarm: start its peers and clients with"
            f" --swarm-key {shlex.quote(str(file))}"
        )


def _serve(config: EndpointConfig) -> None:
    from .terminal import spinner

    with spinner("starting torch") as turning:
        from ..api.server import serve as run

        run(config, turning, lambda address: _ready(config, address))


def _ready(config: EndpointConfig, address: str) -> None:
    print(f"serving {address}", flush=True)
    tell_service_manager(READY)
    if config.warning is not None:
        print(config.warning, file=sys.stderr)
    print("Ctrl-C ends", file=sys.stderr, flush=True)
