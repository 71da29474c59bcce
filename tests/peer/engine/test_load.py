"""Stages with packed matrices: against plain ones, and what a row's result may depend on."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.blocks.stage import BatchingRoute, RowSpan, Stage, StageView
from blockswarm.peer.engine.load import examine_model, load_examined, load_stage
from blockswarm.peer.engine.weights.choose import int8_form
from blockswarm.peer.engine.weights.quantize import PackedLinear
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint, read_checkpoint
from blockswarm.proto.model.folder import FolderSource
from blockswarm.proto.model.hashes import HashMemory
from blockswarm.proto.weights.forms import Packing
from blockswarm.routing.swarm import BlockRange
from support.tiny_models import write_tiny_checkpoint

BLOCKS = BlockRange(1, 5)
SEVERAL_KINDS = ("gemma3", "qwen2", "gpt2", "qwen2_moe", "deepseek_v3", "llama4", "falcon")
"""Families whose blocks are not all alike, or that differ from Llama in another way."""
DENSE_PACKED = ("llama", "gemma3", "phi", "gpt2", "cohere", "glm4")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def packed_stage(folder: Path, packing: Packing, route: BatchingRoute = BatchingRoute.SINGLE) -> Stage:
    return load_stage(open_checkpoint(folder), BLOCKS, torch.float32, None, route, packing)


def random_hidden(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(seed))


def prompt_and_two_tokens(view: StageView) -> torch.Tensor:
    row = view.new_row(32)
    counts, hidden = (9, 1, 1), random_hidden(11, seed=0)
    return torch.cat([view.forward(part, [RowSpan(row, row.length, len(part))]) for part in hidden.split(counts)])


@pytest.mark.long
@pytest.mark.parametrize("name", SEVERAL_KINDS)
def test_a_stage_loaded_block_by_block_equals_one_loaded_at_once(name: str, tmp_path: Path) -> None:
    """Also a part of it: what surrounds the blocks must know which they are."""
    write_tiny_checkpoint(name, tmp_path)
    plain = load_stage(open_checkpoint(tmp_path), BLOCKS)
    packed = packed_stage(tmp_path, Packing.PREPACKED)
    for part in (BLOCKS, BlockRange(2, 4), BlockRange(4, 5)):
        expected = prompt_and_two_tokens(plain.view(part))
        found = prompt_and_two_tokens(packed.view(part))
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert packed.kv_bytes_per_token == plain.kv_bytes_per_token
    assert packed.dtype == plain.dtype


@pytest.mark.long
@pytest.mark.parametrize("name", DENSE_PACKED)
@pytest.mark.parametrize("form", [int8_form(64), Packing.INT8_ROWS, Packing.ROWS], ids=lambda form: form.value)
def test_a_rows_result_is_the_same_bits_in_every_step(form: Packing, name: str, tmp_path: Path) -> None:
    """All of a block, not only its products: decoding alone, and among others in any number and order. In int8 always,
    in float32 with compiled products."""
    if not form.fits(64, 64):
        pytest.skip("the extra `fast` is not installed, or not for this processor")
    write_tiny_checkpoint(name, tmp_path)
    stage = packed_stage(tmp_path, form, BatchingRoute.PACKED)
    view = stage.view(BLOCKS)
    for count in (2, 8, 19):
        prompts = [random_hidden(1 + (7 * seed) % 40, seed) for seed in range(count)]
        tokens = [random_hidden(1, 100 + seed) for seed in range(count)]
        alone = [decode(view, [prompt], [token])[0] for prompt, token in zip(prompts, tokens, strict=True)]
        order = random.Random(count).sample(range(count), count)
        together = decode(view, [prompts[index] for index in order], [tokens[index] for index in order])
        assert torch.equal(together, torch.stack([alone[index] for index in order]))


def decode(view: StageView, prompts: list[torch.Tensor], tokens: list[torch.Tensor]) -> torch.Tensor:
    """One token of each row in one step, behind its own prompt."""
    rows = [view.new_row(64) for _ in prompts]
    for row, prompt in zip(rows, prompts, strict=True):
        view.forward(prompt, [RowSpan(row, 0, len(prompt))])
    return view.forward(torch.cat(tokens), [RowSpan(row, row.length, 1) for row in rows])


def test_progress_adds_up_over_the_blocks(tmp_path: Path) -> None:
    write_tiny_checkpoint("llama", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    seen: list[tuple[int, int]] = []
    load_stage(
        checkpoint,
        BLOCKS,
        torch.float32,
        lambda done, total: seen.append((done, total)),
        BatchingRoute.SINGLE,
        Packing.INT8,
    )
    total = sum(checkpoint.block_bytes(block) for block in BLOCKS)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.long
def test_block_bytes_are_those_of_the_packed_block(tmp_path: Path) -> None:
    write_tiny_checkpoint("llama", tmp_path, hidden_size=512, intermediate_size=1024, max_shard_size="100MB")
    checkpoint = open_checkpoint(tmp_path)
    plain = load_stage(checkpoint, BLOCKS).block_bytes
    assert packed_stage(tmp_path, Packing.PREPACKED).block_bytes == pytest.approx(plain, rel=0.01)
    assert packed_stage(tmp_path, Packing.INT8).block_bytes == pytest.approx(plain / 4, rel=0.07)


def test_a_stage_is_loaded_with_the_packing_that_was_chosen(tmp_path: Path) -> None:
    write_tiny_checkpoint("llama", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for packing in (Packing.PLAIN, Packing.INT8):
        stage = load_stage(checkpoint, BLOCKS, forms=packing)
        modules = [module for block in stage.hosted.values() for module in block.module.modules()]
        assert any(isinstance(module, PackedLinear) for module in modules) is (packing is Packing.INT8)


def test_blocks_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    write_tiny_checkpoint("llama", tmp_path)
    with pytest.raises(UsageError, match="0:6"):
        load_stage(open_checkpoint(tmp_path), BlockRange(4, 7), torch.float32, None, BatchingRoute.SINGLE, Packing.INT8)


@pytest.mark.long
def test_bytes_that_are_not_those_of_the_digest_end_the_load(tmp_path: Path) -> None:
    """As if the disk had changed a block since its file was hashed: no peer serves it, whatever else it hosts."""
    folder = write_tiny_checkpoint("llama", tmp_path / "model")

    def load(blocks: BlockRange) -> list[str]:
        seen: list[str] = []
        checkpoint = read_checkpoint(FolderSource(folder, HashMemory(tmp_path / "memory", min_bytes=0)))
        examined = examine_model(checkpoint, "cpu", "float32", "none", 1, time.perf_counter)
        load_examined(checkpoint, blocks, examined, lambda what, done, total: seen.append(what))
        return seen

    assert {*load(BlockRange(0, 6))} == {"loading", "checking"}
    changed = 0
    for entry in (tmp_path / "memory").glob("*.json"):
        content = json.loads(entry.read_text())
        damaged = {name: "0" * 64 for name in content["tensors"] if name == "model.layers.4.mlp.down_proj.weight"}
        entry.write_text(json.dumps({**content, "tensors": content["tensors"] | damaged}))
        changed += len(damaged)
    assert changed == 1
    assert load(BlockRange(0, 4))
    with pytest.raises(UsageError, match="block 4"):
        load(BlockRange(2, 6))
