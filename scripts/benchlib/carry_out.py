"""From a benchmark's sections to its output: a folder for its files, the machine, tables for people, JSON, a status."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .processes import ChildFailed, command_line, describe_machine, machine

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""The rows of every section."""


def carry_out(
    program: str,
    arguments: Sequence[str],
    folder: Path | None,
    as_json: bool,
    measure: Callable[[Path], tuple[Results, Sequence[str]]],
    table: Callable[[str, Sequence[Mapping[str, Any]]], str],
) -> int:
    """Measure in `folder`, or in a temporary one, and print what came of it; the exit status.

    `measure` returns the rows, and the reasons why they are worth nothing. With `as_json` JSON goes to standard output
    and the tables to standard error.
    """
    facts, command = machine(), command_line(program, arguments)
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{program}-")))
        place.mkdir(parents=True, exist_ok=True)
        try:
            results, failures = measure(place.resolve())
        except ChildFailed as error:
            print(f"{program}: {error}", file=sys.stderr, flush=True)
            return 1
    people = sys.stderr if as_json else sys.stdout
    print(describe_machine(facts, command), end="\n\n", file=people)
    for section, rows in results.items():
        print(table(section, rows), file=people)
    if as_json:
        facts = {**facts, "load_average_after": os.getloadavg(), "command": command}
        print(json.dumps({"machine": facts, "failures": failures, **results}, indent=2))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr, flush=True)
    return 1 if failures else 0
