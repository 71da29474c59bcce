"""A process that generates texts through a swarm, with and without guesses, and counts trips.

    python -m benchlib.guess_worker FOLDER ADDRESS...

Questions come as lines of JSON on standard input, every answer is a line of JSON on standard output.  A question's
`mode` is one of `MODES`; what `generate` chooses is not changed by any of them but "look-up" with sampling, which
transformers computes by another rule.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList

from .generate_worker import TokenClock, load
from .processes import SCRIPTS

MODES: Mapping[str, str | int] = {
    "alone": "off",
    "off": "off",
    "look-up": "off",
    "suffix": "auto",
    "draft": "auto",
    "both": "auto",
    "fixed": 8,
}
"""The setting of `guess` by mode; "alone" is the model without a swarm."""
DEMO_DRAFT = SCRIPTS / "demo_draft"
LOOKUP_TOKENS = 10
SCRIPT_BIAS = 15.0
"""Logits by which a scripted token is likelier: a model that copies is seldom in doubt."""


class Script(LogitsProcessor):
    """Makes the model write a text that is given, as one that is able to copy would: the demo's is too small to."""

    def __init__(self, prompt_length: int, tokens: Sequence[int]) -> None:
        self._begin = prompt_length
        self._tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, length), (B, V) -> (B, V)"""
        index = input_ids.shape[1] - self._begin
        if 0 <= index < len(self._tokens):
            scores = scores.clone()
            scores[:, self._tokens[index]] += SCRIPT_BIAS
        return scores


@dataclass
class Answer:
    """The figures of one text, over all its turns."""

    tokens: list[int] = field(default_factory=list)
    decode_seconds: float = 0.0
    """From the first new token to the last."""
    decode_tokens: int = 0
    """Those behind the first."""
    trips: int = 0
    drafts: dict[str, list[int]] = field(default_factory=dict)
    """Drafter -> [guessed, right]."""

    def add_turn(self, tokens: list[int], arrivals: Sequence[tuple[float, int]], guesses: Any) -> None:
        """Count the new tokens of one turn; `guesses` is its report, None for the model alone."""
        (first, first_count), last = arrivals[0], arrivals[-1][0]
        self.tokens += tokens
        self.decode_seconds += last - first
        self.decode_tokens += len(tokens) - first_count
        if guesses is None:
            return
        self.trips += guesses.trips
        for draft in guesses.drafts:
            known = self.drafts.setdefault(draft.drafter, [0, 0])
            known[0] += draft.guessed
            known[1] += draft.right


class ModeSwitch:
    """Has a model guess as one of `MODES` says; it was loaded with a draft model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._all = model.make_drafters

    def use(self, mode: str) -> None:
        """From the next text on."""
        self._model.guess = MODES[mode]
        self._model.make_drafters = lambda: [
            drafter for drafter in self._all() if mode not in ("suffix", "draft") or drafter.name == mode
        ]


class Worker:
    """The model through the swarm, and the same alone."""

    def __init__(self, folder: str, addresses: Sequence[str]) -> None:
        self._swarm = load("swarm", folder, addresses, prefix_cache=False, draft=DEMO_DRAFT)
        self._switch = ModeSwitch(self._swarm)
        self._alone = load("plain", folder, ())
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        for model in filter(None, (self._swarm, self._alone)):
            model.generation_config.eos_token_id = None  # every run makes as many tokens as it is asked for

    def answer(self, question: Mapping[str, Any]) -> Answer:
        """Generate the turns of one text."""
        mode = question["mode"]
        alone = mode == "alone"
        if not alone:
            self._switch.use(mode)
        answer, text = Answer(), list[int]()
        turns = [self._ids(turn, add_special_tokens=not index) for index, turn in enumerate(question["turns"])]
        longest = sum(map(len, turns)) + len(turns) * question["new_tokens"] + LOOKUP_TOKENS + 1
        with self._swarm.session(longest) if len(turns) > 1 and not alone else nullcontext() as session:
            for number, turn in enumerate(turns):
                model = self._alone if alone else session or self._swarm
                options = self._options(question, len(text) + len(turn))
                clock = TokenClock()
                torch.manual_seed(question["seed"] + number)
                # A session has the text before the turn; a model has to be given it.
                prompt = torch.tensor([turn if session else text + turn])
                output = model.generate(prompt, streamer=clock, **options)[0].tolist()
                new = output[len(text) + len(turn) :]
                text += turn + new
                answer.add_turn(new, clock.arrivals, None if alone else self._swarm.last_generation.guesses)
        return answer

    def _options(self, question: Mapping[str, Any], prompt_length: int) -> dict[str, Any]:
        """The arguments of `generate` for one turn."""
        options = {"max_new_tokens": question["new_tokens"], "do_sample": question["temperature"] > 0}
        if options["do_sample"]:
            options |= {"temperature": question["temperature"], "top_k": 0}
        if question["mode"] == "look-up":
            options["prompt_lookup_num_tokens"] = LOOKUP_TOKENS
        if question.get("script"):
            script = Script(prompt_length, self._ids(question["script"], add_special_tokens=False))
            options["logits_processor"] = LogitsProcessorList([script])
        return options

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids


def main(folder: str, *addresses: str) -> None:
    # Whatever libraries print goes to standard error; the answers have standard output for themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)
    worker = Worker(folder, addresses)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(asdict(worker.answer(json.loads(line)))), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
