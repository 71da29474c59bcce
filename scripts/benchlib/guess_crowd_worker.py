"""A process in which several texts are generated at once, each in a thread, for a given time.

    python -m benchlib.guess_crowd_worker NICE FOLDER ADDRESS...

Questions come as lines of JSON on standard input, every answer is a line of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from .generate_worker import TokenClock, load
from .guess_worker import DEMO_DRAFT, ModeSwitch

MOST_TOKENS = 800
"""Fewer than the demo model has positions for, and more than come in the time."""


class Until(StoppingCriteria):
    """The text ends at a moment of `time.perf_counter`."""

    def __init__(self, moment: float) -> None:
        self._moment = moment

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), time.perf_counter() >= self._moment)


class CrowdWorker:
    """The model through the swarm, for several texts at once."""

    def __init__(self, folder: str, addresses: Sequence[str]) -> None:
        self._model = load("swarm", folder, addresses, prefix_cache=False, draft=DEMO_DRAFT)
        self._model.generation_config.eos_token_id = None
        self._switch = ModeSwitch(self._model)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Generate all texts until the time is over; when tokens came, and what was guessed in all."""
        self._switch.use(question["mode"])
        began = time.perf_counter()
        with ThreadPoolExecutor(len(question["texts"])) as threads:
            found = list(threads.map(lambda text: self._texts(text, question, began), question["texts"]))
        moments = [moments for moments, _ in found]
        guessed = sum(guessed for _, guessed in found)
        return {"began": began, "ended": time.perf_counter(), "moments": moments, "guessed": guessed}

    def _texts(self, text: str, question: Mapping[str, Any], began: float) -> tuple[list[tuple[float, int]], int]:
        """One after the other, each with the same beginning: moments of this machine's clock, and tokens guessed."""
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        options = {"do_sample": question["temperature"] > 0}
        if options["do_sample"]:
            options |= {"temperature": question["temperature"], "top_k": 0}
        until = began + question["seconds"]
        criteria = StoppingCriteriaList([Until(until)])
        moments: list[tuple[float, int]] = []
        guessed = 0
        while time.perf_counter() < until:
            clock, start = TokenClock(), time.perf_counter()
            self._model.generate(ids, streamer=clock, max_new_tokens=MOST_TOKENS, stopping_criteria=criteria, **options)
            moments += [(start + at, tokens) for at, tokens in clock.arrivals]
            guessed += self._model.last_generation.guesses.guessed
        return moments, guessed


def main(nice: str, folder: str, *addresses: str) -> None:
    os.nice(int(nice))
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
