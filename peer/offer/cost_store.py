"""Start-up measurements of earlier runs, in the peer's own folder; a machine that has not changed starts faster.

The file may be of another version, or garbled: then there is nothing in it, and the peer measures.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ...routing.swarm import ComputeCost

logger = logging.getLogger(__name__)

FILE_NAME = "calibration.json"
_MAX_ENTRIES = 64
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """The conditions of a measurement."""

    model_digest: str
    numeric_format: str
    device: str
    threads: int

    @property
    def key(self) -> str:
        """One line; also names the machine and the versions of what computes."""
        versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "blockswarm")]
        machine = f"{_processor_name()}, {os.cpu_count()} CPUs"
        fields = (self.model_digest, self.numeric_format, self.device, f"{self.threads} threads")
        return " | ".join([*fields, machine, *versions])


class CostStore:
    """The measurements in one folder; the newest 64 are kept."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    def load(self, measured: Measured) -> ComputeCost | None:
        """The cost that was measured under the same conditions, if any."""
        entry = self._read().get(measured.key)
        if entry is None:
            return None
        try:
            return ComputeCost(**{name: float(value) for name, value in entry.items()})
        except (TypeError, ValueError, AttributeError) as error:
            logger.info("an earlier measurement in %s is not readable: %s", self._path, error)
            return None

    def save(self, measured: Measured, cost: ComputeCost) -> None:
        """Keep a measurement; that it cannot be written is no reason to stop a peer."""
        measured_key = measured.key  # reads files: once, not once an entry
        entries = {key: value for key, value in self._read().items() if key != measured_key}
        entries[measured_key] = asdict(cost)
        newest = dict(list(entries.items())[-_MAX_ENTRIES:])
        scratch = self._path.with_name(f"{FILE_NAME}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(newest, indent=1), encoding="utf-8")
            scratch.replace(self._path)
        except OSError as error:
            logger.info("the measurement was not kept: %s", error)

    def _read(self) -> Mapping[str, dict[str, float]]:
        try:
            if self._path.stat().st_size > _MAX_FILE_BYTES:
                return {}
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.info("earlier measurements in %s are not readable: %s", self._path, error)
            return {}
        return content if isinstance(content, dict) else {}


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
