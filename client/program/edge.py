"""The edge of the commands: converts options and prompts, reports errors as one line, and runs asynchronous work."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from ...proto.exit_status import ExitStatus, exit_status, write_output
from ...proto.logs import log_to_standard_error

if TYPE_CHECKING:
    from ...routing.swarm import PeerId
    from ..survey.survey import ModelName
    from .options import SwarmOptions

T = TypeVar("T")


class JsonOutput:
    """The standard output of a command with --json: one value, and nothing else, also if the command fails."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._written = False

    def write(self, value: object) -> None:
        """Print `value` if JSON is wanted and none was printed."""
        if self.wanted and not self._written:
            self._written = True
            print(json.dumps(value), flush=True)


@contextmanager
def reported_errors(verbose: bool, program: str = "swarm-client", as_json: bool = False) -> Iterator[JsonOutput]:
    """Report expected errors as one line and a hint, and set the exit code; with `as_json` in JSON, too."""
    log_to_standard_error(logging.ERROR, verbose, "%(levelname)s %(message)s")
    use_utf8()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ...proto.errors import SwarmError, error_as_json, one_line
    from ...proto.network.crowding import raise_descriptor_limit

    raise_descriptor_limit()
    output = JsonOutput(as_json)
    try:
        yield output
    except SwarmError as error:
        output.write({"error": error_as_json(error)})
        typer.echo(f"{program}: {one_line(str(error))}\n  {error.hint}", err=True)
        raise typer.Exit(exit_status(error)) from None
    except KeyboardInterrupt as interrupt:
        output.write({"error": error_as_json(interrupt)})
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except BrokenPipeError:  # the reader of the output is gone, which is no error of ours
        raise typer.Exit(ExitStatus.MAY_PASS) from None
    except Exception as error:  # a bug, here or in a library; --verbose shows the traceback
        if isinstance(error, OSError):
            write_output(program)  # it may be a full disk behind standard output, which is no bug
        logging.getLogger(__name__).debug("unexpected", exc_info=error)
        output.write({"error": error_as_json(error)})
        typer.echo(
            f"{program}: unexpected: {type(error).__name__}: {one_line(str(error))}\n  "
            "Run it again with --verbose for the traceback, and report it.",
            err=True,
        )
        raise typer.Exit(ExitStatus.MAY_PASS) from None


def check_installed(what: str, packages: Sequence[str], extra: str) -> None:
    """Raise UsageError if `what` needs a package that is not installed, as a client alone does not need it."""
    from ...proto.errors import UsageError

    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise UsageError(
            f"{what} needs packages that are not installed: {', '.join(missing)}",
            hint=f"Install them with: pip install 'blockswarm[{extra}]'",
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # sys.modules has the package without a spec, or as None
        return False


def swarm_options(
    initial_peers: list[str] | None,
    swarm_key: Path | None,
    identity: Path | None,
    lan: bool,
    no_push: bool,
    revision: str | None,
    *,
    head: str = "auto",
    **session: Any,
) -> SwarmOptions:
    """Build SwarmOptions from options; `session`: its remaining fields, which concern sessions. Raises UsageError."""
    from ...proto.directory.swarm_key import SwarmKey
    from ...proto.errors import UsageError
    from ...proto.network.address import PeerAddress
    from ..config import HeadForm
    from .options import SwarmOptions

    if not initial_peers:
        raise UsageError(
            "no initial peers are given",
            hint="Name a peer of the swarm with --initial-peers ID@HOST:PORT, as it prints it when it starts.",
        )
    return SwarmOptions(
        initial_peers=tuple(PeerAddress.parse(text) for text in initial_peers),
        swarm_key=SwarmKey.load(swarm_key) if swarm_key else None,
        identity=identity,
        lan=lan,
        push=not no_push,
        revision=revision,
        head=HeadForm.parse(head),
        **session,
    )


def allowed_peers(ids: list[str] | None) -> frozenset[PeerId] | None:
    """Return the peers that --allow-peer names; None without it. Raises UsageError."""
    from ...proto.network.address import peer_ids

    return peer_ids(ids) if ids else None


def given_prompt(prompt: str | None) -> str:
    """Return the prompt of the command line, or all of standard input. Raises UsageError if it is empty."""
    from ...proto.errors import UsageError

    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError("there is no prompt", hint="Give one with --prompt TEXT, or on standard input.")
        prompt = sys.stdin.read()
    if not prompt:
        raise UsageError("the prompt is empty", hint="Give one with --prompt TEXT, or on standard input.")
    return checked_text(prompt, "the prompt")


def use_utf8() -> None:
    """Read standard input as UTF-8 whatever the locale is; print characters that a terminal cannot show as "?"."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def checked_text(text: str, what: str) -> str:
    """Return `text`, read from its bytes as UTF-8. Raises UsageError if they are not.

    Python keeps bytes for which the locale has no letters as surrogates; in an ASCII locale, all that are not ASCII.
    """
    from ...proto.errors import UsageError

    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        raise UsageError(f"{what} is not UTF-8", hint="Convert it to UTF-8.") from None


def write(text: str) -> None:
    """Print a piece of a model's text; on a terminal without control characters."""
    from .terminal import harmless

    print(harmless(text) if sys.stdout.isatty() else text, end="", flush=True)


def tell(text: str) -> None:
    """Print a line that is not part of a model's text."""
    print(text, file=sys.stderr, flush=True)


def run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    return asyncio.run(work)


def survey(
    model: str, revision: str | None, look: Callable[[ModelName], Coroutine[Any, Any, T]]
) -> tuple[ModelName, T]:
    """Return the identity of a model, and what `look` finds out about its swarm."""
    from ..survey.survey import model_name
    from .terminal import spinner

    with spinner("opening the model") as turning:
        named = model_name(model, revision, turning.share("hashing the model"))
        turning.say("looking at the swarm")
        return named, run(look(named))
