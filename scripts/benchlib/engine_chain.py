"""Several client processes at once through a chain of two real peers on loopback."""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .processes import Child

PEERS = 2
PROMPT_TOKENS = 32
QUANTIZATIONS = ("none", "int8")


def measure(
    model: Path, folder: Path, client_counts: Sequence[int], new_tokens: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Tokens per second of all clients together, against plain transformers right before and after."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    rows = []
    with worker(folder, "plain", model) as plain:
        for quantize in QUANTIZATIONS:
            for count in client_counts:
                say(f"chain: {quantize}, {count} clients")
                questions = [question(vocabulary, seed, new_tokens) for seed in range(count)]
                with clients(folder, model, quantize, count) as workers:
                    ask_all(workers, questions)  # opens connections, grows caches
                    before = rate_alone(plain, questions[0])
                    together = [rate_together(workers, questions) for _ in range(3)]
                    alone = statistics.median([before, rate_alone(plain, questions[0])])
                rows.append(
                    {
                        "quantize": quantize,
                        "clients": count,
                        "tokens_per_second": statistics.median(together),
                        "plain_tokens_per_second": alone,
                        "ratio": statistics.median(together) / alone,
                    }
                )
    return rows


@contextlib.contextmanager
def clients(folder: Path, model: Path, quantize: str, count: int) -> Iterator[Sequence[Child]]:
    """`count` client processes that are connected to two peers, each with half of the blocks."""
    blocks = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    bounds = [round(index * blocks / PEERS) for index in range(PEERS + 1)]
    with contextlib.ExitStack() as stack:
        addresses: list[str] = []
        for index in range(PEERS):
            arguments: list[str | Path] = [
                "-m", "blockswarm.peer.cli", model, "--blocks", f"{bounds[index]}:{bounds[index + 1]}",
                "--host", "127.0.0.1", "--data", folder / f"chain-{quantize}-{count}-{index}", "--threads", "1",
                "--quantize", quantize, "--json",
            ]  # fmt: skip
            arguments += ["--initial-peers", addresses[0]] if addresses else ["--new-swarm"]
            peer = stack.enter_context(Child(*arguments, log=folder / f"chain-peer{index}.log"))
            addresses.append(peer.read()["address"])
        yield [stack.enter_context(worker(folder, "swarm", model, *addresses)) for _ in range(count)]


def worker(folder: Path, kind: str, model: Path, *addresses: str) -> Child:
    """A process of generate_worker.py that is ready."""
    child = Child("-m", "benchlib.generate_worker", kind, model, *addresses, log=folder / f"chain-{kind}.log")
    child.read()
    return child


def question(vocabulary: int, seed: int, new_tokens: int) -> Mapping[str, Any]:
    rng = random.Random(seed)
    return {"prompt": [rng.randrange(3, vocabulary) for _ in range(PROMPT_TOKENS)], "new_tokens": new_tokens}


def rate_alone(plain: Child, asked: Mapping[str, Any]) -> float:
    answer = plain.ask(**asked)
    return len(answer["tokens"]) / float(answer["seconds"])


def rate_together(workers: Sequence[Child], questions: Sequence[Mapping[str, Any]]) -> float:
    """All tokens over the time from the first question to the last answer, prompts included."""
    began = time.perf_counter()
    answers = ask_all(workers, questions)
    return sum(len(answer["tokens"]) for answer in answers) / (time.perf_counter() - began)


def ask_all(workers: Sequence[Child], questions: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Every worker its question, all at once."""
    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(lambda pair: pair[0].ask(**pair[1]), zip(workers, questions, strict=True)))
