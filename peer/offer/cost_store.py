"""Measured costs of steps, kept from one start to the next, see `KeptMeasurements`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ...proto.weights.kept import KeptMeasurements, machine_and_versions, number_of
from ...routing.swarm import ComputeCost

FILE_NAME = "calibration.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """The conditions of a measurement."""

    model_digest: str
    numeric_format: str
    device: str
    threads: int

    @property
    def key(self) -> str:
        """One line, which also names the machine and the versions of the libraries that compute."""
        fields = (self.model_digest, self.numeric_format, self.device, f"{self.threads} threads")
        return " | ".join([*fields, machine_and_versions("torch", "transformers", "llvmlite")])


class CostStore:
    """The measurements in one folder; the newest 64 are kept."""

    def __init__(self, folder: Path) -> None:
        self._kept = KeptMeasurements(folder / FILE_NAME)

    def load(self, measured: Measured) -> ComputeCost | None:
        """Return the cost that was measured under the same conditions, if any."""
        entry = self._kept.load(measured.key)
        if entry is None:
            return None
        try:
            return ComputeCost(**{name: number_of(value) for name, value in entry.items()})
        except (TypeError, ValueError, AttributeError) as error:
            self._kept.refuse(error)
            return None

    def save(self, measured: Measured, cost: ComputeCost) -> None:
        """Keep a measurement; a failure to write it is no reason to stop a peer."""
        self._kept.save(measured.key, asdict(cost))
