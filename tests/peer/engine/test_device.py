"""Which device computes and in what, and that everything of a stage is where the stage is.

What is on a GPU is tried on a pretended one, which computes on the processor but keeps the two sides apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import BatchingRoute, Stage
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.device import choose_gpu_dtype, find_device
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import examine_model, load_stage
from blockswarm.peer.engine.trial import StepTrial
from blockswarm.peer.engine.weights import packed_gpu
from blockswarm.peer.engine.weights.choose import choose_gpu_packing, find_packing
from blockswarm.peer.engine.weights.packed_gpu import Int8WeightMatrix, int8_weight_bytes
from blockswarm.peer.engine.weights.quantize import Packing
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
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


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, cuda: str | None = "13.0") -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", cuda)


@pytest.mark.parametrize(
    ("asked", "count", "found"),
    [("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_a_device_is_found(monkeypatch: pytest.MonkeyPatch, asked: str, count: int, found: str) -> None:
    gpus(monkeypatch, count)
    assert str(find_device(asked)) == found


@pytest.mark.parametrize(
    ("asked", "count", "cuda", "hint"),
    [
        ("cuda", 0, None, "pytorch.org"),
        ("cuda:0", 0, "13.0", "nvidia-smi"),
        ("cuda:2", 2, "13.0", "cuda:0, cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, asked: str, count: int, cuda: str | None, hint: str
) -> None:
    gpus(monkeypatch, count, cuda)
    with pytest.raises(UsageError) as caught:
        find_device(asked)
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


def test_on_a_gpu_no_form_of_the_processor_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    monkeypatch.setattr("blockswarm.peer.engine.weights.choose.try_packings", lambda *_: pytest.fail("tried"))
    assert find_packing(checkpoint, "bfloat16", "auto", CUDA).packing is Packing.PLAIN
    assert find_packing(checkpoint, "bfloat16", "none", CUDA).packing is Packing.PLAIN
    assert find_packing(checkpoint, "bfloat16", "int8", CUDA).packing is Packing.INT8_WEIGHTS
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        find_packing(checkpoint, "bfloat16", "nf4", CUDA)
    assert "pip install bitsandbytes" in (caught.value.hint or "")


def test_what_is_known_of_a_model_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: its own free memory, the dtype that was published, and no threads are measured."""
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS")
    gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Imagined 8 GB")
    found = examine_model(checkpoint, "auto", "auto", "int8", None, lambda: pytest.fail("measured"))
    assert (found.device, found.device_description) == ("cuda:0", "cuda:0 Imagined 8 GB")
    assert found.device_free_bytes == 7 << 30
    assert (found.dtype, found.numeric_format, found.threads) == ("float32", "int8", 1)
    on_cpu = examine_model(checkpoint, "cpu", "auto", "none", 1, lambda: pytest.fail("measured"))
    assert (on_cpu.device, on_cpu.device_free_bytes, on_cpu.dtype) == ("cpu", None, "float32")


# --- a stage elsewhere ---


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


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_every_family_runs_elsewhere(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(name, tmp_path))
    route = BatchingRoute.PADDED if name in PADDED_MODELS else BatchingRoute.PACKED
    with pretended_gpu():
        stage = load_stage(checkpoint, BLOCKS, torch.float32, None, route, Packing.PLAIN, CUDA)
        assert steps(stage.view(BLOCKS), CUDA).isfinite().all()


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


def test_a_large_weight_is_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a product needs beside the weight is bounded; and a row's result is that of the row alone."""
    weights = [torch.randn(48, 64), torch.randn(33, 64)]
    rows = torch.randn(5, 64)
    whole = Int8WeightMatrix(weights, torch.device("cpu"))
    monkeypatch.setattr(packed_gpu, "PIECE_ELEMENTS", 10 * 64 + 1)
    cut = Int8WeightMatrix(weights, torch.device("cpu"))
    assert [len(piece) for piece in packed_gpu.pieces(weights)] == [10, 10, 10, 10, 8, 10, 10, 10, 3]
    torch.testing.assert_close(cut.multiply(rows), whole.multiply(rows), atol=1e-5, rtol=0)
    alone = torch.cat([whole.multiply(row) for row in rows.split(1)])
    torch.testing.assert_close(alone, whole.multiply(rows), atol=1e-5, rtol=0)
    exact = rows @ torch.cat(weights).T
    assert (whole.multiply(rows) - exact).norm() < 0.02 * exact.norm()
    assert whole.nbytes == cut.nbytes == sum(int8_weight_bytes(len(weight), 64, torch.float32) for weight in weights)


def test_a_trial_ends_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU returns before it has computed; copying the result waits for it, so the clock is read after the work."""
    checkpoint = open_checkpoint(write_tiny_checkpoint("llama", tmp_path))
    with pretended_gpu():
        stage = load_stage(checkpoint, BLOCKS, torch.float32, None, BatchingRoute.PACKED, Packing.PLAIN, CUDA)
        trial = StepTrial(stage, 2)
        runs = [trial.decode(3, 10), trial.prefill(7)]
        copied: list[int] = []
        copy = torch.Tensor.cpu
        monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copied.append(len(self)) or copy(self))
        for run in runs:
            run()
    assert list(dict.fromkeys(copied)) == [3, 7]


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
