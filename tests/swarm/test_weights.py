"""Peers with other weights under the same model's name: a client does not mix them with the others, and says why."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import torch
from blockswarm.peer.engine.cache.pool import KvPool
from blockswarm.peer.engine.engine import Engine
from blockswarm.peer.engine.load import load_stage
from blockswarm.proto.errors import NoChainError
from blockswarm.proto.model.checkpoint import Checkpoint, open_checkpoint, read_checkpoint
from blockswarm.proto.model.hub import HubSource
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import BlockRange, ComputeCost
from blockswarm.routing.trust import Evidence
from support.fake_hub import MODEL_ID, listing_of, serve_hub
from support.swarm import LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.swarm
several_hosts = pytest.mark.skipif(sys.platform != "linux", reason="only Linux listens on all of 127.0.0.0/8")

WHOLE = BlockRange(0, 6)
FAST = ComputeCost(1e-9)
"""The peers with other weights would be chosen, if they were believed."""
PROMPT = StepPlan((RowSlice(0, 0, 9, 9),))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One file; the matrices of its MLPs are larger than the samples that were once taken of them."""
    folder = tmp_path_factory.mktemp("good") / "model"
    return open_checkpoint(write_tiny_checkpoint("llama", folder, max_shard_size="1GB", intermediate_size=1536))


@pytest.fixture(scope="module")
def bad(good: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The same model from a hub that sends one bit of block 3 wrong, 5000 bytes behind the start of a matrix."""
    folder = tmp_path_factory.mktemp("bad")
    damaged = Path(shutil.copytree(good.folder, folder / "model"))
    tensor = next(tensor for tensor in good.block_tensors(3) if tensor.name.endswith("mlp.down_proj.weight"))
    assert tensor.nbytes // 15 > 5004 > 4096  # between the first two of 16 samples
    content = bytearray((damaged / tensor.file).read_bytes())
    content[tensor.start + 5003] ^= 0x40  # the exponent's highest bit, so that everybody would see it in the output
    (damaged / tensor.file).write_bytes(content)
    with serve_hub(damaged) as hub:
        hub.listing = json.dumps(listing_of(good.folder)).encode()
        checkpoint = read_checkpoint(HubSource(MODEL_ID, endpoint=hub.endpoint, cache_folder=folder / "cache"))
        checkpoint.fetch(WHOLE)
    assert checkpoint.model_digest() == good.model_digest()
    return checkpoint


def prompt() -> bytes:
    return torch.randn(9, 64, generator=torch.Generator().manual_seed(1)).numpy().tobytes()


def computed_by(checkpoint: Checkpoint) -> bytes:
    """The right answer for the weights of a checkpoint."""
    engine = Engine(load_stage(checkpoint, WHOLE), KvPool(0, prefix_limit_bytes=0))
    try:
        return bytes(engine.open(WHOLE, engine.wire_format("float32"), 100, 1).step(PROMPT, prompt()).data)
    finally:
        engine.close()


def in_swarm(good: Checkpoint, scenario: Callable[[LocalSwarm], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), local_swarm(good.folder) as swarm:
            await scenario(swarm)

    asyncio.run(main())


async def ask(swarm: LocalSwarm, proven: Mapping[int, bytes] | None = None) -> tuple[bytes, Evidence]:
    """The answer of a chain, and why its first peer is believed."""
    session = await swarm.session(proven=proven)
    answer = await session.run(PROMPT, prompt())
    (evidence, *_) = [hop.weights for hop in session.report().hops]
    await session.close()
    return answer, evidence


def test_the_damage_is_seen_in_the_output(good: Checkpoint, bad: Checkpoint) -> None:
    """Else the tests below would show nothing."""
    assert computed_by(good) != computed_by(bad)


def test_a_flipped_bit_is_announced_and_the_peer_is_left_out(good: Checkpoint, bad: Checkpoint) -> None:
    """On one machine the peers are counted: two against one, though no network decides that."""

    async def scenario(swarm: LocalSwarm) -> None:
        await swarm.start_peer(WHOLE, checkpoint=bad, cost=FAST)
        for _ in range(2):
            await swarm.start_peer(WHOLE)
        announced = [peer.block_hashes for peer in swarm.peers]
        assert [a != b for a, b in zip(*announced[:2], strict=True)] == [False, False, False, True, False, False]
        assert await ask(swarm) == (computed_by(good), Evidence.UNDECIDED)
        assert set(swarm.views[0].trust.doubted) == {swarm.peers[0].identity.peer_id}

    in_swarm(good, scenario)


@several_hosts
def test_many_identities_of_one_machine_do_not_displace_honest_peers(good: Checkpoint, bad: Checkpoint) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        for number in range(3):
            await swarm.start_peer(WHOLE, host=f"127.0.0.{number + 1}")
        for _ in range(5):
            await swarm.start_peer(WHOLE, checkpoint=bad, host="127.0.0.9", cost=FAST)
        assert await ask(swarm) == (computed_by(good), Evidence.MAJORITY)

    in_swarm(good, scenario)


@several_hosts
def test_the_files_of_a_client_outweigh_any_number_of_networks(good: Checkpoint, bad: Checkpoint) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        await swarm.start_peer(WHOLE)
        for number in range(3):
            await swarm.start_peer(WHOLE, checkpoint=bad, host=f"127.0.0.{number + 2}", cost=FAST)
        assert await ask(swarm, good.proven_hashes()) == (computed_by(good), Evidence.PROVEN)
        assert await ask(swarm) == (computed_by(bad), Evidence.MAJORITY)  # what a client without files can tell

    in_swarm(good, scenario)


def test_where_nobody_is_believed_the_error_says_that_others_are_there(good: Checkpoint, bad: Checkpoint) -> None:
    async def scenario(swarm: LocalSwarm) -> None:
        await swarm.start_peer(WHOLE, checkpoint=bad)
        with pytest.raises(NoChainError, match="1 announce others"):
            await ask(swarm, good.proven_hashes())

    in_swarm(good, scenario)
