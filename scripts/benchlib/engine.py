"""Measure a peer's engine against plain transformers, in the same run and interleaved with it, one torch thread.

batching   tokens/s of 1 to 16 sessions together on one peer with all blocks, by format of the weights
bandwidth  weights read per second at one session, as a share of the machine's copy bandwidth
prefill    tokens/s of prompts of 512 and 2048 tokens
stall      the gap between two tokens of 4 running sessions, without and with a prompt of 2048 tokens beside them
chain      tokens/s of 4 and 8 client processes together through two peers on loopback
formats    products and steps by format, and what it costs in accuracy, on the demo model's trained weights
memory     bytes per block and per token of attention cache, predicted and measured
cost       the announced time of a step against the time that it takes

"Plain" is the model's own decoder in transformers, one session after the other; its head is left out, as a peer has
none. `batching` also gives the figure with the head.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import inspect
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from . import checkpoints, engine_chain, engine_formats
from .processes import machine, run_program

SECTIONS = ("batching", "bandwidth", "prefill", "stall", "chain", "formats", "memory", "cost")
SESSIONS = (1, 2, 4, 8, 16)
FORMATS = ("plain", "prepacked", "int8", *engine_formats.COMPILED)
"""By the names of `Packing`; "int8" is the form of two rows that this processor computes right, see `packing_of`."""
PROMPT_TOKENS = 32
WIDE = (1024, 2048, 4096)
"""Hidden sizes; the models have enough layers that no cache holds the weights."""
QUIET_GAPS = 200


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int
    new_tokens: int
    model: str
    sessions: tuple[int, ...]
    prompts: tuple[int, ...]
    client_counts: tuple[int, ...]


FULL = Effort(3, 24, "small", SESSIONS, (512, 2048), (1, 4, 8))
QUICK = Effort(1, 8, "tiny", (1, 4), (128,), (2,))


@dataclass
class Bench:
    """The checkpoints and the effort that all sections share."""

    effort: Effort
    folder: Path

    def checkpoint(self, name: str) -> Path:
        """The folder of one of the benchmarks' shapes, written on first use."""
        folder = self.folder / name
        if not (folder / "model.safetensors").exists():
            say(f"writing the checkpoint {name}")
            checkpoints.write(name, folder)
        return folder


def packing_of(name: str) -> Any:
    """The form of one of `FORMATS` on this processor."""
    from blockswarm.proto.weights.forms import Packing
    from blockswarm.proto.weights.trials import int8_form

    return int8_form(columns=1024) if name == "int8" else Packing(name)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def engine(folder: Path, packing: str) -> Iterator[Any]:
    """An engine with all blocks in one of `FORMATS`."""
    from blockswarm.peer.engine.blocks.selfcheck import check_family
    from blockswarm.peer.engine.cache.pool import KvPool
    from blockswarm.peer.engine.engine import Engine
    from blockswarm.peer.engine.load import load_stage
    from blockswarm.peer.engine.machine.pages import use_large_pages
    from blockswarm.proto.model.checkpoint import open_checkpoint
    from blockswarm.routing.swarm import BlockRange

    checkpoint = open_checkpoint(str(folder))
    blocks = BlockRange(0, checkpoint.num_blocks)
    stage = load_stage(checkpoint, blocks, route=check_family(checkpoint.config), forms=packing_of(packing))
    use_large_pages()
    made = Engine(stage, KvPool(0, prefix_limit_bytes=0))
    try:
        yield made
    finally:
        made.close()


class Sessions:
    """Sessions of one engine that work at the same time, as many clients would have them."""

    def __init__(self, engine: Any, count: int, max_tokens: int) -> None:
        self._engine = engine
        self._format = engine.wire_format("float32")
        self.caches = [engine.open(engine.blocks, self._format, max_tokens, 1) for _ in range(count)]
        self._hidden = torch.randn(max_tokens, engine.stage.hidden_size, generator=torch.Generator().manual_seed(1))

    async def step(self, index: int, start: int, count: int) -> None:
        from blockswarm.proto.wire.steps import RowSlice, StepPlan

        plan = StepPlan((RowSlice(0, start, count, answers=1),))
        await self._engine.step(self.caches[index], plan, self._format.encode(self._hidden[start : start + count]))

    async def prompts(self, tokens: int) -> None:
        await asyncio.gather(*(self.step(index, 0, tokens) for index in range(len(self.caches))))

    async def decode(self, start: int, tokens: int) -> None:
        """`tokens` steps of one token in every session, each when the one before it was answered."""

        async def one(index: int) -> None:
            for position in range(start, start + tokens):
                await self.step(index, position, 1)

        await asyncio.gather(*(one(index) for index in range(len(self.caches))))

    async def close(self) -> None:
        for cache in self.caches:
            await self._engine.release(cache)


async def decode_rate(engine: Any, count: int, tokens: int) -> float:
    """Tokens per second of `count` sessions together."""
    sessions = Sessions(engine, count, PROMPT_TOKENS + tokens + 2)
    await sessions.prompts(PROMPT_TOKENS)
    await sessions.decode(PROMPT_TOKENS, 2)
    began = time.perf_counter()
    await sessions.decode(PROMPT_TOKENS + 2, tokens)
    seconds = time.perf_counter() - began
    await sessions.close()
    return count * tokens / seconds


class Plain:
    """The model in plain transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._hidden_size = self.model.config.hidden_size

    @torch.inference_mode()
    def decode_rate(self, tokens: int, head: bool) -> float:
        """Tokens per second of one session."""
        cache, run = self._begin(PROMPT_TOKENS, head)
        for _ in range(2):
            run(1, cache)
        began = time.perf_counter()
        for _ in range(tokens):
            run(1, cache)
        return tokens / (time.perf_counter() - began)

    @torch.inference_mode()
    def prefill_rate(self, tokens: int) -> float:
        from transformers import DynamicCache

        hidden = torch.randn(1, tokens, self._hidden_size)
        began = time.perf_counter()
        self.model.model(inputs_embeds=hidden, past_key_values=DynamicCache(), use_cache=True)
        return tokens / (time.perf_counter() - began)

    def _begin(self, prompt: int, head: bool) -> tuple[Any, Callable[[int, Any], None]]:
        from transformers import DynamicCache

        cache = DynamicCache()
        model = self.model if head else self.model.model

        def run(tokens: int, cache: Any) -> None:
            model(inputs_embeds=torch.randn(1, tokens, self._hidden_size), past_key_values=cache, use_cache=True)

        run(prompt, cache)
        return cache, run


def measure_batching(bench: Bench) -> list[dict[str, Any]]:
    effort = bench.effort
    folder = bench.checkpoint(effort.model)
    plain = Plain(folder)
    rows = []
    for packing in FORMATS:
        with engine(folder, packing) as ours:
            for count in effort.sessions:
                say(f"batching: {packing}, {count} sessions")
                rates, alone, headed = [], [], []
                for _ in range(effort.repeats):
                    alone.append(plain.decode_rate(effort.new_tokens, head=False))
                    rates.append(asyncio.run(decode_rate(ours, count, effort.new_tokens)))
                    headed.append(plain.decode_rate(effort.new_tokens, head=True))
                rows.append(
                    {
                        "format": packing,
                        "sessions": count,
                        "tokens_per_second": statistics.median(rates),
                        "plain_tokens_per_second": statistics.median(alone),
                        "plain_with_head_tokens_per_second": statistics.median(headed),
                        "ratio": median_ratio(rates, alone),
                        "ratio_to_plain_with_head": median_ratio(rates, headed),
                    }
                )
    return rows


def measure_bandwidth(bench: Bench) -> dict[str, Any]:
    copied = engine_formats.copy_bandwidth()
    rows = []
    for hidden in WIDE if bench.effort is FULL else WIDE[:1]:
        folder = bench.checkpoint(f"wide-{hidden}")
        for packing in FORMATS:
            say(f"bandwidth: hidden size {hidden}, {packing}")
            with engine(folder, packing) as ours:
                weights = ours.stage.block_bytes * len(ours.blocks)
                rate = max(
                    asyncio.run(decode_rate(ours, 1, bench.effort.new_tokens)) for _ in range(bench.effort.repeats)
                )
                rows.append(
                    {
                        "hidden_size": hidden,
                        "format": packing,
                        "weight_bytes": weights,
                        "tokens_per_second": rate,
                        "bytes_per_second": weights * rate,
                        "share": weights * rate / copied,
                    }
                )
    return {"copy_bytes_per_second": copied, "read_bytes_per_second": read_bandwidth(), "rows": rows}


def read_bandwidth() -> float:
    """Bytes per second of a sum over a large buffer: only read, as weights are."""
    source = torch.ones(256 << 18)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        source.sum()
        seconds.append(time.perf_counter() - began)
    return source.nbytes / min(seconds)


def measure_prefill(bench: Bench) -> list[dict[str, Any]]:
    effort = bench.effort
    folder = bench.checkpoint(effort.model)
    plain = Plain(folder)
    rows = []
    for packing in FORMATS:
        with engine(folder, packing) as ours:
            for tokens in effort.prompts:
                say(f"prefill: {packing}, {tokens} tokens")
                rates, alone = [], []
                for _ in range(effort.repeats):
                    alone.append(plain.prefill_rate(tokens))
                    rates.append(asyncio.run(prefill_rate(ours, tokens)))
                rows.append(
                    {
                        "format": packing,
                        "prompt_tokens": tokens,
                        "tokens_per_second": statistics.median(rates),
                        "plain_tokens_per_second": statistics.median(alone),
                        "ratio": median_ratio(rates, alone),
                    }
                )
    return rows


async def prefill_rate(engine: Any, tokens: int) -> float:
    """Tokens per second of a prompt that comes in steps of 128, as a client sends it."""
    sessions = Sessions(engine, 1, tokens)
    began = time.perf_counter()
    await send_prompt(sessions, 0, tokens)
    rate = tokens / (time.perf_counter() - began)
    await sessions.close()
    return rate


async def send_prompt(sessions: Sessions, index: int, tokens: int) -> None:
    for start in range(0, tokens, 128):
        await sessions.step(index, start, min(128, tokens - start))


def measure_stall(bench: Bench) -> list[dict[str, Any]]:
    folder = bench.checkpoint(bench.effort.model)
    prompt = max(bench.effort.prompts)
    rows = []
    for packing in FORMATS[1:]:
        say(f"stall: {packing}")
        with engine(folder, packing) as ours:
            quiet, beside, seconds = asyncio.run(gaps(ours, prompt))
            rows.append(
                {
                    "format": packing,
                    "prompt_tokens": prompt,
                    "quiet_p50_seconds": statistics.median(quiet),
                    "quiet_p99_seconds": percentile(quiet, 99),
                    "beside_p50_seconds": statistics.median(beside),
                    "beside_p99_seconds": percentile(beside, 99),
                    "beside_worst_seconds": max(beside),
                    "prompt_seconds": seconds,
                }
            )
    return rows


async def gaps(engine: Any, prompt: int) -> tuple[list[float], list[float], float]:
    """Seconds between tokens of 4 sessions: alone, and while a prompt of a fifth is computed; and the prompt's time."""
    running = Sessions(engine, 4, PROMPT_TOKENS + 4096)
    await running.prompts(PROMPT_TOKENS)
    noted: list[tuple[float, float]] = []
    enough = asyncio.Event()
    stop = False

    async def run(index: int) -> None:
        position, last = PROMPT_TOKENS, time.perf_counter()
        while not stop:
            await running.step(index, position, 1)
            now = time.perf_counter()
            noted.append((now, now - last))
            if len(noted) == QUIET_GAPS:
                enough.set()
            position, last = position + 1, now

    tasks = [asyncio.create_task(run(index)) for index in range(4)]
    await enough.wait()
    fifth = Sessions(engine, 1, prompt)
    began = time.perf_counter()
    await send_prompt(fifth, 0, prompt)
    ended = time.perf_counter()
    stop = True
    await asyncio.gather(*tasks)
    await running.close()
    await fifth.close()
    quiet = [gap for at, gap in noted[8:] if at < began]
    beside = [gap for at, gap in noted if began < at < ended]
    return quiet, beside, ended - began


def measure_chain(bench: Bench) -> list[dict[str, Any]]:
    folder = bench.checkpoint(bench.effort.model)
    return engine_chain.measure(folder, bench.folder, bench.effort.client_counts, bench.effort.new_tokens, say)


def measure_formats(bench: Bench) -> Any:
    say("formats: products, steps, and the demo model")
    return engine_formats.measure(bench.checkpoint(bench.effort.model))


def measure_memory(bench: Bench) -> list[dict[str, Any]]:
    """Predicted before anything is loaded, and held afterwards: a block's weights, and 1000 tokens of its cache."""
    from blockswarm.peer.engine.blocks.sizes import block_sizes
    from blockswarm.proto.model.checkpoint import open_checkpoint

    folder = bench.checkpoint(bench.effort.model)
    rows = []
    for packing in FORMATS:
        say(f"memory: {packing}")
        weights, kv = block_sizes(open_checkpoint(str(folder)).config, "float32", packing_of(packing))
        before = resident_bytes()
        with engine(folder, packing) as ours:
            loaded = resident_bytes() - before
            sessions = Sessions(ours, 1, 1024)
            asyncio.run(sessions.prompts(1000))
            rows.append(
                {
                    "format": packing,
                    "block_bytes_predicted": weights,
                    "block_bytes_held": ours.stage.block_bytes,
                    "resident_bytes_per_block": loaded / len(ours.blocks),
                    "kv_bytes_per_token_predicted": kv,
                    "kv_bytes_per_token_held": ours.pool.used_bytes / 1024 / len(ours.blocks),
                }
            )
            asyncio.run(sessions.close())
    return rows


def resident_bytes() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def measure_cost(bench: Bench) -> list[dict[str, Any]]:
    """The cost that a peer announces after its start, against the time that steps of sessions then take."""
    from blockswarm.peer.offer.calibrate import calibrate
    from blockswarm.peer.timing import PeerTiming

    budget_seconds = PeerTiming().calibration_seconds
    folder = bench.checkpoint(bench.effort.model)
    rows = []
    for packing in FORMATS[1:]:
        with engine(folder, packing) as ours:
            say(f"cost: {packing}")
            began = time.perf_counter()
            cost = asyncio.run(in_engine(ours, lambda: calibrate(ours.stage, time.perf_counter, budget_seconds)))
            took = time.perf_counter() - began
            for count in bench.effort.sessions:
                rate = asyncio.run(decode_rate(ours, count, bench.effort.new_tokens))
                context = count * (PROMPT_TOKENS + 2 + bench.effort.new_tokens / 2)
                predicted = cost.decode_seconds(count, context) * len(ours.blocks)
                rows.append(
                    {
                        "format": packing,
                        "sessions": count,
                        "predicted_seconds": predicted,
                        "measured_seconds": count / rate,
                        "ratio": predicted * rate / count,
                        "calibration_seconds": took,
                    }
                )
            tokens = 128
            rate = asyncio.run(prefill_rate(ours, tokens))
            predicted = cost.prefill_seconds(tokens) * len(ours.blocks)
            rows.append(
                {
                    "format": packing,
                    "prompt_tokens": tokens,
                    "predicted_seconds": predicted,
                    "measured_seconds": tokens / rate,
                    "ratio": predicted * rate / tokens,
                    "calibration_seconds": took,
                }
            )
    return rows


async def in_engine(engine: Any, work: Callable[[], Any]) -> Any:
    return await engine.submit(work)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over pairs that were measured one right after the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench_engine", description=inspect.getdoc(sys.modules[__name__]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="what to measure; everything if none is named")
    parser.add_argument("--quick", action="store_true", help="a few minutes less: a tiny model, fewer repetitions")
    parser.add_argument("--json", action="store_true", help="print JSON to standard output")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="bench_engine_") as scratch:
        bench = Bench(QUICK if options.quick else FULL, Path(scratch))
        for section in options.sections or SECTIONS:
            result[section] = globals()[f"measure_{section}"](bench)
            if not options.json:
                print(json.dumps({section: result[section]}, indent=1), flush=True)
    result["machine_after"] = machine()
    if options.json:
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    run_program(main)
