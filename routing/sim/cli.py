"""`swarm-sim`: replay instances, run and compare scenarios, plan a snapshot.

Exit status: 0 done, 2 malformed input (one line on stderr names file and field), 3 infeasible.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from .runs.published import RequestResult
    from .studies.compare import Row

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=__doc__,
)

_MALFORMED = 2
_INFEASIBLE = 3


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"blockswarm {version('blockswarm')}")
        raise typer.Exit


@app.callback()
def every_command(
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version, and end."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    app()


def _fail(message: str, status: int) -> typer.Exit:
    typer.echo(f"swarm-sim: {message}", err=True)
    return typer.Exit(status)


def _print_json(report: Any) -> None:
    sys.stdout.write(json.dumps(report, indent=None, separators=(",", ":")) + "\n")


@app.command()
def replay(
    instance: Annotated[Path, typer.Argument(help="An instance file (JSON).")],
    policy: Annotated[str, typer.Option(help="Which policy to run; an unknown name lists them.")] = "proposed",
    zero_fixed_delay: Annotated[bool, typer.Option(help="Leave out the allocation constants.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Run one instance under one policy."""
    from ..papers.instances import InstanceError, load_instance
    from ..papers.milp import NoSolutionError, TooLargeError
    from ..place.cgbp import InfeasiblePlacementError
    from .runs.policies import InfeasibleError, MissingFieldError
    from .runs.published import NeverRunsError
    from .studies import replay as replaying

    try:
        loaded = load_instance(instance)
        report = replaying.replay(loaded, policy, zero_fixed_delay=zero_fixed_delay)
    except InstanceError as error:
        raise _fail(str(error), _MALFORMED) from error
    except (MissingFieldError, TooLargeError) as error:
        raise _fail(f"{instance.name}: {error}", _MALFORMED) from error
    except (InfeasibleError, InfeasiblePlacementError, NeverRunsError, NoSolutionError) as error:
        report = replaying.infeasible_report(loaded, policy, str(error))
    if as_json:
        _print_json(report)
    else:
        typer.echo(replaying.summary(report))
    if not report["feasible"]:
        raise typer.Exit(_INFEASIBLE)


@app.command()
def chains(
    cases: Annotated[Path, typer.Argument(help="A chain-composition file (JSON).")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compose chains: GBP-CR, GCA and Theorem 4's bounds for every case of a file."""
    from ..papers.instances import InstanceError, load_chain_cases
    from .studies.replay import chains_report

    try:
        report = chains_report(load_chain_cases(cases))
    except InstanceError as error:
        raise _fail(str(error), _MALFORMED) from error
    if as_json:
        _print_json(report)
    else:
        typer.echo(json.dumps(report, indent=2))
    if any("error" in case for case in report["cases"]):
        raise typer.Exit(_INFEASIBLE)


@app.command()
def run(
    scenario: Annotated[Path, typer.Argument(help="A scenario file (TOML).")],
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON array on stdout, of an object for each row that the table would have."),
    ] = False,
) -> None:
    """Simulate a scenario under its policies, with the published fixed delays and without any.

    With a table named churn in the scenario, peers join, leave, crash and become slow meanwhile (policy "ours" only).
    It has either rates (joins_per_hour, leaves_per_hour, crashes_per_hour, slowdowns_per_hour, and slow_factor,
    slow_seconds, after_seconds) or a list of events (at_seconds, kind, server, factor, duration_seconds, blocks);
    and drain_seconds, refresh_seconds. docs/scenarios/churn.toml explains them and shows an example.
    """
    rows = [row for row, _ in _compared([scenario], [])]
    if as_json:
        from dataclasses import asdict

        _print_json([asdict(row) for row in rows])
    else:
        from .studies.compare import to_table

        typer.echo(to_table(rows))
    if all(row.summary is None for row in rows):
        raise typer.Exit(_INFEASIBLE)


@app.command()
def compare(
    scenarios: Annotated[list[Path], typer.Argument(help="Scenario files (TOML).")],
    policy: Annotated[list[str] | None, typer.Option(help="A policy; repeat for more. Default: the files'.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table as CSV to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw everything to this .svg or .png file.")] = None,
) -> None:
    """Compare policies over scenarios: a table, CSV, and plots of the time per token.

    A file with tables named sweep stands for many scenarios, which differ in one number each. Such a table has vary,
    the path of any number in the file (cluster.servers, cluster.fast_fraction, workload.rate_per_second,
    workload.new_tokens, R, ...), and values, the list of what it shall be. docs/scenarios/sweep.toml is an example.

    Drawn are, by scenario and delay setting, the distribution over its requests, and of a sweep the mean over the
    number that is varied.
    """
    from .studies.compare import per_token_samples, swept_seconds, to_csv, to_table

    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise _fail(f"--plot: {plot.name}: must end in .svg or .png", _MALFORMED)
    if plot is not None and find_spec("matplotlib") is None:
        raise _fail("--plot needs matplotlib: pip install 'blockswarm[plots]'", _MALFORMED)
    for option, path in (("--out", out), ("--plot", plot)):
        if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
            raise _fail(f"{option}: {path} cannot be written", _MALFORMED)
    compared = _compared(scenarios, policy or [])
    rows = [row for row, _ in compared]
    typer.echo(to_table(rows))
    if out is not None:
        with _written("--out", out):
            out.write_text(to_csv(rows), encoding="utf-8")
    if plot is not None and any(results for _, results in compared):
        from .plots import Distribution, Sweep, draw, sweep_of

        delays = {False: "published delays", True: "zero delays"}
        panels: list[Sweep | Distribution] = [
            sweep_of(f"{base}, {delays[zero]}", varied, points)
            for (base, varied, zero), points in swept_seconds(rows).items()
        ]
        panels += [
            Distribution(f"{scenario}, {delays[zero]}", "seconds per token", samples)
            for (scenario, zero), samples in per_token_samples(compared).items()
        ]
        with _written("--plot", plot):
            draw(plot, panels, "seconds per token")
    if all(row.summary is None for row in rows):
        raise typer.Exit(_INFEASIBLE)


@contextmanager
def _written(option: str, path: Path) -> Iterator[None]:
    """Say in a line what went wrong where the file is written in the block."""
    try:
        yield
    except OSError as error:
        raise _fail(f"{option}: {path} cannot be written: {error.strerror}", _MALFORMED) from error


@app.command()
def plan(
    snapshot: Annotated[Path, typer.Argument(help="A snapshot file (JSON).")],
) -> None:
    """Place a snapshot's peers: the ranges, the bound, and the gain of one more peer; JSON."""
    from ..papers.instances import InstanceError
    from ..place.cgbp import InfeasiblePlacementError
    from .studies.plan import load_snapshot, plan_report

    try:
        typer.echo(json.dumps(plan_report(load_snapshot(snapshot)), indent=2))
    except InfeasiblePlacementError as error:
        raise _fail(f"{snapshot.name}: infeasible: {error}", _INFEASIBLE) from error
    except InstanceError as error:
        raise _fail(str(error), _MALFORMED) from error


@app.command("list")
def list_choices() -> None:
    """List the policies and the maps that scenarios can name."""
    from .runs.policies import CHURN_POLICIES, ONLINE_POLICIES
    from .worlds.geography import TOPOLOGIES, bundled_topology

    typer.echo("policies (policies = [...], --policy):")
    for name in ONLINE_POLICIES:
        typer.echo(f"  {name}" + ("  (also with [churn])" if name in CHURN_POLICIES else ""))
    typer.echo("maps (cluster.topology):")
    for name in TOPOLOGIES:
        typer.echo(f"  {name}, {len(bundled_topology(name).rtt_seconds())} nodes")


def _compared(paths: list[Path], policies: list[str]) -> list[tuple[Row, list[RequestResult]]]:
    """Load and run the scenarios, with a progress bar on a terminal."""
    from ..papers.instances import InstanceError
    from .runs.policies import ONLINE_POLICIES, MissingFieldError
    from .studies.compare import run_policy
    from .worlds.scenario import load_scenarios

    for name in policies:
        if name not in ONLINE_POLICIES:
            raise _fail(f"--policy: {name!r} is not one of {', '.join(ONLINE_POLICIES)}", _MALFORMED)
    try:
        loaded = [scenario for path in paths for scenario in load_scenarios(path)]
        work = [(s, z, p) for s in loaded for z in (False, True) for p in policies or s.policies]
        rows = []
        with _progress() as bar:
            for scenario, zero, policy in work:
                task = bar.add_task(f"{scenario.name} {policy}", total=scenario.requests * scenario.runs)
                compared = run_policy(
                    scenario,
                    policy,
                    zero_fixed_delay=zero,
                    progress=lambda done, task=task: bar.update(task, completed=done) if done % 256 == 0 else None,  # type: ignore[misc]
                )
                bar.remove_task(task)
                rows.append(compared)
    except (InstanceError, MissingFieldError) as error:
        raise _fail(str(error), _MALFORMED) from error
    return rows


def _progress() -> Progress:
    """A bar on stderr; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


if __name__ == "__main__":
    main()
