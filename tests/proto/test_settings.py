"""Options in a file: what they stand for, what counts first, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from blockswarm.proto.errors import UsageError
from blockswarm.proto.settings import MAX_FILE_BYTES, as_file, as_options, with_settings
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
        (b"\xff\xfe", "is not TOML"),
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
