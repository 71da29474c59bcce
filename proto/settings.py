"""Options of a program that stand in a file: `--config FILE` puts them before those of the command line.

The file is TOML with the options' own names, so there is nothing new to learn, and `--print-config` writes one:

    model = "./model"
    initial-peers = ["ID@HOST:PORT"]
    port = 8000
    lan = true

An option on the command line counts before the file's (those that may be given several times are added to them), the
file's before one in the environment.  Pure but for reading the file; what a value means is checked by the program, as
on the command line.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError
from .exit_status import ExitStatus

FLAG, PRINT_FLAG, VERSION_FLAG = "--config", "--print-config", "--version"
MAX_FILE_BYTES = 1 << 20
MAX_INTEGER = (1 << 63) - 1
"""The largest integer of TOML, by size."""
POSITIONAL = "model"
"""The setting that is no option on the command line: it has no name there."""

ConfigFile = Annotated[
    Path | None,
    typer.Option(FLAG, help="TOML file of options: port = 8000; those of the command line count before it."),
]
PrintConfig = Annotated[bool, typer.Option(PRINT_FLAG, help="Print what the options come to, as such a file, and end.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"blockswarm {version('blockswarm')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option(VERSION_FLAG, is_eager=True, callback=_print_version, help="Print the version, and end.")
]
Value = str | int | float | bool
_HINT = 'Write TOML with the options\' names: port = 8000, initial-peers = ["ID@HOST:PORT"].'


def with_settings(arguments: Sequence[str], words: int = 0, *, positional: str | None = POSITIONAL) -> list[str]:
    """Command-line arguments with the settings of the file that they name, if they name one.

    `words`: the number of arguments at the beginning that are names of commands; `positional`: the setting that is no
    option on the command line, if the program has one. Raises UsageError for a file that cannot be read, or holds what
    cannot be an option.
    """
    path = named_file(arguments)
    if path is None:
        return list(arguments)
    settings = read_settings(path)
    begin = next((at for at, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    begin = max(begin, min(words, len(arguments)))
    typed = begin > words
    given = [] if typed or positional is None or positional not in settings else [str(settings[positional])]
    return [*arguments[:begin], *given, *as_options(settings, positional), *arguments[begin:]]


def arguments_or_exit(
    program: str, arguments: Sequence[str], words: int = 0, *, positional: str | None = POSITIONAL
) -> list[str]:
    """`with_settings` for a console script: what is wrong with the file ends the program, with the status 2."""
    try:
        return with_settings(arguments, words, positional=positional)
    except UsageError as error:
        print(f"{program}: {error}\n  {error.hint}", file=sys.stderr)
        raise SystemExit(ExitStatus.IN_VAIN) from None


def named_file(arguments: Sequence[str]) -> Path | None:
    """The file that `--config` names; None without it. Raises UsageError if it is there without a file, or twice."""
    files = []
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if word == "--":
            break
        if word == FLAG:
            files.append(following)
        elif word.startswith(f"{FLAG}="):
            files.append(word.partition("=")[2])
    if any(not file or file.startswith("-") for file in files) or len(files) > 1:
        raise UsageError(f"{FLAG} takes one file", hint=_HINT)
    return Path(files[0]).expanduser() if files else None


def read_settings(path: Path) -> Mapping[str, Any]:
    """The settings of a file by name. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: it is no file of settings", hint=_HINT)
        settings = tomllib.loads(content.decode())
        if _has_large_integer(settings):
            raise ValueError("an integer has at most 64 bits")
        return settings
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from None
    except (ValueError, RecursionError) as error:  # also a plain ValueError: an integer of thousands of digits
        raise UsageError(f"{path} is not TOML: {error}", hint=_HINT) from None


def _has_large_integer(value: object) -> bool:
    """Python reads integers of any size, and then cannot write all of them."""
    if isinstance(value, dict | list):
        return any(map(_has_large_integer, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) > MAX_INTEGER


def as_options(settings: Mapping[str, Any], positional: str | None = POSITIONAL) -> list[str]:
    """The arguments that the settings but the positional one stand for: `lan = true` is --lan; false leaves one out.

    Lists of tables are left to the program that knows them. Raises UsageError for any other value.
    """
    options: list[str] = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if name == positional or is_list_of_tables(value):
            continue
        if name.startswith("-") or option == FLAG:
            raise UsageError(f"{name!r} cannot be a setting", hint=_HINT)
        for element in value if isinstance(value, list) else [value]:
            if not isinstance(element, Value):
                raise UsageError(f"{name} has a value that no option has: {element!r}", hint=_HINT)
            options += [] if element is False else [option] if element is True else [f"{option}={element}"]
    return options


def is_list_of_tables(value: object) -> bool:
    """Whether it is what TOML writes as [[name]]."""
    return isinstance(value, list) and bool(value) and all(isinstance(element, dict) for element in value)


def settings_of(context: Any) -> Mapping[str, Any]:
    """The values of the options of a command, by their names without dashes; `context` is typer's.

    Without those that are about the settings themselves.
    """
    settings = {}
    for parameter in context.command.params:
        option = max(parameter.opts, key=len)
        if parameter.name in context.params and option not in (FLAG, PRINT_FLAG, VERSION_FLAG):
            settings[option.lstrip("-")] = context.params[parameter.name]
    return settings


def as_file(parameters: Mapping[str, Any]) -> str:
    """TOML of settings by name; what has no value is a comment, so that all options are seen.

    `with_settings` reads it back as the same options.
    """
    lines = []
    for name, value in parameters.items():
        setting = name if name == POSITIONAL else name.replace("_", "-")
        if value is None or value == [] or value == ():
            lines.append(f"# {setting} =")
        else:
            lines.append(f"{setting} = {_written(value)}")
    return "".join(f"{line}\n" for line in lines)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    return '"' + "".join(_escaped(char) for char in str(value)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else f"\\U{ord(char):08X}"
