"""The documents name only what is there: links, files, tests, commands and their options; snippets compile."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from blockswarm.client.dashboard.cli import app as dashboard_app
from blockswarm.client.program.cli import app as client_app
from blockswarm.peer.cli import app as peer_app
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.peer.metrics import COUNTERS, GAUGES, PeerMetrics
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.routing.sim.cli import app as sim_app
from prometheus_client import generate_latest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}

GUIDES = {"README.md", "docs/protocol.md", "docs/failures.md"} | {
    f"docs/{name}.md" for name in ("operator", "volunteer", "python", "security")
}
"""The pages for readers of the programs; other documents also name options of scripts and of other software."""

PROGRAMS: dict[str, click.Command] = {
    "swarm-peer": typer.main.get_command(peer_app),
    "swarm-client": typer.main.get_command(client_app),
    "swarm-dashboard": typer.main.get_command(dashboard_app),
    "swarm-sim": typer.main.get_command(sim_app),
}


def each(pattern: str, flags: int = 0) -> list[tuple[str, str]]:
    """(document, what matched) over all documents."""
    return sorted({(name, found) for name, text in TEXTS.items() for found in re.findall(pattern, text, flags)})


def fenced(language: str) -> list[tuple[str, str]]:
    return each(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)


def command_lines() -> list[tuple[str, str]]:
    """The commands that a reader types: lines after "$ ", and programs in `code` that are followed by arguments."""
    typed = [(name, line[2:]) for name, block in fenced("console") for line in block.splitlines() if line[:2] == "$ "]
    quoted = each(r"`((?:swarm-peer|swarm-client|swarm-dashboard|swarm-sim|scripts/(?:test|check|map|demo)) [^`]+)`")
    return sorted({*typed, *quoted})


def map_script() -> Any:
    """A new copy of `scripts/map` as a module."""
    loader = SourceFileLoader("write_the_map", str(ROOT / "scripts" / "map"))
    spec = importlib.util.spec_from_loader("write_the_map", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_there_are_documents_to_check() -> None:
    assert set(TEXTS) >= GUIDES
    assert len(command_lines()) > 5
    assert fenced("python")


@pytest.mark.parametrize(("document", "target"), each(r"\]\(([^)#]+)(?:#[^)]*)?\)"))
def test_links_lead_somewhere(document: str, target: str) -> None:
    if target.startswith("https://"):
        return  # no network in tests
    assert ((ROOT / document).parent / target).exists()


@pytest.mark.parametrize(
    ("document", "path"), each(r"`((?:client|peer|proto|routing|scripts|tests|docs|examples)/[\w./]+)`")
)
def test_files_that_are_named_exist(document: str, path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("document", "reference"), each(r"`(tests/[\w/]+\.py::\w+)`"))
def test_tests_that_are_named_exist(document: str, reference: str) -> None:
    path, _, name = reference.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_protocol_s_version_is_the_one_that_is_spoken() -> None:
    assert re.findall(r"Protocol version: (\d+)", TEXTS["docs/protocol.md"]) == [str(PROTOCOL_VERSION)]
    assert re.findall(r"the same protocol version \((\d+)\)", TEXTS["docs/operator.md"]) == [str(PROTOCOL_VERSION)]


@pytest.mark.long
def test_the_map_is_what_the_code_says() -> None:
    """A module that is added, renamed or split is in the map at once: `scripts/map` writes it from the docstrings."""
    checked = subprocess.run([sys.executable, ROOT / "scripts" / "map", "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_the_map_names_every_room_and_module_once() -> None:
    """Counted without the script that writes it."""
    sections = re.split(r"^### `([\w/]+)/`$", TEXTS["docs/architecture.md"], flags=re.MULTILINE)[1:]
    named = [
        f"{folder}/{name}"
        for folder, text in zip(sections[::2], sections[1::2], strict=True)
        for name in re.findall(r"^- `([\w.]+)`: ", text, re.MULTILINE)
    ]
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in ("client", "peer", "proto", "routing")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and not path.stem.endswith(("_pb2", "_pb2_grpc"))
    }
    assert len(modules) > 80
    assert sorted(name for name in named if name.endswith(".py")) == sorted(modules)
    assert len(sections[::2]) == len(set(sections[::2]))


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Says it. Then more.", "Says it."),
        ("Says it, e.g. here.", "Says it, e.g. here."),
        ("The program `swarm-peer`: hosts blocks.", "The program `swarm-peer`: hosts blocks."),
        ("Ends here. `code` follows.", "Ends here."),
    ],
)
def test_the_map_takes_a_modules_first_sentence(docstring: str, sentence: str) -> None:
    assert map_script().first_sentence(docstring) == sentence


def test_the_map_says_which_room_lacks_its_line(tmp_path: Path) -> None:
    script = map_script()
    script.ROOT = tmp_path
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "__init__.py").touch()
    with pytest.raises(script.MapError, match=r"peer/__init__\.py needs a docstring"):
        script.render()


@pytest.mark.long
def test_the_map_replaces_whatever_stands_in_its_place() -> None:
    """Also the marks of a merge that failed there."""
    script = map_script()
    page = f"before\n{script.BEGIN}\n<<<<<<< ours\n{script.END}\nafter\n"
    written = script.with_map(page)
    assert "<<<<<<<" not in written
    assert (written.split("\n")[0], written.split("\n")[-2]) == ("before", "after")
    assert script.with_map(written) == written
    with pytest.raises(script.MapError, match="lacks one of the lines"):
        script.with_map("no place for it")


@pytest.mark.parametrize(("document", "line"), command_lines())
def test_commands_have_the_options_that_are_named(document: str, line: str) -> None:
    """The programs themselves parse the line; they say what they do not know."""
    program, *arguments = shlex.split(line)
    if program == "pip":
        check_installation(arguments)
        return
    if program not in PROGRAMS:
        check_script(program, arguments)
        return
    command = PROGRAMS[program]
    known = all_options(command)
    options = [argument for argument in arguments if argument.startswith("-")]
    assert set(options) <= known
    if isinstance(command, click.Group):
        assert arguments[0] in command.commands
        command = command.commands[arguments[0]]
        assert set(options) <= all_options(command)


def check_installation(arguments: list[str]) -> None:
    """The first thing that a reader does: it takes the small build of torch, and extras that there are."""
    *options, what = arguments
    assert options == ["install", "--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    match = re.fullmatch(r"\.(?:\[([a-z]+)\])?", what)
    assert match is not None
    assert match[1] is None or match[1] in extras


def check_script(program: str, arguments: list[str]) -> None:
    """A script says in its own text which options it knows."""
    assert program.startswith("scripts/")
    source = (ROOT / program).read_text(encoding="utf-8")
    assert all(re.search(rf"(?<![\w-]){argument}(?![\w-])", source) for argument in arguments if argument[:2] == "--")


def all_options(command: click.Command) -> set[str]:
    commands = [command, *getattr(command, "commands", {}).values()]
    return {name for part in commands for parameter in part.params for name in parameter.opts} | {"-h", "--help"}


def test_options_in_the_text_belong_to_some_program() -> None:
    known = {name for command in PROGRAMS.values() for name in all_options(command)}
    helped = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    known |= set(re.findall(r"--[\w-]+", helped.stdout))
    named = {option for name, option in each(r"`(--[\w-]+)[^`]*`") if name in GUIDES}
    assert named
    assert named <= known


@pytest.mark.parametrize(("document", "source"), fenced("python"))
def test_python_snippets_compile_and_import_what_is_there(document: str, source: str) -> None:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_demo_says_what_the_readme_shows() -> None:
    """The peer's first lines, when it is ready, begin as in the quick start."""
    source = (ROOT / "peer" / "program" / "ready.py").read_text(encoding="utf-8")
    for line in ("serving blocks ", "others join with:    swarm-peer "):
        assert line in source
        assert line in TEXTS["README.md"]


# --- what happens when something breaks ---


def failure_cases() -> list[tuple[str, str]]:
    """(title, text) of every case."""
    parts = re.split(r"^###? (.+)$", TEXTS["docs/failures.md"], flags=re.MULTILINE)[1:]
    return [(title, text) for title, text in zip(parts[::2], parts[1::2], strict=True) if "**What happens.**" in text]


def test_there_are_cases() -> None:
    titles = re.findall(r"^### (.+)$", TEXTS["docs/failures.md"], re.MULTILINE)
    assert len(titles) > 25
    assert titles == [title for title, _ in failure_cases()]


@pytest.mark.parametrize(("title", "text"), failure_cases(), ids=[title for title, _ in failure_cases()])
def test_a_case_says_what_how_long_and_which_test(title: str, text: str) -> None:
    """A case without a test says so."""
    labels = re.findall(r"^\*\*([\w ]+)\.\*\*\s", text, re.MULTILINE)
    assert labels == ["What happens", "The user sees", "How long", "Shown by"]
    shown = text.partition("**Shown by.**")[2]
    assert re.search(r"`tests/[\w/]+\.py(::\w+)?`", shown) or "No test yet" in shown


# --- the operator's page ---


def first_cells(heading: str) -> list[str]:
    """The first cell of every row of the first table under a heading of the operator's page."""
    section = TEXTS["docs/operator.md"].partition(f"\n## {heading}\n")[2]
    rows = itertools.takewhile(lambda line: line.startswith("|"), section[section.index("\n|") + 1 :].splitlines())
    return [row.split("|")[1] for row in list(rows)[2:]]


def test_the_operators_metrics_are_those_of_a_peer() -> None:
    """Scraped, so that the names are those that a monitoring system sees."""
    metrics = PeerMetrics()
    metrics.readings = dict.fromkeys((*GAUGES, *COUNTERS), 0.0)
    metrics.observe(StepRecord(**{field.name: 1 for field in dataclasses.fields(StepRecord)}))
    scraped = generate_latest(metrics.registry).decode()
    served = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in re.findall(r"^blockswarm_(\w+)", scraped, re.MULTILINE)
        if not name.endswith("_created")
    }
    named = {name for cell in first_cells("Metrics") for name in re.findall(r"`(\w+)(?:\{\w+\})?`", cell)}
    assert named == served
    alarms = set(re.findall(r"`(\w+)`", TEXTS["docs/operator.md"].partition("What to alarm on:")[2].partition("##")[0]))
    assert {name for name in alarms if name != "missing_blocks"} <= named


@pytest.mark.parametrize("line", [cell.strip(" `") for cell in first_cells("Log lines")])
def test_the_operators_log_lines_are_written_somewhere(line: str) -> None:
    sources = [
        path.read_text(encoding="utf-8") for folder in ("peer", "proto") for path in (ROOT / folder).rglob("*.py")
    ]
    assert any(f'"{line}' in source for source in sources)


# --- the glossary ---


def glossary_terms() -> list[str]:
    return re.findall(r"\*\*([^*]+)\*\*", TEXTS["docs/glossary.md"].partition("\n## ")[2])


def test_a_term_is_defined_once() -> None:
    terms = [term.lower() for term in glossary_terms()]
    assert len(terms) > 60
    assert len(terms) == len(set(terms))


@pytest.mark.parametrize("term", glossary_terms())
def test_a_term_is_used(term: str) -> None:
    """In the code, or in another document."""
    word = re.compile(rf"\b{re.escape(term)}(s|es)?\b".replace("\\-", "[- _]?").replace("\\ ", "[ _]"), re.IGNORECASE)
    others = (text for name, text in TEXTS.items() if name not in ("docs/glossary.md", "docs/architecture.md"))
    code = (
        path.read_text(encoding="utf-8")
        for folder in ("client", "peer", "proto", "routing")
        for path in (ROOT / folder).rglob("*.py")
    )
    assert any(word.search(text) for text in itertools.chain(others, code))
