"""The edge of the commands: options and prompts come in, errors become a line, work runs to its end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from .options import SwarmOptions
    from .survey import ModelName

T = TypeVar("T")


@contextmanager
def reported_errors(verbose: bool) -> Iterator[None]:
    """Expected errors become one line and a hint, and set the exit code."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.ERROR, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    for noisy in ("asyncio", "httpx", "httpcore", "transformers", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ...proto.errors import SwarmError, UsageError, one_line

    try:
        yield
    except SwarmError as error:
        typer.echo(f"swarm-client: {one_line(str(error))}\n  {error.hint}", err=True)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def swarm_options(
    initial_peers: list[str] | None,
    swarm_key: Path | None,
    identity: Path | None,
    no_push: bool,
    revision: str | None,
    **session: Any,
) -> SwarmOptions:
    """`session`: the fields of SwarmOptions that are about sessions."""
    from ...proto.directory.swarm_key import SwarmKey
    from ...proto.errors import UsageError
    from ...proto.network.address import PeerAddress
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
        push=not no_push,
        revision=revision,
        **session,
    )


def given_prompt(prompt: str | None) -> str:
    """The prompt of the command line, or all of standard input."""
    from ...proto.errors import UsageError

    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError("there is no prompt", hint="Give one with --prompt TEXT, or on standard input.")
        try:
            prompt = sys.stdin.read()
        except UnicodeDecodeError:
            raise UsageError("standard input is not text", hint="Give the prompt as UTF-8.") from None
    if not prompt:
        raise UsageError("the prompt is empty", hint="Give one with --prompt TEXT, or on standard input.")
    return prompt


def write(text: str) -> None:
    """Print a piece of a model's text; on a terminal without what that would obey."""
    from .terminal import harmless

    print(harmless(text) if sys.stdout.isatty() else text, end="", flush=True)


def run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    return asyncio.run(work)


def survey(
    model: str, revision: str | None, look: Callable[[ModelName], Coroutine[Any, Any, T]]
) -> tuple[ModelName, T]:
    """The name of a model, and what `look` finds of its swarm."""
    from .survey import model_name
    from .terminal import spinner

    with spinner("opening the model") as turning:
        named = model_name(model, revision, turning.share("hashing the model"))
        turning.say("looking at the swarm")
        return named, run(look(named))
