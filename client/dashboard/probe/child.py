"""The dashboard's handle of the probe program: starts it when needed, asks it, and kills it when it is late."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress

from ....proto.errors import DeadlineExceeded, RetryElsewhere, SwarmError
from ...survey.survey import ModelName
from .messages import MAX_LINE_BYTES, ProbeOutcome, ProbeSetup, read_opened, read_outcome, setup_line

ENDED = "probe-ended"
"""The code of a probe whose program ended before it answered."""


class ProbeProgram:
    """One probe program for one model; also an asynchronous context manager. One question at a time."""

    def __init__(self, setup: ProbeSetup, *, open_seconds: float, probe_seconds: float) -> None:
        """The two time-outs are for opening the model and for a probe."""
        self._setup = setup
        self._open_seconds = open_seconds
        self._probe_seconds = probe_seconds
        self._process: asyncio.subprocess.Process | None = None

    async def open(self) -> ModelName:
        """Start the program and wait until it has opened the model.

        Raises the SwarmError that the program reports, DeadlineExceeded, or RetryElsewhere if it ended.
        """
        await self.close()
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "blockswarm.client.dashboard.probe.program",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES,
            start_new_session=os.name == "posix",  # Ctrl-C is for the dashboard
        )  # fmt: skip
        line = await self._asked(process, setup_line(self._setup), self._open_seconds)
        try:
            return read_opened(line)
        except SwarmError:
            await self.close()
            raise

    async def probe(self) -> ProbeOutcome:
        """Have the program generate. Never raises: the outcome has the error."""
        began = time.perf_counter()
        try:
            if self._process is None:
                await self.open()
            assert self._process is not None
            return read_outcome(await self._asked(self._process, b"probe\n", self._probe_seconds))
        except SwarmError as error:
            code = ENDED if type(error) is RetryElsewhere else error.code
            return ProbeOutcome(code, time.perf_counter() - began)

    async def _asked(self, process: asyncio.subprocess.Process, question: bytes, seconds: float) -> bytes:
        """Return the answer to a question. Kills a program that gives none; the next probe starts another one."""
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(question)
                await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError:
            raise DeadlineExceeded(f"the program that probes gave no answer within {seconds:.0f} s") from None
        except (ConnectionError, ValueError):
            pass  # the program has ended, or has written a line that is too long
        finally:
            if not line.endswith(b"\n"):
                await self.close()
        if not line.endswith(b"\n"):
            raise RetryElsewhere("the program that probes has ended")
        return line

    async def close(self) -> None:
        """Kill the program if it runs. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def __aenter__(self) -> ProbeProgram:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
