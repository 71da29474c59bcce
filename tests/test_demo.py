"""The demonstration, run for real with few peers and few tokens: what it shows, and that nothing stays behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.processes import assert_gone, environment, kill_group, started_by

DEMO = Path(__file__).resolve().parent.parent / "scripts" / "demo"
GONE_SECONDS = 20.0


@contextmanager
def demo(*arguments: object, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The script with this environment's Python, in a session of its own, its temporary files in `folder`."""
    with subprocess.Popen(
        [sys.executable, DEMO, *map(str, arguments)], env={**environment(), "TMPDIR": str(folder)}, cwd=folder,
        start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            kill_group(process)


def is_peer(process: psutil.Process, name: str) -> bool:
    """Whether it is the `swarm-peer` of that name."""
    try:
        return ["--name", name] == process.cmdline()[-5:-3]
    except psutil.Error:
        return False


def wait_for_peer(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """The peer of that name as soon as there is one."""
    while not (found := [descendant for descendant in started_by(process) if is_peer(descendant, name)]):
        assert process.poll() is None
        time.sleep(0.01)
    return found[0]


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Read what it still writes, until its end; unlike `communicate` this sees what `read_until` has buffered."""
    assert process.stdout is not None
    assert process.stderr is not None
    errors = process.stderr.read()
    output = process.stdout.read()  # short enough not to block the writer
    process.wait()
    return output, errors


def read_until(stream: Iterator[str], words: str) -> str:
    """The lines up to the first that contains `words`; all of them if there is none."""
    lines = []
    for line in stream:
        lines.append(line)
        if words in line:
            break
    return "".join(lines)


@pytest.mark.swarm
def test_the_demo_shows_the_swarm_and_the_same_tokens(tmp_path: Path) -> None:
    with demo("--peers", 2, "--max-new-tokens", 12, "--prompt", "def main():", "--json", folder=tmp_path) as process:
        assert process.stderr is not None
        progress = read_until(process.stderr, "blocks   0")
        everything = started_by(process)
        output, rest = finish(process)
    assert process.returncode == 0, progress + rest
    assert_gone(everything)
    assert list(tmp_path.glob("blockswarm-*")) == []

    told = json.loads(output)
    assert [(peer["name"], peer["blocks"]) for peer in told["peers"]] == [
        ("first", [0, 4]),
        ("peer-1", [0, 4]),
        ("peer-2", [4, 8]),
    ]
    assert len({peer["pid"] for peer in told["peers"]} & {descendant.pid for descendant in everything}) == 3
    assert [hop["blocks"] for hop in told["chain"]] == [[0, 4], [4, 8]]
    assert all(hop["compute_seconds"] > 0 for hop in told["chain"])
    assert (told["steps_pushed"], told["steps_relayed"]) == (12, 0)
    assert told["same_tokens"] is True
    assert told["token_ids"] == told["alone_token_ids"]
    assert told["new_tokens"] == 12

    assert "####....  0:4" in progress + rest
    assert "....####  4:8" in rest
    assert re.search(r"12 tokens in [\d.]+ s: [\d.]+ tokens/s", rest)
    assert "compute ms" in rest
    assert "the same model run alone gave the same tokens: 12 of 12" in rest


@pytest.mark.swarm
def test_an_interrupt_in_the_middle_of_the_text_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo("--peers", 1, "--max-new-tokens", 3000, folder=tmp_path) as process:
        assert process.stdout is not None
        assert "class Reader:" in read_until(process.stdout, "class Reader:")
        assert process.stdout.read(60), "the text comes as it is made"
        everything = started_by(process)
        process.send_signal(signal.SIGINT)
        output, errors = finish(process)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert re.search(r"\n\ninterrupted: \d+ tokens in [\d.]+ s: ", output), "what was reached is told"
    assert_gone(everything)
    assert list(tmp_path.glob("blockswarm-*")) == []


SWALLOWED = """
import importlib.util, os, signal, sys
from importlib.machinery import SourceFileLoader

path = sys.argv[1]
sys.path.insert(0, os.path.dirname(path))
demo = importlib.util.module_from_spec(importlib.util.spec_from_loader("demo", SourceFileLoader("demo", path)))
sys.modules["demo"] = demo
demo.__loader__.exec_module(demo)

def demonstrate(options, interrupts):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass
    raise ImportError("cannot load module more than once per process")

demo.demonstrate = demonstrate
demo.bootstrap.exit_with(demo.main, [])
"""
"""The demo with a library that swallows the interrupt of its import, as numpy's do, and fails later."""


def test_an_interrupt_that_a_library_turned_into_another_error_is_an_interrupt(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED, DEMO], cwd=tmp_path, env=environment(), text=True, timeout=60, check=False,
        capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")


@pytest.mark.swarm
def test_an_end_while_peers_start_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(folder=tmp_path) as process:
        everything = [wait_for_peer(process, "first")]
        process.terminate()
        _, errors = finish(process)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert_gone(everything)
    assert list(tmp_path.glob("blockswarm-*")) == []


@pytest.mark.swarm
def test_a_peer_that_dies_at_start_is_named(tmp_path: Path) -> None:
    with demo(folder=tmp_path) as process:
        first = wait_for_peer(process, "first")
        first.kill()
        _, errors = finish(process)
    assert process.returncode == 1
    assert "error: first did not start; the end of its log says why:" in errors
    assert "Traceback" not in errors


@pytest.mark.swarm
def test_a_reader_that_goes_away_ends_the_demo_without_a_word(tmp_path: Path) -> None:
    """As `scripts/demo | head -1` does."""
    with demo("--peers", 1, folder=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(GONE_SECONDS), said) == (1, "")


@pytest.mark.swarm
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--peers", "9"), 1, "use --peers 8 or fewer"),
        (("--peers", "0"), 2, "at least 1"),
        (("--prompt", ""), 2, "prompt is empty"),
    ],
    ids=["too many peers", "no peers", "no prompt"],
)
def test_a_wrong_option_starts_nothing(tmp_path: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    with demo(*arguments, folder=tmp_path) as process:
        _, errors = finish(process)
    assert process.returncode == status
    assert words in errors
    assert "Traceback" not in errors


def test_help_and_bad_options_need_only_the_standard_library() -> None:
    """They come before anything is installed: -S leaves out what this environment has installed."""
    bare = [sys.executable, "-S", DEMO]
    helped = subprocess.run([*bare, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert helped.returncode == 0, helped.stderr
    for option in ("--model", "--peers", "--prompt", "--max-new-tokens", "--json"):
        assert option in helped.stdout
    refused = subprocess.run([*bare, "--peers", "x"], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "not a number" in refused.stderr
