"""Options in a file: what they stand for, what counts first, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from blockswarm.proto.errors import UsageError
from blockswarm.proto.settings import (
    MAX_FILE_BYTES,
    ConfigFile,
    PrintConfig,
    Version,
    arguments_or_exit,
    as_file,
    as_options,
    with_settings,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.toml"


@pytest.mark.parametrize(
    ("arguments", "words", "expected"),
    [
        (["--port", "1"], 0, ["--port", "1"]),
        (["--config", "FILE", "--port", "1"], 0, ["./m", "--port=2", "--lan", "--config", "FILE", "--port", "1"]),
        (["./n", "--port", "1", "--config=FILE"], 0, ["./n", "--port=2", "--lan", "--port", "1", "--config=FILE"]),
        (["serve", "--config", "FILE"], 1, ["serve", "./m", "--port=2", "--lan", "--config", "FILE"]),
        (["serve", "./n", "--config", "FILE"], 1, ["serve", "./n", "--port=2", "--lan", "--config", "FILE"]),
        (["serve", "--", "--config"], 1, ["serve", "--", "--config"]),
    ],
)
def test_settings_come_before_the_options_of_the_command_line(
    file: Path, arguments: list[str], words: int, expected: list[str]
) -> None:
    """The last one counts, so what is typed does; a model that is typed is the one."""
    file.write_text('model = "./m"\nport = 2\nlan = true\nno_push = false\n')
    put = [word.replace("FILE", str(file)) for word in arguments]
    assert with_settings(put, words) == [word.replace("FILE", str(file)) for word in expected]


def test_a_program_without_a_positional_model_has_it_as_an_option(file: Path) -> None:
    file.write_text('model = ["a", "b"]\nport = 2\n')
    named = ["--config", str(file)]
    assert with_settings(named, positional=None) == ["--model=a", "--model=b", "--port=2", *named]


def test_lists_are_options_that_are_given_several_times() -> None:
    assert as_options({"initial-peers": ["a", "b"], "patience": 1.5}) == [
        "--initial-peers=a", "--initial-peers=b", "--patience=1.5",
    ]  # fmt: skip
    assert as_options({"name": "--lan"}) == ["--name=--lan"], "a value never becomes an option"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"port = ", "is not TOML"),
        (b"\xff\xfe", "is not TOML: line 1 is not UTF-8"),
        (b"port = 1\n# caf\xe9\n", "is not TOML: line 2 is not UTF-8"),
        (b"x = " + b"[" * 5000, "is not TOML"),
        (b"#" * (MAX_FILE_BYTES + 1), "is larger than 1 MiB"),
        (b"port = " + b"9" * 5000, "is not TOML"),
        (b"port = 0x" + b"f" * 9000, "at most 64 bits"),
        (b"model = 9223372036854775808", "at most 64 bits"),
        (b"[[models]]\nport = [1, 0x" + b"f" * 9000 + b"]", "at most 64 bits"),
        (b"a" + b".a" * 5000 + b" = 1", "is not TOML"),
        (b"port = 1979-05-27", "no option has"),
        (b"[swarm]\nport = 1", "no option has"),
        (b"port = [[1]]", "no option has"),
        (b'config = "other.toml"', "cannot be a setting"),
        (b'"--lan" = true', "cannot be a setting"),
    ],
)
def test_files_that_are_no_settings_are_refused(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        with_settings(["--config", str(file)])


@pytest.mark.parametrize(
    "arguments", [["--config"], ["--config="], ["--config", "--lan"], ["--config=a", "--config=b"]]
)
def test_a_file_has_to_be_named_once(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="takes one file"):
        with_settings(arguments)


@pytest.mark.parametrize("what", ["nothing", "folder"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, what: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        with_settings(["--config", str(tmp_path / what)])


program = typer.Typer(add_completion=False)


@program.command()
def serve(
    model: str | None = None,
    initial_peers: Annotated[list[str] | None, typer.Option("--initial-peers", help="A peer.")] = None,
    port: int = 8000,
    patience: float = 30.0,
    keys: Path | None = None,
    guess: Annotated[str, typer.Option(help="auto, off, or a number.")] = "auto",
    lan: Annotated[bool, typer.Option("--lan")] = False,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    version: Version = False,
) -> None:
    """A program with an option of each kind."""


@program.command()
def other(port: int = 1) -> None:
    """Another command, which takes no file."""


def put_by(file: Path, name: str = "serve") -> list[str]:
    words = [name, "--config", str(file)]
    return arguments_or_exit("some", program, words, words=1, positional=None, tables=("models",))


@pytest.mark.parametrize(
    ("line", "told", "hint"),
    [
        ("guess = true", "guess cannot be true", 'such as guess = "auto". auto, off, or a number.'),
        ("guess = false", "guess cannot be false", "a text in quotes"),
        ("port = true", "port cannot be true", "a whole number, such as port = 8000."),
        ("port = 8000.5", "port cannot be 8000.5", "a whole number"),
        ('port = "abc"', 'port cannot be "abc"', "a whole number"),
        ("port = nan", "port cannot be nan", "a whole number"),
        ("port = [1, 2]", "port cannot be [1, 2]", "a whole number"),
        ("port = []", "port cannot be []", "a whole number"),
        ("port = 2020-01-01", "port cannot be 2020-01-01", "a whole number"),
        ("[port]\nx = 1", "port cannot be a table", "a whole number"),
        ("[[port]]\nx = 1", "port cannot be a list of tables", "a whole number"),
        ('patience = "soon"', 'patience cannot be "soon"', "a number, such as patience = 30.0"),
        ('lan = "yes"', 'lan cannot be "yes"', "true or false"),
        ("lan = 1", "lan cannot be 1", "true or false"),
        ("keys = [true]", "keys cannot be [true]", "a text in quotes."),
        ("initial-peers = [[1]]", "initial-peers cannot be [[1]]", "a list of texts in quotes. A peer."),
        ("initial_peers = true", "initial-peers cannot be true", "a list of texts in quotes. A peer."),
        ('keys = "' + "a" * 500 + '"\nlan = "' + "b" * 500 + '"', 'lan cannot be "' + "b" * 59 + "...", "true or"),
        ("prot = 3", "there is no setting 'prot'", "Did you mean port?"),
        ("Port = 3", "there is no setting 'Port'", "Did you mean port?"),
        ("xyzzy = 3", "there is no setting 'xyzzy'", "There are model, initial-peers, port, patience, keys,"),
        ("initial-peers = []\ninitial_peers = []", "initial-peers is set twice", "Leave one of them out."),
        ("help = true", "'help' cannot be a setting", "Write TOML"),
        ("print_config = true", "'print_config' cannot be a setting", "Write TOML"),
        ("version = true", "'version' cannot be a setting", "Write TOML"),
    ],
)  # fmt: skip
def test_a_setting_that_no_option_has_is_one_line_with_its_place(
    file: Path, capsys: pytest.CaptureFixture[str], line: str, told: str, hint: str
) -> None:
    file.write_text(line)
    with pytest.raises(SystemExit) as ended:
        put_by(file)
    assert ended.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"some: {file}: {told}")
    assert hint in second


def test_values_are_taken_as_they_were_from_the_environment_too(file: Path) -> None:
    """Numbers in quotes, texts without, a byte order mark, the program's own tables and an empty list are fine."""
    text = 'port = "80"\npatience = 2\nguess = 4\nlan = true\nkeys = "k"\ninitial_peers = []\n[[models]]\nguess = 1\n'
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    put = ["--port=80", "--patience=2", "--guess=4", "--lan", "--keys=k"]
    assert put_by(file) == ["serve", *put, "--config", str(file)]


def test_a_command_that_takes_no_file_says_so_itself(file: Path) -> None:
    for name in ("other", "none"):
        assert put_by(file, name) == [name, "--config", str(file)]


VALUES = st.one_of(
    st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,9}", fullmatch=True), VALUES | st.lists(VALUES, min_size=1)))
def test_what_is_written_is_read_back(parameters: dict[str, Any]) -> None:
    """By Python's own reader of TOML."""
    read = tomllib.loads(as_file(parameters))
    assert read == {name.replace("_", "-"): value for name, value in parameters.items()}


def test_parameters_without_a_value_are_shown_as_comments() -> None:
    assert as_file({"model": "./m", "keys": None, "allow_peer": []}) == 'model = "./m"\n# keys =\n# allow-peer =\n'
