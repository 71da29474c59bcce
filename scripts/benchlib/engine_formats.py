"""The costs and gains of each form of the weights: time of products and of a stage's steps, and accuracy.

Times are the processor time of the one thread that computes, the least of several turns: other programs' slices of a
busy machine do not count, their use of the memory bus does.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blockswarm.peer.engine.blocks.selfcheck import check_family
from blockswarm.peer.engine.blocks.stage import RowSpan, Stage
from blockswarm.peer.engine.load import load_stage
from blockswarm.peer.engine.weights.quantize import pack_block, shared_inputs
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.model.family import find_blocks
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.trials import int8_form
from blockswarm.routing.swarm import BlockRange
from transformers import AutoModelForCausalLM, DynamicCache

_CANDIDATES = (
    Packing.PREPACKED, Packing.ROWS, Packing.ROWS_BFLOAT16, int8_form(columns=1024), Packing.INT8_ROWS
)  # fmt: skip
FORMS = (Packing.PLAIN, *(form for form in _CANDIDATES if form.fits(1024, 1024)))
"""Those that this processor computes right; compiled products need the extra `fast`."""
COMPILED = tuple(form.value for form in (Packing.ROWS_BFLOAT16, Packing.INT8_ROWS) if form in FORMS)
DEMO_MODEL = Path(__file__).parent.parent / "demo_model"
_COPY_BYTES = 256 << 20


def copy_bandwidth() -> float:
    """Bytes per second that one thread reads, and as many that it writes, in a large copy; both are counted."""
    source, target = torch.ones(_COPY_BYTES // 4), torch.ones(_COPY_BYTES // 4)
    (seconds,) = least_times([lambda: target.copy_(source)], turns=9)
    return 2 * _COPY_BYTES / seconds


def least_times(calls: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Seconds of each call, the least of `turns`; the calls take turns."""
    best = [math.inf] * len(calls)
    for _, (index, call) in itertools.product(range(turns), enumerate(calls)):
        started = time.thread_time()
        call()
        best[index] = min(best[index], time.thread_time() - started)
    return best


@torch.inference_mode()
def matrix_bandwidth(size: int, turns: int = 15) -> dict[str, float]:
    """Bytes of weights read per second by the product of one row with a (size, size) matrix, by form.

    As many different matrices are read one after the other as do not fit into a cache.
    """
    copies = max(4, (192 << 20) // size**2)
    weights = [
        torch.randn(size, size).bfloat16().float() for _ in range(min(copies, max(4, (512 << 20) // (4 * size**2))))
    ]
    row = torch.randn(1, size)
    found = {}
    for packing in (*FORMS, Packing.INT4):
        if packing is Packing.PLAIN:
            calls = [lambda weight=weight: torch.nn.functional.linear(row, weight) for weight in weights]
            held = size * size * 4
        else:
            matrices = [packing.pack([weight]) for weight in itertools.islice(itertools.cycle(weights), copies)]
            calls = [lambda matrix=matrix: matrix.multiply(row) for matrix in matrices]
            held = matrices[0].nbytes
        seconds = least_times([lambda calls=calls: [call() for call in calls]], turns)[0] / len(calls)
        found[packing.value] = held / seconds
    return found


def load(folder: Path, packing: Packing) -> Stage:
    """All blocks of a checkpoint in one stage."""
    checkpoint = open_checkpoint(folder)
    everything = BlockRange(0, checkpoint.num_blocks)
    return load_stage(checkpoint, everything, torch.float32, None, check_family(checkpoint.config), packing)


TRANSFORMERS = "plain transformers"


def step_times(
    stages: Mapping[str, Stage], folder: Path, row_counts: Sequence[int], context: int = 64, turns: int = 9
) -> dict[str, dict[int, float]]:
    """Seconds of a step of each number of decode rows behind `context` tokens each, by stage; and of as many tokens of
    plain transformers, one after the other, in turn with them."""
    found: dict[str, dict[int, float]] = {name: {} for name in (*stages, TRANSFORMERS)}
    plain = _transformers_step(folder, context)
    for count in row_counts:
        calls = [*(_decode_step(stage, count, context) for stage in stages.values()), plain]
        for name, seconds in zip(found, least_times(calls, turns), strict=True):
            found[name][count] = seconds * (count if name == TRANSFORMERS else 1)
    return found


def _decode_step(stage: Stage, count: int, context: int) -> Callable[[], object]:
    """A step that can be repeated: each time the row is first truncated to its context."""
    view = stage.view(stage.blocks)
    rows = [view.new_row(context + 1) for _ in range(count)]
    for row in rows:
        view.forward(torch.randn(context, stage.hidden_size), [RowSpan(row, 0, context)])
    hidden = torch.randn(count, stage.hidden_size)
    return lambda: view.forward(hidden, [RowSpan(row, context, 1) for row in rows])


def prefill_times(stages: Mapping[str, Stage], token_counts: Sequence[int]) -> dict[str, dict[int, float]]:
    """Seconds of a chunk of each number of tokens of one new row, by stage."""
    found: dict[str, dict[int, float]] = {name: {} for name in stages}
    for count in token_counts:
        calls = [_prefill_step(stage, count) for stage in stages.values()]
        for name, seconds in zip(stages, least_times(calls, 3), strict=True):
            found[name][count] = seconds
    return found


def _prefill_step(stage: Stage, count: int) -> Callable[[], object]:
    view = stage.view(stage.blocks)
    row = view.new_row(count)
    hidden = torch.randn(count, stage.hidden_size)
    return lambda: view.forward(hidden, [RowSpan(row, 0, count)])


def _transformers_step(folder: Path, context: int) -> Callable[[], object]:
    """One token of one session in plain transformers, float32, without its head; can be repeated."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().model
    cache = DynamicCache(config=model.config)
    hidden = torch.randn(1, context, model.config.hidden_size)

    @torch.inference_mode()
    def step() -> None:
        if not cache.get_seq_length():
            model(inputs_embeds=hidden, past_key_values=cache, use_cache=True)
        model(inputs_embeds=hidden[:, :1], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def accuracy(folder: Path = DEMO_MODEL) -> dict[str, dict[str, float]]:
    """The trained demo model by form: relative error of the logits, and loss and perplexity per held-out byte."""
    import train_demo_model as training

    exact_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    corpus = training.load_corpus(np.random.default_rng(0))
    tokens = torch.from_numpy(corpus.held_out[:1023].astype(np.int64))[None]
    exact = _logits(exact_model, tokens)
    found = {}
    for packing in (*(form for form in FORMS if form is not Packing.ROWS_BFLOAT16), Packing.INT4):
        model = copy.deepcopy(exact_model)
        for block in find_blocks(model, model.config.num_hidden_layers).blocks:
            if packing is not Packing.PLAIN:
                pack_block(block, packing, shared_inputs(model.config))
        logits = _logits(model, tokens)
        loss = training.held_out_loss(model, corpus, 256)
        found[packing.value] = {
            "logits_relative_error": ((logits - exact).norm() / exact.norm()).item(),
            "same_greedy_token_share": (logits.argmax(-1) == exact.argmax(-1)).double().mean().item(),
            "held_out_loss_nats": loss,
            "held_out_perplexity": math.exp(loss),
        }
    return found


@torch.inference_mode()
def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def measure(folder: Path) -> dict[str, Any]:
    """Products, steps of a stage and accuracy by form; steps with the checkpoint in `folder`, accuracy with the demo
    model. CPU time of the thread, so that what else the machine does matters less."""
    torch.manual_seed(0)
    copying = copy_bandwidth()
    stages = {packing.value: load(folder, packing) for packing in FORMS}
    return {
        "copy_bytes_per_second": copying,
        "matrix_share_of_copy_bandwidth": {
            size: {name: speed / copying for name, speed in matrix_bandwidth(size).items()}
            for size in (1024, 2048, 4096)
        },
        "step_seconds": step_times(stages, folder, (1, 2, 4, 8, 16)),
        "prefill_seconds": prefill_times(stages, (64, 512)),
        "accuracy": accuracy(),
    }
