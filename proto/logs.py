"""The log of a program, on standard error: its own lines, and of its libraries only what matters."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TextIO

OWN = "blockswarm"


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the standard error of the moment: progress bars put their own in its place while they are shown."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """It is always that of the moment."""


def print_whatever_comes() -> None:
    """Have standard output show what it has no letters for as escapes: a name of a file is no reason to end."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def log_to_standard_error(level: int, verbose: bool, form: str) -> None:
    """Show lines of this project from `level` on, with `verbose` all of them; of libraries warnings at most.

    Where a log is set up already, as in tests, it stays as it is.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if logging.root.handlers:
        return
    handler = _StandardError()
    handler.setFormatter(logging.Formatter(form))
    logging.root.addHandler(handler)
    logging.root.setLevel(max(level, logging.WARNING))
    logging.getLogger("transformers").setLevel(max(level, logging.WARNING))  # it has a handler of its own
    logging.getLogger(OWN).setLevel(logging.DEBUG if verbose else level)
