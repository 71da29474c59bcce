"""When requests arrive and how long they are: Poisson arrivals, length distributions, recorded traces."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...papers.instances import InstanceError
from ...perf import FloatArray, IntArray

MOST_REQUESTS = 10_000_000
MOST_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Lengths:
    """A log-normal distribution of token counts, rounded up to multiples of `step`; `spread` 0 is a fixed length.

    `spread` is the standard deviation of the logarithm; `mean` the mean before rounding; values end at `most`.
    """

    mean: float
    spread: float = 0.0
    step: int = 1
    most: int = MOST_TOKENS

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """(count,) token counts, at least 1."""
        if self.spread == 0.0:
            drawn = np.full(count, self.mean)
        else:
            drawn = rng.lognormal(math.log(self.mean) - self.spread**2 / 2, self.spread, count)
        stepped = np.ceil(drawn / self.step) * self.step
        lengths: IntArray = np.clip(stepped, 1, self.most).astype(np.int64)
        return lengths


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival; arrays (requests,)."""

    arrivals_seconds: FloatArray
    prompt_tokens: IntArray
    new_tokens: IntArray
    client: IntArray


def poisson(
    requests: int, requests_per_second: float, prompt: Lengths, answer: Lengths, clients: int, rng: np.random.Generator
) -> Workload:
    """Poisson arrivals, the first at time 0, from clients chosen evenly."""
    gaps = rng.exponential(1.0 / requests_per_second, requests)
    gaps[:1] = 0.0
    return Workload(
        np.cumsum(gaps), prompt.sample(requests, rng), answer.sample(requests, rng), rng.integers(0, clients, requests)
    )


def read_trace(path: Path, clients: int) -> Workload:
    """A CSV with the columns arrival_seconds, prompt_tokens, new_tokens and, if wanted, client (from 0).

    Raises InstanceError naming the file, the line and the column.
    """
    rows: list[tuple[float, int, int, int]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            needed = {"arrival_seconds", "prompt_tokens", "new_tokens"}
            columns = set(reader.fieldnames or ())
            if not needed <= columns or not columns <= needed | {"client"}:
                raise InstanceError(f"{path.name}: the columns must be {', '.join(sorted(needed))} and at most client")
            for row in reader:
                where = f"{path.name}: line {reader.line_num}"
                arrival = _number(where, row, "arrival_seconds", rows[-1][0] if rows else 0.0, 1e10)
                prompt, answer = (_whole(where, row, key, 1, MOST_TOKENS) for key in ("prompt_tokens", "new_tokens"))
                client = _whole(where, row, "client", 0, clients - 1) if "client" in columns else 0
                rows.append((arrival, prompt, answer, client))
                if len(rows) > MOST_REQUESTS:
                    raise InstanceError(f"{where}: more than {MOST_REQUESTS} requests")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InstanceError(f"{path.name}: cannot be read: {error}") from error
    if not rows:
        raise InstanceError(f"{path.name}: holds no requests")
    arrivals, prompts, answers, senders = zip(*rows, strict=True)
    return Workload(np.array(arrivals), np.array(prompts), np.array(answers), np.array(senders))


def _number(where: str, row: dict[str, str], key: str, low: float, high: float) -> float:
    try:
        value = float(row[key])
    except (TypeError, ValueError):
        value = math.nan
    if not low <= value <= high:
        raise InstanceError(f"{where}: {key}: must be a number from {low:g} to {high:g}, not {row[key]!r}")
    return value


def _whole(where: str, row: dict[str, str], key: str, low: int, high: int) -> int:
    value = _number(where, row, key, low, high)
    if value != int(value):
        raise InstanceError(f"{where}: {key}: must be a whole number, not {row[key]!r}")
    return int(value)
