"""A process that generates text when it is told to: the model alone, or through a swarm.

    python -m benchlib.generate_worker plain FOLDER
    python -m benchlib.generate_worker swarm FOLDER ADDRESS...

Questions come as lines of JSON on standard input, every answer is a line of JSON on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

PEERS_SECONDS = 60.0


class TokenClock(BaseStreamer):
    """Notes when new tokens came: (seconds since the start, how many)."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self._started_at = time.perf_counter()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.arrivals.append((time.perf_counter() - self._started_at, value.numel()))
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is left to do."""


def generate(model: Any, question: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Generate greedily; the prompt is a list of token ids, or text. `guess` is for a swarm, from now on."""
    if "guess" in question and hasattr(model, "guess"):
        model.guess = question["guess"]
    prompt = question["prompt"]
    if isinstance(prompt, str):
        prompt = tokenizer(prompt)["input_ids"]
    input_ids = torch.tensor([prompt])
    clock = TokenClock()
    started = time.perf_counter()
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=question["new_tokens"],
        prompt_lookup_num_tokens=question.get("prompt_lookup_num_tokens"),
        streamer=clock,
    )
    seconds = time.perf_counter() - started
    return {
        "tokens": output[0, len(prompt) :].tolist(),
        "text": tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True) if tokenizer else "",
        "seconds": seconds,
        "arrivals": clock.arrivals,
        "held_tokens": held_tokens(model),
    }


def held_tokens(model: Any) -> int:
    """The tokens of the last prompt that the peers held already."""
    generation = getattr(model, "last_generation", None)
    events = generation.events if generation is not None else ()
    return sum(int(event.detail.split()[0]) for event in events if event.kind == "adopted")


def load(kind: str, folder: str, addresses: Sequence[str], **options: Any) -> Any:
    """The model alone, or, made with `options`, the model whose blocks are at all of the peers at `addresses`."""
    if kind == "plain":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    from blockswarm.client import AutoSwarmModelForCausalLM
    from blockswarm.proto.errors import PeerUnavailable

    model = AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses, **options)
    swarm, give_up_at = model.session_factory, time.monotonic() + PEERS_SECONDS
    while len(swarm.view.usable()) < len(addresses):
        if time.monotonic() > give_up_at:
            raise SystemExit(f"the client sees {len(swarm.view.usable())} of {len(addresses)} peers")
        time.sleep(0.2)
        with contextlib.suppress(PeerUnavailable):  # they may be too busy to answer
            swarm.run(swarm.view.refresh())
    return model


def swarm_status(model: Any) -> dict[str, Any]:
    """The peers' counters, the round trips to them, and the times of this thread's last generation."""
    from blockswarm.proto.network.dialling import EVERY_RANGE
    from blockswarm.proto.network.transport import Dialer, ping

    swarm = model.session_factory

    async def ask() -> list[dict[str, Any]]:
        dialer, answers = Dialer(rule=EVERY_RANGE), []
        for known in swarm.view.usable():
            await ping(dialer.stub(known.address), known.address, 10.0)  # connects
            reply, rtt_seconds, _ = await ping(dialer.stub(known.address), known.address, 10.0)
            answers.append(
                {
                    "pushed": reply.steps_pushed,
                    "relayed": reply.steps_relayed,
                    "answered": reply.steps_answered,
                    "rtt_seconds": rtt_seconds,
                }
            )
        await dialer.close()
        return answers

    generation = model.last_generation
    report = generation.report if generation is not None else None
    hops = [
        {
            "blocks": str(hop.blocks),
            "network_seconds": hop.network_seconds,
            "queue_seconds": hop.queue_seconds,
            "compute_seconds": hop.compute_seconds,
        }
        for hop in (report.hops if report else ())
    ]
    return {
        "peers": swarm.run(ask()),
        "hops": hops,
        "return_seconds": report.return_seconds if report else None,
        "step_seconds": report.step_seconds if report else None,
    }


def main(kind: str, folder: str, *addresses: str) -> None:
    # Whatever libraries print goes to standard error; the answers have standard output for themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)
    model = load(kind, folder, addresses)
    model.generation_config.eos_token_id = None  # every run makes as many tokens as it is asked for
    has_tokenizer = os.path.exists(os.path.join(folder, "tokenizer_config.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder) if has_tokenizer else None
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        question = json.loads(line)
        answer = swarm_status(model) if "status" in question else generate(model, question, tokenizer)
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
