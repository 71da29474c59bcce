"""The models of an endpoint: one from the command line, or several from a file, with what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.program.cli import app
from blockswarm.client.program.served_models import TABLES, entries_of, entry_of, models_of
from blockswarm.proto.errors import UsageError
from blockswarm.proto.identity import Identity
from blockswarm.proto.settings import arguments_or_exit
from typer.testing import CliRunner

ADDRESS = f"{Identity.generate().peer_id}@swarm.example:31337"
SHARED: dict[str, Any] = {
    "model": None, "name": None, "max_length": None, "default_max_tokens": 1024, "initial_peers": [ADDRESS],
    "swarm_key": None, "identity": None, "lan": False, "no_push": False, "wire_format": "auto",
    "min_precision": None, "allow_peer": None, "patience": 30.0, "no_prefix_cache": False, "revision": None,
    "head": "auto", "guess": "auto", "draft": None,
}  # fmt: skip
FILE = f"""\
initial-peers = ["{ADDRESS}"]
port = 9
max-queue = 5
patience = 2

[[models]]
model = "org/one"
name = "first"
guess = 4

[[models]]
model = "org/two"
lan = true
max-length = 512
"""


def printed(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The output of `serve --print-config`."""
    put = arguments_or_exit("some", app, ["serve", *arguments, "--print-config"], words=1, tables=(TABLES,))
    done = CliRunner().invoke(app, put, env=environment)
    assert done.exit_code == 0, done.output
    return done.output


def test_each_model_has_its_own_options_and_those_that_all_share() -> None:
    tables = models_of({"models": [{"model": "org/one", "name": "first"}, {"model": "org/two", "max-length": 512}]})
    first, second = (entry_of({**SHARED, **own}) for own in tables)
    assert (first.model, first.name, first.max_length) == ("org/one", "first", None)
    assert (second.model, second.name, second.max_length) == ("org/two", "org/two", 512)
    assert {str(address) for entry in (first, second) for address in entry.swarm.initial_peers} == {ADDRESS}


def test_each_model_may_be_guessed_for_in_its_own_way() -> None:
    """A number may be written as one, or as the command line has it."""
    tables = models_of({"models": [{"guess": 4}, {"guess": "4", "draft": "org/small"}, {"guess": "off"}, {}]})
    chosen = [entry_of({**SHARED, "model": "org/one", **own}).swarm for own in tables]
    assert [swarm.guess for swarm in chosen] == [4, "4", "off", "auto"]
    assert [swarm.draft for swarm in chosen] == [None, "org/small", None, None]


def test_a_model_that_guesses_nothing_needs_no_draft_model_of_all_models() -> None:
    tables = models_of({"models": [{"guess": "off"}, {"guess": 0}, {}]})
    chosen = [entry_of({**SHARED, "draft": "org/small", "model": "org/one", **own}).swarm.draft for own in tables]
    assert chosen == [None, None, "org/small"]
    (table,) = models_of({"models": [{"guess": "off", "draft": "org/small"}]})
    with pytest.raises(UsageError, match="guesses nothing"):
        entry_of({**SHARED, "model": "org/one", **table})


def test_each_model_may_have_a_head_of_its_own() -> None:
    tables = models_of({"models": [{"head": "int8"}, {}]})
    chosen = [entry_of({**SHARED, "model": "org/one", **own}).swarm.head for own in tables]
    assert chosen == ["int8", "auto"]
    with pytest.raises(UsageError, match="no way 'int2' to hold the head"):
        entry_of({**SHARED, "model": "org/one", "head": "int2"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": {"model": "x"}}, "list of tables"),
        ({"models": ["x"]}, "list of tables"),
        ({"models": [{}, {"port": 1}]}, r"\[\[models\]\] 2: 'port' is no option of one model"),
        ({"models": [{"lan": 1}]}, r"\[\[models\]\] 1: lan cannot be 1"),
        ({"models": [{"max_length": True}]}, "max_length cannot be true"),
        ({"models": [{"max-length": "512"}]}, 'max-length cannot be "512"'),
        ({"models": [{"model": "org/x", "guess": True}]}, r"\[\[models\]\] 1 \(org/x\): guess cannot be true"),
        ({"models": [{"guess": 65}]}, r"\[\[models\]\] 1: guess is auto, off, or 0 to 64 tokens ahead, not 65"),
        ({"models": [{"initial-peers": "x"}]}, 'cannot be "x"'),
        ({"models": [{"initial-peers": [1]}]}, r"cannot be \[1\]"),
        ({"models": [{"name": {"a": 1}}]}, r"\[\[models\]\] 1: name cannot be a table"),
    ],
)
def test_tables_that_are_no_models_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models_of(settings)


def test_the_hint_says_how_the_value_is_written() -> None:
    for key, value, hint in (
        ("guess", True, 'Write "auto", "off", or the most tokens to guess.'),
        ("guess", 2.5, 'Write "auto", "off", or the most tokens to guess.'),
        ("patience", "soon", "Write a number."),
        ("lan", "yes", "Write true or false."),
        ("allow-peer", "x", "Write a list of texts in quotes."),
    ):
        with pytest.raises(UsageError) as refused:
            models_of({"models": [{key: value}]})
        assert refused.value.hint == hint


def test_a_value_that_makes_no_sense_is_told_with_the_file_and_the_table() -> None:
    tables = models_of({"models": [{"model": "org/one"}, {"model": "org/two", "patience": float("nan")}]})
    with pytest.raises(UsageError, match=r"^e.toml: \[\[models\]\] 2 \(org/two\): patience is between"):
        entries_of(SHARED, tables, Path("e.toml"))
    assert [entry.name for entry in entries_of(SHARED, tables[:1], Path("e.toml"))] == ["org/one"]
    assert [entry.name for entry in entries_of({**SHARED, "model": "org/three"}, [], None)] == ["org/three"]


def test_an_endpoint_without_a_model_says_what_to_name() -> None:
    with pytest.raises(UsageError, match="there is no model"):
        entry_of(SHARED)


def test_what_is_typed_counts_before_the_file_and_that_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "endpoint.toml"
    file.write_text(FILE)
    environment = {f"SWARM_CLIENT_SERVE_{name}": "77" for name in ("PORT", "MAX_QUEUE", "MAX_RUNNING")}
    shown = printed("--config", str(file), "--port", "10", environment=environment)
    assert {"port = 10", "max-queue = 5", "max-running = 77", "patience = 2.0"} <= set(shown.splitlines())


def test_what_is_printed_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    file, again = tmp_path / "endpoint.toml", tmp_path / "again.toml"
    file.write_text(FILE)
    shown = printed("--config", str(file), "--no-push")
    again.write_text(shown)
    assert printed("--config", str(again)) == shown
    assert models_of({"models": []}) == []


def test_a_model_that_is_typed_is_not_asked_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "endpoint.toml"
    file.write_text('model = "org/one"\n')
    assert 'model = "org/two"' in printed("org/two", "--config", str(file))
    assert 'model = "org/one"' in printed("--config", str(file))
