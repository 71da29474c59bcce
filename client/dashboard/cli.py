"""`swarm-dashboard`: its options, and the check that the packages that it needs are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...proto.exit_status import run_program
from ...proto.lean_imports import lighten_imports
from ...proto.service_manager import READY, tell_service_manager
from ...proto.settings import ConfigFile, PrintConfig, Version, arguments_or_exit, as_file, settings_of
from ..program.arguments import (
    IdentityFile,
    InitialPeers,
    Lan,
    Revision,
    SwarmKeyFile,
    Verbose,
)
from ..program.edge import check_installed, reported_errors, swarm_options

if TYPE_CHECKING:
    from .config import DashboardConfig

EXTRA = ("fastapi", "jinja2", "uvicorn")
"""Packages that only the dashboard needs."""

DEFAULT_FOLDER = Path("~/.local/share/blockswarm")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SWARM_DASHBOARD"},
    help="Show a swarm to everybody, as pages and as JSON.",
)


@app.command()
def dashboard(
    context: typer.Context,
    action: Annotated[
        list[str] | None,
        typer.Argument(metavar="[export DIR]", help="Write the pages and data as files to DIR.", show_default=False),
    ] = None,
    initial_peers: InitialPeers = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model to show: a local folder or a Hugging Face id; may be given several times."
            "  [default: the models of the initial peers]",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; use another one to serve other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8080,
    data: Annotated[Path, typer.Option(help="Folder of the history.")] = DEFAULT_FOLDER,
    join_address: Annotated[
        list[str] | None,
        typer.Option(
            "--join-address",
            help="A peer that the page names to people who want to join, ID@HOST:PORT; it shows no other address.",
        ),
    ] = None,
    swarm_key: SwarmKeyFile = None,
    identity: IdentityFile = None,
    lan: Lan = False,
    revision: Revision = None,
    verbose: Verbose = False,
    config_file: ConfigFile = None,
    print_config: PrintConfig = False,
    version: Version = False,
) -> None:
    """Watch the swarms of some models, and show them to everybody.

    \b
    swarm-dashboard --initial-peers ID@HOST:PORT

    Every option is also read from the environment: --port from SWARM_DASHBOARD_PORT.

    Peers' addresses are not shown. With --model the blocks are counted in the model's own files.
    """
    with reported_errors(verbose, "swarm-dashboard"):
        check_installed("the dashboard", EXTRA, "dashboard")
        from .config import DashboardConfig

        options = swarm_options(initial_peers, swarm_key, identity, lan, False, revision, patience_seconds=10.0)
        models, told = tuple(dict.fromkeys(model or ())), tuple(join_address or ())
        config = DashboardConfig(options, models, swarm_key, data, told, host, port)
        if print_config:
            settings = {name: value for name, value in settings_of(context).items() if name != "action"}
            print(as_file(settings), end="")
            return
        folder = export_folder(action or [])
        _run(config, folder)


def _run(config: DashboardConfig, folder: Path | None) -> None:
    print("starting", file=sys.stderr, flush=True)
    from . import server

    if folder is None:
        server.serve(config, _ready, _warn)
    else:
        print(f"{server.write_export(config, folder)} files are written to {folder}")


def export_folder(action: list[str]) -> Path | None:
    """Return the folder of `export DIR`, None without arguments. Raises UsageError for other arguments."""
    from ...proto.errors import UsageError

    match action:
        case []:
            return None
        case ["export", folder]:
            return Path(folder).expanduser()
    raise UsageError(f"not known: {' '.join(action)}", hint="The only words are: export DIR.")


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ready(address: str) -> None:
    print(f"showing the swarm at {address}", flush=True)
    tell_service_manager(READY)
    print("Ctrl-C ends", file=sys.stderr, flush=True)


def main() -> None:
    """The console script."""
    lighten_imports()
    run_program("swarm-dashboard", _run_command)


def _run_command() -> None:
    app(arguments_or_exit("swarm-dashboard", app, sys.argv[1:], positional=None), prog_name="swarm-dashboard")


if __name__ == "__main__":
    main()
