"""The benchmark of swarms times what it says: new prompts, and apart from them those that come again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.benchlib import benchlib

swarm, swarm_runs, swarm_tables, processes = map(benchlib, ("swarm", "swarm_runs", "swarm_tables", "processes"))


class Asked:
    """A model that answers with the sum of a prompt, and holds every prompt that it was asked before."""

    def __init__(self, log: list[str], name: str, *, remembers: bool, wrong: bool = False) -> None:
        self.log, self.name = log, name
        self.prompts: list[list[int]] = []
        self._remembers, self._wrong = remembers, wrong

    def generate(self, question: Any) -> Any:
        self.log.append(self.name)
        held = len(question["prompt"]) if self._remembers and question["prompt"] in self.prompts else 0
        self.prompts.append(question["prompt"])
        return swarm_runs.Call((sum(question["prompt"]) + self._wrong,), 1.0, 0.5, 0.0, 0.1, held)


def bench(tmp_path: Path, repeats: int = 3) -> Any:
    return swarm_runs.Bench(repeats, 8, ("tiny",), (1,), tmp_path, again_after_seconds=0.0)


def distinct(prompts: list[list[int]]) -> int:
    return len(set(map(tuple, prompts)))


def test_no_prompt_comes_twice_and_every_run_has_the_same() -> None:
    first, second = swarm_runs.Prompts(512), swarm_runs.Prompts(512)
    asked = [first.question(16, 1)["prompt"] for _ in range(100)]
    assert distinct(asked) == 100
    assert asked == [second.question(16, 1)["prompt"] for _ in range(100)]


def test_all_are_asked_the_same_new_question_in_changing_order(tmp_path: Path) -> None:
    log: list[str] = []
    plain, here, other = (Asked(log, name, remembers=name != "plain") for name in ("plain", "here", "other"))
    prompts, run = swarm_runs.Prompts(512), bench(tmp_path)
    pairs = swarm_runs.interleaved(run, plain, [here, other], lambda: prompts.question(16, 1))
    assert [len(found) for found in pairs] == [3, 3], "the first one warms up"
    assert plain.prompts == here.prompts == other.prompts
    assert distinct(plain.prompts) == 4
    assert log[::3] == ["plain", "here", "other", "plain"]
    assert not run.failures


def test_a_prompt_that_peers_held_is_no_measurement_of_a_new_one(tmp_path: Path) -> None:
    question = swarm_runs.Prompts(512).question(16, 1)
    run = bench(tmp_path)
    swarm_runs.interleaved(run, Asked([], "", remembers=False), [Asked([], "", remembers=True)], lambda: question)
    assert run.failures == ["a peer held a part of a new prompt"]


def test_prompts_that_come_again_are_measured_apart(tmp_path: Path) -> None:
    prompts, run = swarm_runs.Prompts(512), bench(tmp_path)
    plain, remembering = Asked([], "", remembers=False), Asked([], "", remembers=True)
    new, again = swarm_runs.new_and_again(run, plain, remembering, lambda: prompts.question(16, 1))
    assert [pair.swarm.held_tokens for pair in new] == [0, 0, 0]
    assert [pair.swarm.held_tokens for pair in again] == [16, 16, 16]
    assert not run.failures
    swarm_runs.new_and_again(run, plain, Asked([], "", remembers=False), lambda: prompts.question(16, 1))
    assert run.failures == ["the peers held nothing of a prompt that came again"]


def test_other_tokens_than_those_of_the_model_alone_fail_the_run(tmp_path: Path) -> None:
    prompts, run = swarm_runs.Prompts(512), bench(tmp_path)
    lying = Asked([], "", remembers=False, wrong=True)
    swarm_runs.interleaved(run, Asked([], "", remembers=False), [lying], lambda: prompts.question(16, 1))
    assert run.failures == ["a swarm gave other tokens than the model alone"]


def test_the_speed_of_a_call_is_that_from_its_first_token_to_its_last() -> None:
    answer = {"tokens": [7, 8, 9], "seconds": 4.0, "arrivals": [(1.0, 1), (2.0, 1), (3.0, 1)]}
    call = swarm_runs.call_of(answer, 0.3)
    assert (call.first_token_seconds, call.decode_tokens_per_second) == (1.0, 1.0)
    assert call.cpu_seconds_per_token == pytest.approx(0.1)
    assert (
        swarm_runs.call_of({"tokens": [7], "seconds": 1.0, "arrivals": [(1.0, 1)]}, 0.1).decode_tokens_per_second == 0
    )


@pytest.mark.parametrize(
    "arguments",
    [["--only", "nothing"], ["--models", "huge"], ["--peers", "0"], ["--repeats", "0"], ["--against", "/nowhere"]],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        swarm.parse(arguments)
    assert refused.value.code == 2


def test_a_row_without_a_figure_says_so() -> None:
    text = swarm_tables.table("ttft", [{"model": "tiny", "peers": 1, "prompt": "new", "swarm_seconds": 0.25}])
    assert "| tiny | 1 | new | - | - | 0.25 | - |" in text


def test_the_line_above_the_tables_names_date_machine_and_command() -> None:
    line = processes.describe_machine(processes.machine(), "scripts/bench_swarm --quick")
    assert line.startswith("20")
    assert line.endswith("`scripts/bench_swarm --quick`")
