"""Options of a program that stand in a file: `--config FILE` puts them before those of the command line.

The file is TOML with the options' own names, so there is nothing new to learn, and `--print-config` writes one:

    model = "./model"
    initial-peers = ["ID@HOST:PORT"]
    port = 8000
    lan = true

An option on the command line counts before the file's (those that may be given several times are added to them), the
file's before one in the environment.  Names and types are checked here, so that a mistake is told with the file's name;
what a value means is checked by the program, as on the command line.  Pure but for reading the file.
"""

from __future__ import annotations

import difflib
import inspect
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from .errors import UsageError, one_line
from .exit_status import ExitStatus

FLAG, PRINT_FLAG, VERSION_FLAG = "--config", "--print-config", "--version"
MAX_FILE_BYTES = 1 << 20
MAX_INTEGER = (1 << 63) - 1
"""The largest integer of TOML, by size."""
_MOST_SHOWN = 60
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
_NOT_IN_A_FILE = frozenset(flag.lstrip("-") for flag in (FLAG, PRINT_FLAG, VERSION_FLAG, "--help"))
HOW_TO_WRITE: Mapping[object, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes",
    list: "a list of texts in quotes",
}  # fmt: skip
_HINT = 'Write TOML with the options\' names: port = 8000, initial-peers = ["ID@HOST:PORT"].'


@dataclass(frozen=True)
class Setting:
    """One option of a program, as a file may set it."""

    kind: type
    """bool for a flag, int, float; str for any text, and for what looks like one: a path, a range, "auto"."""
    several: bool
    """Whether it may be given several times: a list."""
    help: str
    default: object


def with_settings(
    arguments: Sequence[str],
    words: int = 0,
    *,
    command: Any = None,
    positional: str | None = POSITIONAL,
    tables: Collection[str] = (),
) -> list[str]:
    """Command-line arguments with the settings of the file that they name, if they name one.

    `words`: the number of arguments at the beginning that are names of commands; `command`: typer's, whose options the
    file may set, or None if its names and types are not checked; `positional`: the setting that is no option on the
    command line, if the program has one; `tables`: the lists of tables that the program reads itself. Raises UsageError
    for a file that cannot be read, or holds what cannot be an option.
    """
    path = named_file(arguments)
    if path is None:
        return list(arguments)
    settings = {name: value for name, value in read_settings(path).items() if name not in tables}
    with placed(path):
        if command is not None:
            _check(settings, settings_known_to(command))
        put = as_options(settings, positional)
    begin = next((at for at, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    begin = max(begin, min(words, len(arguments)))
    typed = begin > words
    given = [] if typed or positional is None or positional not in settings else [str(settings[positional])]
    return [*arguments[:begin], *given, *put, *arguments[begin:]]


def arguments_or_exit(
    program: str,
    app: typer.Typer,
    arguments: Sequence[str],
    words: int = 0,
    *,
    positional: str | None = POSITIONAL,
    tables: Collection[str] = (),
) -> list[str]:
    """`with_settings` for a console script: what is wrong with the file ends the program, with the status 2.

    A command that takes no file has its arguments left as they are: it says so itself.
    """
    command: Any = typer.main.get_command(app)
    for word in arguments[:words]:
        command = command.commands.get(word)
        if command is None:
            return list(arguments)
    if not any(FLAG in parameter.opts for parameter in command.params):
        return list(arguments)
    try:
        return with_settings(arguments, words, command=command, positional=positional, tables=tables)
    except UsageError as error:
        print(f"{program}: {one_line(str(error))}\n  {error.hint}", file=sys.stderr)
    except KeyboardInterrupt:  # the file may be a pipe that nobody writes into
        raise SystemExit(ExitStatus.INTERRUPTED) from None
    raise SystemExit(ExitStatus.IN_VAIN)


@contextmanager
def placed(where: object) -> Iterator[None]:
    """Put the place of a mistake before what a UsageError says of it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}", hint=error.hint) from None


def settings_known_to(command: Any) -> Mapping[str, Setting]:
    """Return the options of a command of typer's that a file may set, by name."""
    hints = get_type_hints(inspect.unwrap(command.callback))
    known = {}
    for parameter in command.params:
        option = max(parameter.opts, key=len)
        name = option.lstrip("-")
        if (option.startswith("-") or option == POSITIONAL) and name not in _NOT_IN_A_FILE:
            known[name] = _setting(hints[parameter.name], parameter.help or "", parameter.default)
    return known


def _setting(annotation: Any, told: str, default: object) -> Setting:
    plain = next((part for part in get_args(annotation) if part is not type(None)), annotation)
    several = list in (get_origin(annotation), get_origin(plain))
    return Setting(plain if plain in (bool, int, float) else str, several, told, default)


def _check(settings: Mapping[str, Any], known: Mapping[str, Setting]) -> None:
    """Raises UsageError for a name or a value that no option has."""
    seen: set[str] = set()
    for key, value in settings.items():
        name = _option_name(key)
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
            raise UsageError(f"there is no setting {key!r}", hint=hint)
        if name in seen:
            raise UsageError(f"{name} is set twice, with - and with _ in its name", hint="Leave one of them out.")
        seen.add(name)
        setting = known[name]
        parts = value if isinstance(value, list) and setting.several else [value]
        if not all(is_value_of(setting.kind, part) for part in parts):
            raise UsageError(f"{name} cannot be {shown(value)}", hint=_how_to_write(name, setting))


def _option_name(key: str) -> str:
    """Return the name of an option without its dashes. Raises UsageError for one that a file cannot set."""
    name = key.replace("_", "-")
    if name in _NOT_IN_A_FILE or name.startswith("-"):
        raise UsageError(f"{key!r} cannot be a setting", hint=_HINT)
    return name


def is_value_of(kind: type, value: object) -> bool:
    """Whether a value of TOML fits an option of `kind`; a number may also stand in quotes, as in the environment."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is str:
        return isinstance(value, (str, int, float))
    if not isinstance(value, str):
        return isinstance(value, int if kind is int else (int, float))
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _how_to_write(name: str, setting: Setting) -> str:
    what = HOW_TO_WRITE[list if setting.several else setting.kind]
    if not setting.several and setting.kind is not bool and setting.default not in (None, ""):
        what += f", such as {name} = {_written(setting.default)}"
    return f"Write {what}. {setting.help}".rstrip()


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
    return read_toml(path, MAX_FILE_BYTES, missing=f"Name a file that exists after {FLAG}.", form=_HINT)


def read_toml(path: Path, most_bytes: int, *, missing: str, form: str) -> Mapping[str, Any]:
    """Return the content of a TOML file that a person has written. Raises UsageError.

    `missing` and `form` are the hints for a file that cannot be read, and for one that is no TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}", hint=missing) from None
    if len(content) > most_bytes:
        raise UsageError(f"{path} is larger than {most_bytes >> 20} MiB", hint=form)
    try:
        text = content.decode("utf-8-sig")  # some editors of Windows begin with a mark
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{path} is not TOML: line {line} is not UTF-8", hint="Save the file as UTF-8.") from None
    try:
        settings = tomllib.loads(text)
        if _has_large_integer(settings):
            raise ValueError("an integer has at most 64 bits")
        return settings
    except (ValueError, RecursionError) as error:  # also a plain ValueError: an integer of thousands of digits
        raise UsageError(f"{path} is not TOML: {error}", hint=form) from None


def _has_large_integer(value: object) -> bool:
    """Python reads integers of any size, and then cannot write all of them."""
    if isinstance(value, dict | list):
        return any(map(_has_large_integer, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) > MAX_INTEGER


def as_options(settings: Mapping[str, Any], positional: str | None = POSITIONAL) -> list[str]:
    """The arguments that the settings but the positional one stand for: `lan = true` is --lan; false leaves one out.

    Raises UsageError for a value that no option has.
    """
    options: list[str] = []
    for name, value in settings.items():
        if name == positional:
            continue
        option = f"--{_option_name(name)}"
        for element in value if isinstance(value, list) else [value]:
            if not isinstance(element, Value):
                raise UsageError(f"{name} has a value that no option has: {shown(value)}", hint=_HINT)
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


def shown(value: object) -> str:
    """A value of a file as a mistake is told: as TOML, and short."""
    if isinstance(value, dict) or is_list_of_tables(value):
        return "a table" if isinstance(value, dict) else "a list of tables"
    text = _written(value) if isinstance(value, (Value, list)) else str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


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
