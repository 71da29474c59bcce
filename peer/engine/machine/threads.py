"""The number of CPU threads that torch computes with: as many as help in a trial.

More threads than free cores are slower than one, and memory bandwidth limits how fast weights can be read.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from ....proto.weights.kept import KeptMeasurements, machine_and_versions, number_of

WORTH_IT = 0.9
"""A larger number of threads is chosen if a step then takes less than this share of the time."""
_MATRIX_BYTES = 64 << 20
"""More than most CPU caches hold: decoding reads weights that were last used a whole step ago."""
_REPEATS = 4


def set_threads(
    asked: int | None,
    hidden_size: int,
    clock: Callable[[], float],
    *,
    timed: bool = True,
    environment: Mapping[str, str] = os.environ,
    kept: KeptMeasurements | None = None,
) -> tuple[int, Mapping[int, float]]:
    """Set torch's threads for the whole process: `asked`, else OMP_NUM_THREADS, else the fastest number.

    Returns that number, and the seconds that each candidate took (empty if there was no choice). `clock` is a monotonic
    clock in seconds. Takes less than half a second, and nothing if `kept` has the times of an earlier start. If not
    `timed`, because a GPU computes and the processor only hands it work, the default is one thread.
    """
    from_environment = environment.get("OMP_NUM_THREADS", "")
    if asked is None and from_environment.isdecimal() and int(from_environment) > 0:
        asked = int(from_environment)
    candidates = _candidates(available_cores())
    seconds: Mapping[int, float] = {}
    if asked is None and timed and len(candidates) > 1:
        seconds = _kept_or_timed(candidates, hidden_size, clock, kept)
    threads = asked if asked is not None else fewest_worthwhile(seconds) if seconds else 1
    torch.set_num_threads(threads)
    return threads, seconds


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute with one thread within the block: for tiny models, where more threads would wait for each
    other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fewest_worthwhile(seconds: Mapping[int, float]) -> int:
    """Return the number of threads to use: a larger number is taken if it saves a tenth of the best time so far."""
    counts = sorted(seconds)
    best = counts[0]
    for count in counts[1:]:
        if seconds[count] < WORTH_IT * seconds[best]:
            best = count
    return best


def available_cores() -> int:
    """Return the cores that this process may use: its affinity, or fewer if its control group has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def _candidates(cores: int) -> list[int]:
    """1, 2, 4 ... and all cores."""
    powers = [1 << exponent for exponent in range(cores.bit_length()) if 1 << exponent <= cores]
    return sorted({*powers, cores})


def _kept_or_timed(
    candidates: list[int], hidden_size: int, clock: Callable[[], float], kept: KeptMeasurements | None
) -> Mapping[int, float]:
    """As `_time`, but measured once per machine."""
    conditions = " | ".join(["threads", f"{hidden_size} columns", f"{candidates}", machine_and_versions("torch")])
    found = kept.load(conditions) if kept is not None else None
    if kept is not None and found is not None:
        try:
            seconds = {count: number_of(found[str(count)]) for count in candidates}
            if all(0 < taken < math.inf for taken in seconds.values()):
                return seconds
            raise ValueError(found)
        except (TypeError, ValueError, KeyError) as error:
            kept.refuse(error)
    seconds = _time(candidates, hidden_size, clock)
    if kept is not None:
        kept.save(conditions, {str(count): taken for count, taken in seconds.items()})
    return seconds


def _time(candidates: list[int], hidden_size: int, clock: Callable[[], float]) -> dict[int, float]:
    """The seconds of multiplying one row by a large matrix, by number of threads; the best of a few runs each."""
    weight = torch.zeros(_MATRIX_BYTES // 4 // hidden_size, hidden_size, dtype=torch.float32)
    row = torch.zeros(1, hidden_size, dtype=torch.float32)
    seconds = dict.fromkeys(candidates, float("inf"))
    for _ in range(_REPEATS):
        for count in candidates:
            torch.set_num_threads(count)
            began = clock()
            torch.nn.functional.linear(row, weight)
            seconds[count] = min(seconds[count], clock() - began)
    return seconds
