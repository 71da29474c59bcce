"""The log of a program, as a process of its own writes it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import io, logging, sys
from blockswarm.proto.logs import log_to_standard_error
log_to_standard_error(logging.INFO, {verbose}, "%(levelname)s %(message)s")
own, foreign = logging.getLogger("blockswarm.peer.node"), logging.getLogger("grpc._cython.cygrpc")
own.debug("our detail")
own.info("our news")
foreign.debug("their detail")
foreign.info("their news")
foreign.warning("their warning")
screen, sys.stderr = sys.stderr, io.StringIO()
own.info("beside a bar")
sys.stdout.write(sys.stderr.getvalue())
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_more_words_are_about_us(verbose: bool) -> None:
    """gRPC's pollers and asyncio's selectors help nobody who asks what a peer does."""
    program = [sys.executable, "-c", PROGRAM.format(verbose=verbose)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60)
    detail = ["DEBUG our detail"] if verbose else []
    assert done.stderr.splitlines() == [*detail, "INFO our news", "WARNING their warning"]
    assert done.stdout == "INFO beside a bar\n", "a bar that is shown keeps its line"
