"""The documents against a real swarm: the examples, the code of the pages in order, and the commands are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.program.cli import app as swarm_client
from blockswarm.routing.sim.cli import app as swarm_sim
from support.benchlib import benchlib
from support.processes import environment
from support.swarm_thread import SwarmThread, swarm_thread
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

screens = benchlib("screens")
ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "scripts" / "demo_model"
ANY_PEER = "ID@HOST:PORT"
"""The placeholder for an address in the documents."""

pytestmark = pytest.mark.swarm


@pytest.fixture(scope="module")
def swarm() -> Iterator[SwarmThread]:
    with swarm_thread(MODEL, "0:4", "4:8") as swarm:
        yield swarm


@pytest.fixture(scope="module")
def alone() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def continued(alone: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The whole text as the model alone continues it."""
    result: torch.Tensor = alone.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    return result


def run_example(name: str, *arguments: object, text: str = "") -> str:
    finished = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *map(str, arguments)],
        input=text, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    run = set(re.findall(r'run_example\(\s*"([\w.]+)"', source))
    assert run == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_generate_writes_what_the_model_alone_says(swarm: SwarmThread, alone: Any, tokenizer: Any) -> None:
    written = run_example("generate.py", MODEL, swarm.swarm.peers[0].address, "class Reader:", "--max-new-tokens", 12)
    expected = continued(alone, tokenizer("class Reader:", return_tensors="pt").input_ids, 12)
    assert written.rstrip("\n") == tokenizer.decode(expected[0], skip_special_tokens=True).rstrip("\n")
    swarm.wait_idle()


def test_a_conversation_is_one_text_and_undo_forgets_a_turn(swarm: SwarmThread, alone: Any, tokenizer: Any) -> None:
    lines = ["class Reader:", "import sys", "undo", "def main():"]
    written = run_example(
        "conversation.py", MODEL, swarm.swarm.peers[1].address, "--max-new-tokens", 8, text="\n".join(lines) + "\n"
    )

    def turn(text: torch.Tensor, line: str) -> tuple[torch.Tensor, str]:
        ids = torch.cat([text, tokenizer(line, return_tensors="pt", add_special_tokens=False).input_ids], dim=1)
        whole = continued(alone, ids, 8)
        return whole, tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)

    first, answer_1 = turn(torch.empty((1, 0), dtype=torch.long), lines[0])
    _, answer_2 = turn(first, lines[1])
    _, answer_3 = turn(first, lines[3])
    assert written == f"{answer_1}\n{answer_2}\n{answer_3}\n"
    swarm.wait_idle()


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_code_of_a_page_runs(page: str, swarm: SwarmThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader would: one block after the other, with the address of a real peer."""
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert any(ANY_PEER in block for block in blocks)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace(ANY_PEER, str(swarm.swarm.peers[0].address)), page, "exec"), names)
    names["model"].session_factory.close()
    swarm.wait_idle()


@pytest.mark.parametrize("title", screens.SUCCESSES)
def test_a_command_prints_what_its_page_shows(title: str, swarm: SwarmThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/screens.md: `scripts/screens` writes it, with peers and programs that are processes of their own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    line = screens.SUCCESSES[title].replace("FIRST", str(swarm.swarm.peers[0].address))
    program, *arguments = shlex.split(line)
    result = CliRunner().invoke({"swarm-client": swarm_client, "swarm-sim": swarm_sim}[program], arguments)
    assert result.exit_code == 0, result.output
    told = screens.block(line, result.output, {"model test ": "model demo_model "})
    assert told == screens.page_part(title), "run scripts/screens if this is as it should be"
    swarm.wait_idle()
