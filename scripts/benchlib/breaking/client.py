"""A client of a swarm that says every token and every event as it comes, while a fault is played to it.

    python -m benchlib.breaking.client FOLDER ADDRESS...

Questions come as lines of JSON on standard input: {"prompt": [ids], "new_tokens": n, "pause_after": n}.  For
each it prints a line per token ({"token", "at"}), a line per event ({"event", "peer", "detail", "at"}), and
{"done": true, "error"} at the end.  After token `pause_after` it says {"paused": true, "chain", "relays",
"step_seconds"} and asks for no more tokens until there is another line on standard input, so that a fault finds the
text there however late it is played.  Times are of the system's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from blockswarm.client.config import SessionEvent
from blockswarm.client.model.generation import Generation
from blockswarm.proto.errors import SwarmError
from blockswarm.proto.network.address import RelayedAddress
from transformers import StoppingCriteria

from ..generate_worker import load


def main(folder: str, *addresses: str) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)

    def say(**line: Any) -> None:
        print(json.dumps(line | {"at": time.monotonic()}), file=answers)

    def on_event(event: SessionEvent) -> None:
        say(event=event.kind, peer=event.peer, detail=event.detail)

    model = load("swarm", folder, addresses, on_event=on_event)
    model.generation_config.eos_token_id = None
    generations: list[Generation] = []
    model.generation_listeners.append(generations.append)
    say(ready=True)
    for line in sys.stdin:
        error = asyncio.run(generate(model, json.loads(line), generations, say))
        say(done=True, error=error)


async def generate(model: Any, question: Mapping[str, Any], generations: list[Generation], say: Any) -> str | None:
    """Generate greedily; the error that ended it, or None."""
    input_ids = torch.tensor([question["prompt"]])

    def pause(step_seconds: float) -> None:
        chain = [peer for peer, _ in generations[-1].report.chain]
        relays = [relay_to(model, peer) for peer in chain]
        say(paused=True, chain=chain, relays=relays, step_seconds=step_seconds)
        sys.stdin.readline()

    pause_at_length = len(question["prompt"]) + question.get("pause_after", 0)
    try:
        async for token in model.astream(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=question["new_tokens"],
            stopping_criteria=[PauseAt(pause_at_length, pause)],
        ):
            say(token=token)
    except SwarmError as error:
        return f"{type(error).__name__}: {error}"
    return None


class PauseAt(StoppingCriteria):
    """Never stops a text, but pauses it once it has a length, in the thread that generates it."""

    def __init__(self, length: int, pause: Callable[[float], None]) -> None:
        """`pause` gets the seconds that the last step took, and returns when the text may go on."""
        self._length = length
        self._pause = pause
        self._last_at = time.monotonic()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """`input_ids` is [1, length], with the new token; returns False for its row."""
        now = time.monotonic()
        if input_ids.shape[1] == self._length:
            self._pause(now - self._last_at)
        self._last_at = now
        return torch.zeros(len(input_ids), dtype=torch.bool)


def relay_to(model: Any, peer: str) -> str | None:
    """The relay through which the client reaches a peer; None if it does so directly."""
    known = model.session_factory.view.peers.get(peer)
    return known.address.relay.peer if known is not None and isinstance(known.address, RelayedAddress) else None


if __name__ == "__main__":
    main(*sys.argv[1:])
