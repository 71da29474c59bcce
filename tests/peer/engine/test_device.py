"""Which device computes and in what, and that everything of a stage is where the stage is.

What is on a GPU is tried on a pretended one, which computes on the processor but keeps the two sides apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blockswarm.peer.engine.blocks.rows import RowSpan
from blockswarm.peer.engine.blocks.stage import BatchingRoute, Stage
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.cache.row import BlockKV, RowKV
from blockswarm.peer.engine.device import Gpus, choose_gpu_dtype, find_device
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import examine_model, load_stage
from blockswarm.peer.engine.trial import StepTrial
from blockswarm.peer.engine.weights.choose import MachineProbe, choose_gpu_packing, find_forms
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.packed_gpu import Int8WeightMatrix, check_bitsandbytes, int8_weight_bytes, pieces
from support.device_steps import BLOCKS, TOLERANCE, engine_steps, steps
from support.pretended_gpu import CUDA, MixedDevices, pretended_gpu
from support.tiny_models import PADDED_MODELS, SERVED_MODELS, write_tiny_checkpoint


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the choice ---


class Imagined(Gpus):
    """GPUs that are not there."""

    def __init__(self, count: int, *, supported: bool = True, bfloat16: bool = True) -> None:
        self._count, self._supported, self._bfloat16 = count, supported, bfloat16

    def count(self) -> int:
        return self._count

    def are_supported(self) -> bool:
        return self._supported

    def have_bfloat16(self) -> bool:
        return self._bfloat16

    def name(self, device: torch.device) -> str:
        return "Imagined 8 GB"

    def free_bytes(self, device: torch.device) -> int:
        return 7 << 30

    def total_bytes(self, device: torch.device) -> int:
        return 8 << 30


class NoTrials(MachineProbe):
    """A machine of which nothing may be asked, and that has no bitsandbytes."""

    def try_forms(self, *_: object) -> Any:
        pytest.fail("tried")

    def check_bitsandbytes(self) -> None:
        check_bitsandbytes(lambda name: None)


@pytest.mark.parametrize(
    ("asked", "count", "found"),
    [("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_a_device_is_found(asked: str, count: int, found: str) -> None:
    assert str(find_device(asked, Imagined(count))) == found


@pytest.mark.parametrize(
    ("asked", "gpus", "hint"),
    [
        ("cuda", Imagined(0, supported=False), "pytorch.org"),
        ("cuda:0", Imagined(0), "nvidia-smi"),
        ("cuda:2", Imagined(2), "cuda:0, cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_with_the_next_step(asked: str, gpus: Gpus, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_device(asked, gpus)
    assert asked in str(caught.value)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("asked", "stored", "has_bfloat16", "found"),
    [
        ("auto", "BF16", True, "bfloat16"),
        ("auto", "BF16", False, "float16"),
        ("auto", "F16", True, "float16"),
        ("auto", "F32", True, "float32"),
        ("auto", "F64", True, "bfloat16"),
        ("float32", "BF16", True, "float32"),
        ("float16", "F32", False, "float16"),
    ],
)
def test_a_gpu_computes_in_what_was_published(asked: str, stored: str, has_bfloat16: bool, found: str) -> None:
    assert choose_gpu_dtype(asked, stored, has_bfloat16) == found


def test_what_a_gpu_cannot_do_is_refused() -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        choose_gpu_dtype("bfloat16", "F16", False)
    with pytest.raises(UsageError) as caught:
        choose_gpu_packing("int4")
    assert "nf4" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="int3"):
        choose_gpu_packing("int3")


def test_on_a_gpu_no_form_of_the_processor_is_tried(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))

    def find(quantize: str) -> Packing:
        return find_forms(checkpoint, "bfloat16", quantize, CUDA, NoTrials()).forms.others

    assert (find("auto"), find("none"), find("int8")) == (Packing.PLAIN, Packing.PLAIN, Packing.INT8_WEIGHTS)
    with pytest.raises(UsageError) as caught:
        find("nf4")
    assert "pip install bitsandbytes" in (caught.value.hint or "")


@pytest.mark.long
def test_what_is_known_of_a_model_before_it_is_loaded(tmp_path: Path) -> None:
    """On a GPU: its own free memory, the dtype that was published, and no threads are measured."""
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    gpus = Imagined(1, bfloat16=False)
    found = examine_model(checkpoint, "auto", "auto", "int8", None, lambda: pytest.fail("measured"), gpus, {})
    assert (found.device, found.device_description) == ("cuda:0", "cuda:0 Imagined 8 GB")
    assert found.device_free_bytes == 7 << 30
    assert (found.dtype, found.numeric_format, found.threads) == ("float32", "int8", 1)
    on_cpu = examine_model(checkpoint, "cpu", "auto", "none", 1, lambda: pytest.fail("measured"))
    assert (on_cpu.device, on_cpu.device_free_bytes, on_cpu.dtype) == ("cpu", None, "float32")


# --- a stage elsewhere ---


@pytest.mark.long
@pytest.mark.parametrize("route", BatchingRoute, ids=lambda route: route.value)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "deepseek_v3", "falcon", "bloom", "gpt2", "mixtral"])
def test_everything_of_a_stage_is_where_the_stage_is(name: str, route: BatchingRoute, tmp_path: Path) -> None:
    """And the numbers are those of the processor."""
    if route is BatchingRoute.PACKED and name in PADDED_MODELS:
        pytest.skip("not served packed")
    checkpoint = open_checkpoint(write_tiny_checkpoint(name, tmp_path))
    expected = steps(load_stage(checkpoint, BLOCKS, route=route).view(BLOCKS), torch.device("cpu"))
    with pretended_gpu():
        stage = load_stage(checkpoint, BLOCKS, torch.float32, None, route, Packing.PLAIN, CUDA)
        assert stage.device == CUDA
        found = steps(stage.view(BLOCKS), CUDA)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("name", SERVED_MODELS)
def test_every_family_runs_elsewhere(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(name, tmp_path))
    route = BatchingRoute.PADDED if name in PADDED_MODELS else BatchingRoute.PACKED
    with pretended_gpu():
        stage = load_stage(checkpoint, BLOCKS, torch.float32, None, route, Packing.PLAIN, CUDA)
        assert steps(stage.view(BLOCKS), CUDA).isfinite().all()


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "mixtral"])
def test_int8_weights_are_packed_where_they_stay(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(name, tmp_path))
    plain = load_stage(checkpoint, BLOCKS, route=BatchingRoute.PACKED)
    with pretended_gpu():
        stage = load_stage(checkpoint, BLOCKS, torch.float32, None, BatchingRoute.PACKED, Packing.INT8_WEIGHTS, CUDA)
        found = steps(stage.view(BLOCKS), CUDA)
    expected = steps(plain.view(BLOCKS), torch.device("cpu"))
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()
    assert stage.kv_bytes_per_token == plain.kv_bytes_per_token
    assert stage.block_bytes < 0.5 * plain.block_bytes


def test_a_large_weight_is_computed_in_pieces() -> None:
    """So that what a product needs beside the weight is bounded; and a row's result is that of the row alone."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(outputs, 64, generator=generator) / 8 for outputs in (48, 33)]  # products of about 1
    rows = torch.randn(5, 64, generator=generator)
    whole = Int8WeightMatrix(weights, torch.device("cpu"))
    cut = Int8WeightMatrix(weights, torch.device("cpu"), 10 * 64 + 1)
    assert [len(piece) for piece in pieces(weights, 10 * 64 + 1)] == [10, 10, 10, 10, 8, 10, 10, 10, 3]
    torch.testing.assert_close(cut.multiply(rows), whole.multiply(rows), atol=1e-5, rtol=0)
    alone = torch.cat([whole.multiply(row) for row in rows.split(1)])
    torch.testing.assert_close(alone, whole.multiply(rows), atol=1e-5, rtol=0)
    exact = rows @ torch.cat(weights).T
    assert (whole.multiply(rows) - exact).norm() < 0.02 * exact.norm()
    assert whole.nbytes == cut.nbytes == sum(int8_weight_bytes(len(weight), 64, torch.float32) for weight in weights)


class _Result:
    """The output of a step of a GPU, which has not been computed when it is returned."""

    def __init__(self, tokens: int, copied: list[int]) -> None:
        self._tokens, self._copied = tokens, copied

    def cpu(self) -> None:
        self._copied.append(self._tokens)


class _LateView:
    """A view whose steps return before they have computed."""

    blocks = BLOCKS

    def __init__(self, copied: list[int]) -> None:
        self._copied = copied

    def new_row(self, max_tokens: int) -> RowKV:
        row = RowKV(self.blocks, max_tokens)
        row.append([dict.fromkeys(self.blocks, BlockKV(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)))])
        return row

    def forward(self, hidden: torch.Tensor, rows: Sequence[RowSpan]) -> _Result:
        assert sum(row.count for row in rows) == len(hidden)
        return _Result(len(hidden), self._copied)


def test_a_trial_ends_on_the_processor() -> None:
    """A GPU returns before it has computed; copying the result waits for it, so the clock is read after the work."""
    copied: list[int] = []
    stage: Any = SimpleNamespace(
        blocks=BLOCKS, hidden_size=8, dtype=torch.float32, device=torch.device("cpu"), view=lambda _: _LateView(copied)
    )
    trial = StepTrial(stage, 2)
    runs = [trial.decode(3, 10), trial.prefill(7)]
    copied.clear()
    for run in runs:
        run()
    assert copied == [3, 7]


@pytest.mark.long
def test_an_engine_answers_the_same_from_elsewhere(tmp_path: Path) -> None:
    """End to end: from the bytes of steps to the bytes of answers, exported and imported caches included."""
    checkpoint = open_checkpoint(write_tiny_checkpoint("gemma3", tmp_path))
    plain = load_stage(checkpoint, BLOCKS, route=BatchingRoute.PACKED)
    expected = asyncio.run(run_engine(plain, pretend=False))
    with pretended_gpu():
        stage = load_stage(checkpoint, BLOCKS, torch.float32, None, BatchingRoute.PACKED, Packing.PLAIN, CUDA)
    found = asyncio.run(run_engine(stage, pretend=True))
    together, alone = (torch.frombuffer(bytearray(data), dtype=torch.float32) for data in (found, expected))
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)


async def run_engine(stage: Stage, *, pretend: bool) -> bytes:
    engine = Engine(stage, KvPool(0, prefix_limit_bytes=0))
    try:
        if not pretend:
            return await engine_steps(engine)
        pretended = pretended_gpu()
        await engine.submit(pretended.__enter__)  # what is pretended, is so in one thread
        try:
            return await engine_steps(engine)
        finally:
            await engine.submit(lambda: pretended.__exit__(None, None, None))
    finally:
        engine.close()


def test_the_pretended_gpu_keeps_the_sides_apart() -> None:
    with pretended_gpu():
        there = torch.arange(3, device=CUDA)
        assert there.device == CUDA
        assert (there + torch.tensor(1)).tolist() == [1, 2, 3]
        assert torch.equal((there * 2.5).cpu(), torch.tensor([0, 2.5, 5]))
        for mixed in (lambda: there + torch.ones(3), lambda: torch.cat([torch.ones(3), there])):
            with pytest.raises(MixedDevices):
                mixed()
