"""How the programs end: the status that tells a service manager whether starting again can help.

`GIVEN_UP` is the table.  A status of IN_VAIN is for what a person has to change on this machine; the units of
docs/units do not start a program again after it.  Everything that others may change meanwhile is MAY_PASS, also where
it seldom does: another version of the protocol, until the others are updated; a clock, until it is synchronised; an
address at which another node answers, until its owner is back; memory, until another program ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from enum import IntEnum

from .errors import (
    AuthenticationError,
    ClockSkew,
    GiveUp,
    ModelMismatch,
    NoChainError,
    OutOfMemory,
    ProtocolError,
    RetryElsewhere,
    SwarmError,
    UnsupportedModel,
    UsageError,
    WrongKey,
    WrongSwarm,
)


class ExitStatus(IntEnum):
    """The exit statuses of all programs but `swarm-sim`, which has 3 for an infeasible scenario, too."""

    DONE = 0
    MAY_PASS = 1
    IN_VAIN = 2
    INTERRUPTED = 130


GIVEN_UP: Mapping[type[SwarmError], ExitStatus] = {
    SwarmError: ExitStatus.MAY_PASS,
    UsageError: ExitStatus.IN_VAIN,
    RetryElsewhere: ExitStatus.MAY_PASS,
    GiveUp: ExitStatus.MAY_PASS,
    NoChainError: ExitStatus.MAY_PASS,
    WrongSwarm: ExitStatus.MAY_PASS,
    AuthenticationError: ExitStatus.MAY_PASS,
    WrongKey: ExitStatus.IN_VAIN,
    ModelMismatch: ExitStatus.IN_VAIN,
    ClockSkew: ExitStatus.MAY_PASS,
    UnsupportedModel: ExitStatus.IN_VAIN,
    OutOfMemory: ExitStatus.MAY_PASS,
    ProtocolError: ExitStatus.MAY_PASS,
}
"""The status for an error that ends a program; a class that is not here has that of its nearest base."""


def exit_status(error: SwarmError) -> ExitStatus:
    return next(GIVEN_UP[base] for base in type(error).__mro__ if base in GIVEN_UP)


def run_program(program: str, work: Callable[[], object]) -> None:
    """Run a console script, and write what it has printed before it ends.

    Python itself does that last of all: where it cannot, it complains in words of its own, with a status of its own.
    """
    try:
        work()
    except KeyboardInterrupt:  # before the program has begun with what it was told to do
        raise SystemExit(ExitStatus.INTERRUPTED) from None
    finally:
        write_output(program)


def write_output(program: str) -> None:
    """Write what was printed. Raises SystemExit, with a line on standard error, if that cannot be done."""
    try:
        if sys.stdout is not None:  # a program that was started without one has none
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more
        if not isinstance(error, BrokenPipeError):  # a reader that has read enough is no fault
            hint = "Make room where it is written, or write it elsewhere."
            print(f"{program}: standard output cannot be written: {error.strerror}\n  {hint}", file=sys.stderr)
        raise SystemExit(ExitStatus.MAY_PASS) from None
