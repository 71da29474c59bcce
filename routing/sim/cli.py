"""`swarm-sim`: replay instances, run and compare scenarios, plan a snapshot.

Exit status: 0 done, 2 malformed input (one line on stderr names file and field), 3 infeasible.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

_MALFORMED = 2
_INFEASIBLE = 3


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
    from ..cgbp import InfeasiblePlacementError
    from ..instances import InstanceError, load_instance
    from ..milp import NoSolutionError, TooLargeError
    from . import replay as replaying
    from .policies import InfeasibleError, MissingFieldError
    from .published import NeverRunsError

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
    from ..instances import InstanceError, load_chain_cases
    from .replay import chains_report

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


if __name__ == "__main__":
    main()
