"""A process in which several texts are generated at once, each in a thread, for a given time.

    python -m benchlib.guess_crowd_worker RANK FOLDER ADDRESS...

With the rank "idle" it only gets the time that other processes leave; any other is a usual one.

Questions come as lines of JSON on standard input, every answer is a line of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from .generate_worker import TokenClock, load
from .guess_crowd import KEPT_BACK
from .guess_worker import DEMO_DRAFT, ModeSwitch

MOST_TOKENS = 500
"""Fewer than the demo model has positions for, and than a report is of; then the text begins anew."""
SAMPLE_SECONDS = 0.3


class Until(StoppingCriteria):
    """The text ends at a moment of `time.perf_counter`; meanwhile it is noted what its steps took at the peers."""

    def __init__(self, moment: float, model: Any) -> None:
        self.samples: list[tuple[float, int, float]] = []
        """A moment, the steps until then, and the seconds that they were at peers, from arrival to answer."""
        self._moment = moment
        self._model = model
        self._next = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + SAMPLE_SECONDS
            report = self._model.last_generation.report
            seconds = sum(hop.queue_seconds + hop.compute_seconds for hop in report.hops)
            self.samples.append((now, report.steps, report.steps * seconds))
        return torch.full((len(input_ids),), now >= self._moment)


class KeptBack:
    """A drafter that works as another one does, and shows nothing of it."""

    def __init__(self, drafter: Any) -> None:
        self._drafter = drafter
        self.name = drafter.name

    @property
    def thinking(self) -> bool:
        return bool(self._drafter.thinking)

    def note(self, start: int, tokens: Sequence[int]) -> None:
        self._drafter.note(start, tokens)

    def draft(self, most: int, behind: Sequence[int]) -> Sequence[Any]:
        self._drafter.draft(most, behind)
        return ()

    def call_when_ready(self, wake: Callable[[], object]) -> None:
        self._drafter.call_when_ready(wake)


class CrowdWorker:
    """The model through the swarm, for several texts at once."""

    def __init__(self, folder: str, addresses: Sequence[str]) -> None:
        self._model = load("swarm", folder, addresses, prefix_cache=False, draft=DEMO_DRAFT)
        self._model.generation_config.eos_token_id = None
        self._switch = ModeSwitch(self._model)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Generate all texts until the time is over; when tokens came, and what was guessed in all."""
        self._use(*question["mode"].split(", "))
        began = time.perf_counter()
        with ThreadPoolExecutor(len(question["texts"])) as threads:
            found = list(threads.map(lambda text: self._texts(text, question, began), question["texts"]))
        return {
            "began": began,
            "ended": time.perf_counter(),
            "moments": [moments for moments, _, _ in found],
            "at_peers": [samples for _, texts, _ in found for samples in texts],
            "guessed": sum(guessed for _, _, guessed in found),
        }

    def _use(self, mode: str, kept: str = "") -> None:
        """Guess as one of the modes says, and send guesses unless they are kept back."""
        self._switch.use(mode)
        if kept == KEPT_BACK:
            make = self._model.make_drafters
            self._model.make_drafters = lambda: [KeptBack(drafter) for drafter in make()]

    def _texts(
        self, text: str, question: Mapping[str, Any], began: float
    ) -> tuple[list[tuple[float, int]], list[list[tuple[float, int, float]]], int]:
        """One after the other, each with the same beginning.

        Moments of this machine's clock with the tokens that came, by text the samples of `Until`, and tokens guessed.
        """
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        options = {"do_sample": question["temperature"] > 0}
        if options["do_sample"]:
            options |= {"temperature": question["temperature"], "top_k": 0}
        end = began + question["seconds"]
        moments: list[tuple[float, int]] = []
        samples: list[list[tuple[float, int, float]]] = []
        guessed = 0
        while time.perf_counter() < end:
            clock, start, until = TokenClock(), time.perf_counter(), Until(end, self._model)
            criteria = StoppingCriteriaList([until])
            self._model.generate(ids, streamer=clock, max_new_tokens=MOST_TOKENS, stopping_criteria=criteria, **options)
            moments += [(start + at, tokens) for at, tokens in clock.arrivals]
            samples.append(until.samples)
            guessed += self._model.last_generation.guesses.guessed
        return moments, samples, guessed


def main(rank: str, folder: str, *addresses: str) -> None:
    if rank == "idle":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Whatever libraries print goes to standard error; the answers have standard output for themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)
    worker = CrowdWorker(folder, addresses)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
