"""A stage and an engine on a real GPU against the processor; `scripts/test --gpu` runs these and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.sizes import block_sizes
from blockswarm.peer.engine.blocks.stage import BatchingRoute, RowSpan
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.device import find_device, free_device_bytes
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import examine_model, load_examined, load_stage
from blockswarm.peer.offer.calibrate import calibrate
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint
from blockswarm.proto.model.ends import ends_class
from blockswarm.proto.model.family import load_model
from blockswarm.proto.model.tiny import random_model
from blockswarm.proto.weights.forms import Packing
from blockswarm.routing.swarm import BlockRange
from support.device_steps import BLOCKS, engine_steps, steps
from support.tiny_models import PADDED_MODELS, SERVED_MODELS, tiny_model_config, write_tiny_checkpoint
from torch import nn

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
FLOAT32_TOLERANCE = 5e-4
"""Absolute, on activations of about 1 to 10 after a few blocks: a GPU sums in another order and by other kernels. What
is wrong (a mask, a position, a row of another session) differs by more than 0.01."""
BFLOAT16_ERROR = 0.03
"""Relative, in the norm, after six blocks: each rounds to 8 bits of mantissa a few times."""
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "max_shard_size": "1GB"}
"""Blocks of 20 MB in 16 bits, so that what torch rounds up does not matter."""


@pytest.fixture(autouse=True)
def _memory_returned() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


class OnGpu(nn.Module):
    """All blocks of a model, as the remote module of a client; one row."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, route: BatchingRoute) -> None:
        super().__init__()
        blocks = BlockRange(0, checkpoint.num_blocks)
        stage = load_stage(checkpoint, blocks, dtype, None, route, Packing.PLAIN, GPU)
        self.view, self.dtype = stage.view(blocks), dtype
        self.row = self.view.new_row(max_tokens=64)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = hidden_states[0].to(GPU, self.dtype)
        output = self.view.forward(hidden, [RowSpan(self.row, self.row.length, len(hidden))])
        return output.cpu().float()[None]


def logits_of_both(name: str, folder: Path, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt, a chunk and single tokens: through the GPU, and by the whole model in float32 on the processor."""
    checkpoint = open_checkpoint(write_tiny_checkpoint(name, folder))
    route = BatchingRoute.PADDED if name in PADDED_MODELS else BatchingRoute.PACKED
    remote = OnGpu(checkpoint, dtype, route)
    ends = load_model(ends_class(checkpoint.config, lambda: remote), checkpoint.config, checkpoint.ends_state())
    tokens = torch.randint(3, 199, (1, 30), generator=torch.Generator().manual_seed(1))
    bounds = [0, 17, 18, 24, 25, 26, 27, 28, 29, 30]
    with torch.inference_mode():
        expected = random_model(tiny_model_config(name))(input_ids=tokens, use_cache=False).logits
        parts = [
            ends(input_ids=tokens[:, start:stop], position_ids=torch.arange(start, stop)[None], use_cache=False).logits
            for start, stop in itertools.pairwise(bounds)
        ]
    return torch.cat(parts, dim=1), expected


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_a_stage_equals_the_model_alone(name: str, tmp_path: Path) -> None:
    found, expected = logits_of_both(name, tmp_path, torch.float32)
    torch.testing.assert_close(found, expected, atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "falcon"])
def test_in_bfloat16_it_is_as_near_as_that_allows(name: str, tmp_path: Path) -> None:
    """Without experts, whose choice may tip."""
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    found, expected = logits_of_both(name, tmp_path, torch.bfloat16)
    assert (found - expected).norm() < BFLOAT16_ERROR * expected.norm()


@pytest.mark.parametrize("route", BatchingRoute, ids=lambda route: route.value)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "deepseek_v3", "falcon", "mixtral"])
def test_rows_of_many_kinds_in_one_step(name: str, route: BatchingRoute, tmp_path: Path) -> None:
    """Packed prompts and tokens, truncation, fork, export and import."""
    if route is BatchingRoute.PACKED and name in PADDED_MODELS:
        pytest.skip("not served packed")
    checkpoint = open_checkpoint(write_tiny_checkpoint(name, tmp_path))
    expected = steps(load_stage(checkpoint, BLOCKS, route=route).view(BLOCKS), torch.device("cpu"))
    stage = load_stage(checkpoint, BLOCKS, torch.float32, None, route, Packing.PLAIN, GPU)
    assert stage.device == GPU
    torch.testing.assert_close(steps(stage.view(BLOCKS), GPU), expected, atol=FLOAT32_TOLERANCE, rtol=0)


def test_an_engine_answers_as_on_the_processor(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("gemma3", tmp_path))
    on_cpu = Engine(load_stage(checkpoint, BLOCKS, route=BatchingRoute.PACKED), KvPool(0, prefix_limit_bytes=0))
    on_gpu = Engine(
        load_stage(checkpoint, BLOCKS, route=BatchingRoute.PACKED, device=GPU), KvPool(0, prefix_limit_bytes=0)
    )
    try:
        answers = [
            torch.frombuffer(bytearray(asyncio.run(engine_steps(engine))), dtype=torch.float32)
            for engine in (on_gpu, on_cpu)
        ]
    finally:
        on_cpu.close()
        on_gpu.close()
    torch.testing.assert_close(*answers, atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "packing", [Packing.PLAIN, Packing.INT8_WEIGHTS, Packing.NF4], ids=lambda packing: packing.value
)
def test_memory_is_what_was_predicted(packing: Packing, tmp_path: Path) -> None:
    """Within 5 %: blocks are counted by it before they are loaded."""
    if packing is Packing.NF4:
        pytest.importorskip("bitsandbytes")
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path, **LARGE))
    block_bytes, kv_bytes = block_sizes(checkpoint.config, "float16", packing)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(GPU)
    stage = load_stage(checkpoint, BLOCKS, torch.float16, None, BatchingRoute.PACKED, packing, GPU)
    held = torch.cuda.memory_allocated(GPU) - before
    assert held == pytest.approx(len(BLOCKS) * block_bytes, rel=0.05)
    row = stage.view(BLOCKS).new_row(1024)
    hidden = torch.zeros(1024, 1024, dtype=torch.float16, device=GPU)
    stage.view(BLOCKS).forward(hidden, [RowSpan(row, 0, 1024)])
    assert row.nbytes == pytest.approx(1024 * len(BLOCKS) * kv_bytes, rel=0.05)


@pytest.mark.parametrize(("packing", "error"), [(Packing.INT8_WEIGHTS, 0.1), (Packing.NF4, 0.5)], ids=str)
def test_quantised_weights_compute_about_the_same(packing: Packing, error: float, tmp_path: Path) -> None:
    if packing is Packing.NF4:
        pytest.importorskip("bitsandbytes")
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path, hidden_size=64, intermediate_size=128))
    plain = steps(load_stage(checkpoint, BLOCKS, route=BatchingRoute.PACKED).view(BLOCKS), torch.device("cpu"))
    stage = load_stage(checkpoint, BLOCKS, torch.float32, None, BatchingRoute.PACKED, packing, GPU)
    found = steps(stage.view(BLOCKS), GPU)
    assert 0 < (found - plain).norm() < error * plain.norm()


def test_a_gpu_is_found_and_measured(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path, **LARGE))
    assert find_device("auto") == GPU
    examined = examine_model(checkpoint, "auto", "auto", "auto", None, time.perf_counter)
    assert examined.device == "cuda:0"
    assert examined.forms.is_plain
    assert examined.device_free_bytes is not None
    assert 0 < examined.device_free_bytes <= torch.cuda.get_device_properties(GPU).total_memory
    before = free_device_bytes(GPU)
    engine = Engine(load_examined(checkpoint, BLOCKS, examined, lambda *_: None), KvPool(0, prefix_limit_bytes=0))
    try:
        after = free_device_bytes(GPU)
        assert before is not None
        assert after is not None
        assert after < before
        cost = calibrate(engine.stage, time.perf_counter, PeerTiming().calibration_seconds)
    finally:
        engine.close()
    assert cost.decode_seconds(1, 64) > 0
    assert cost.prefill_seconds(512) > 0
    # The line is about what a prefill takes by the clock, the GPU's work included.
    assert cost.prefill_seconds(512) < 1
