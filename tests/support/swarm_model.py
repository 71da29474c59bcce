"""A connected model and the swarm of this process behind it, for one scenario."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from blockswarm.client.model.load import AutoSwarmModelForCausalLM
from support.swarm import LocalSwarm, local_swarm

THREE_PEERS = ("0:2", "2:4", "4:6")


def with_swarm(
    folder: Path,
    scenario: Callable[[LocalSwarm, Any], Awaitable[None]],
    *ranges: str,
    prefix_bytes: int = 0,
    **options: Any,
) -> None:
    """Run a scenario with a peer per range, three by default, and a model that `from_pretrained` makes with `options`.

    The client has its own loop, as always.
    """

    async def main() -> None:
        async with (
            asyncio.timeout(120),
            local_swarm(folder, *(ranges or THREE_PEERS), prefix_bytes=prefix_bytes) as swarm,
        ):
            addresses = [str(peer.address) for peer in swarm.peers[:2]]
            model = await asyncio.to_thread(
                AutoSwarmModelForCausalLM.from_pretrained, folder, initial_peers=addresses, **options
            )
            try:
                await scenario(swarm, model)
            finally:
                await asyncio.to_thread(model.session_factory.close)

    asyncio.run(main())
