"""The probe program: reads its setup and then questions, a line each, and writes an answer to each.

It is a separate process because it needs torch and the model's two ends, and can be killed when it hangs.  It ends when
its standard input is closed, which happens whenever the dashboard ends.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from ....proto.errors import SwarmError
from ....proto.logs import log_to_standard_error
from .messages import (
    MAX_LINE_BYTES,
    ProbedHop,
    ProbeOutcome,
    ProbeSetup,
    opened_line,
    outcome_line,
    read_setup,
    refused_line,
)

if TYPE_CHECKING:
    from ...report import ChainReport

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 16


class SyntheticUser:
    """Generates through the swarm of one model; the first probe connects, and the connection is kept."""

    def __init__(self, setup: ProbeSetup) -> None:
        self._setup = setup
        self._model: Any = None

    def probe(self) -> ProbeOutcome:
        """Make one request, from its prompt to its last token."""
        began = time.perf_counter()
        try:
            if self._model is None:
                self._model = self._connected()
                began = time.perf_counter()  # users are connected already when they send a request
            return self._generate()
        except SwarmError as error:
            logger.warning("the probe of %s failed: %s", self._setup.model, error)
            return ProbeOutcome(error.code, time.perf_counter() - began)

    def _connected(self) -> Any:
        from ...model.load import AutoSwarmModelForCausalLM

        setup = self._setup
        return AutoSwarmModelForCausalLM.from_pretrained(
            setup.model,
            initial_peers=setup.initial_peers,
            swarm_key=setup.swarm_key,
            revision=setup.revision,
            guess="off",  # measure the swarm, not how well this text can be guessed
            identity_path=setup.identity,
            lan=setup.lan,
            prefix_cache=False,  # compute the whole prompt each time
            patience_seconds=setup.patience_seconds,
        )

    def _generate(self) -> ProbeOutcome:
        from transformers.generation.streamers import BaseStreamer

        from ...model.generation import last_generation

        moments: list[float] = []

        class Moments(BaseStreamer):  # type: ignore[misc]
            def put(self, value: Any) -> None:
                moments.append(time.perf_counter())

            def end(self) -> None:
                pass

        tokens = self._setup.tokens
        began = time.perf_counter()
        self._model.generate(
            prompt_of(self._model.config.get_text_config(decoder=True).vocab_size),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            streamer=Moments(),
        )
        ended = time.perf_counter()
        first = moments[1]  # the prompt comes before it
        generation = last_generation(self._model)
        return ProbeOutcome(
            code="",
            seconds=ended - began,
            first_token_seconds=first - began,
            tokens_per_second=(tokens - 1) / (ended - first),
            hops=hops_of(generation.report) if generation is not None else (),
            repairs=sum(event.kind == "hop-lost" for event in generation.events) if generation is not None else 0,
        )


def prompt_of(vocabulary: int) -> Any:
    """Return token ids, (1, PROMPT_TOKENS), that every model has; needs no tokenizer."""
    import torch

    return torch.arange(PROMPT_TOKENS).remainder(vocabulary)[None]


def hops_of(report: ChainReport) -> tuple[ProbedHop, ...]:
    return tuple(
        ProbedHop(
            hop.peer, hop.blocks.start, hop.blocks.stop, hop.network_seconds, hop.queue_seconds, hop.compute_seconds
        )
        for hop in report.hops
    )


def serve(asked: queue.SimpleQueue[bytes], setup: ProbeSetup, answer: BinaryIO) -> None:
    """Open the model, then probe once for each line that comes."""
    from ..watch.models import open_model

    def write(line: bytes) -> None:
        answer.write(line)
        answer.flush()

    try:
        write(opened_line(open_model(setup.model, setup.revision)))
    except SwarmError as error:
        write(refused_line(error))
        return
    user = SyntheticUser(setup)
    while asked.get():
        write(outcome_line(user.probe()))


def main() -> None:
    """Run the program. Answers go to the original standard output; what libraries print goes to standard error."""
    log_to_standard_error(logging.ERROR, False, "%(levelname)s %(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    setup = read_setup(sys.stdin.buffer.readline(MAX_LINE_BYTES))
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        while line := sys.stdin.buffer.readline(MAX_LINE_BYTES):
            asked.put(line)
        os._exit(0)  # the dashboard has ended, so a running probe is of no use

    threading.Thread(target=read, daemon=True, name="questions").start()
    serve(asked, setup, answer)


if __name__ == "__main__":
    main()
