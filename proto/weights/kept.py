"""Measurements of earlier runs, in a program's own folder; a machine that has not changed starts faster.

A file may be of another version, or garbled: then there is nothing in it, the log says so, and it is measured again.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..files import keep_text

logger = logging.getLogger(__name__)

FORMS_FILE_NAME = "forms.json"
"""For measurements that need no blocks: numbers of threads, and forms of the weights."""
_MAX_ENTRIES = 64
_MAX_FILE_BYTES = 1 << 20


class KeptMeasurements:
    """One file of measurements, each under the conditions that it was made in; the newest 64 are kept."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, conditions: str) -> Any:
        """The value under exactly these conditions, as JSON gives it, unchecked; None if there is none."""
        return self._read().get(conditions)

    def save(self, conditions: str, value: Any) -> None:
        """Keep a measurement; that it cannot be written is no reason to stop."""
        entries = {key: kept for key, kept in self._read().items() if key != conditions}
        entries[conditions] = value
        newest = dict(list(entries.items())[-_MAX_ENTRIES:])
        try:
            keep_text(self._path, json.dumps(newest, indent=1))
        except OSError as error:
            logger.info("the measurement was not kept: %s", error)

    def refuse(self, error: object) -> None:
        """Say that a value that was loaded makes no sense."""
        logger.info("an earlier measurement in %s is not readable: %s", self._path, error)

    def _read(self) -> Mapping[str, Any]:
        try:
            if self._path.stat().st_size > _MAX_FILE_BYTES:
                raise ValueError("it is too large")
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is no table")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            logger.info("earlier measurements in %s are not readable: %s", self._path, error)
            return {}
        return content


def number_of(value: Any) -> float:
    """A number that was kept. Raises ValueError for anything else, and for one that is not finite."""
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{str(value)[:80]} is no number")
    return float(value)


def machine_and_versions(*packages: str) -> str:
    """The machine, and the versions of these packages and of ours: what measurements hold for."""
    found = []
    for package in (*packages, "blockswarm"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return " | ".join([f"{_processor_name()}, {os.cpu_count()} CPUs", *found])


def _processor_name() -> str:
    """As Linux has it: some virtual machines tell no more than a maker's name, so its instructions belong to it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = [found.get(name, "") for name in ("model name", "cpu family", "model", "stepping")]
    instructions = found.get("flags") or found.get("Features") or ""
    return f"{' '.join(model)} ({len(instructions.split())} features)"
