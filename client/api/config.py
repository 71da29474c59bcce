"""The configuration of an endpoint: its models, its address, and its limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ...proto.errors import UsageError
from ..program.options import SwarmOptions

MAX_NAME_CHARS = 256


@dataclass(frozen=True)
class ModelConfig:
    """One model and its swarm."""

    model: str
    """A local folder, or a hub's "owner/name"."""
    name: str
    """The name in requests."""
    swarm: SwarmOptions
    max_length: int | None = None
    """The most tokens of a prompt and its answer together; None: the model's own limit."""
    default_max_tokens: int = 1024
    """The most tokens of an answer whose request sets no limit."""

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= MAX_NAME_CHARS or not self.name.isprintable():
            raise UsageError(f"--name must have 1 to {MAX_NAME_CHARS} printable characters")
        check_between("--max-length", self.max_length, 2, 1 << 24)
        check_between("--default-max-tokens", self.default_max_tokens, 1, 1 << 20)


@dataclass(frozen=True)
class EndpointConfig:
    """One endpoint."""

    models: tuple[ModelConfig, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    max_running: int = 16
    """The most requests that generate at the same time, each in a thread."""
    max_queue: int = 256
    """The most requests that wait for their turn."""
    keys: Path | None = None
    """The file of the API keys; None: no key is needed."""
    allowed_origins: tuple[str, ...] = ()
    """Other origins whose web pages may send requests."""

    def __post_init__(self) -> None:
        check_between("--port", self.port, 0, 65535)
        check_between("--max-running", self.max_running, 1, 1024)
        check_between("--max-queue", self.max_queue, 0, 1 << 20)
        names = [model.name for model in self.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            hint = "Give each model a name of its own: name = in its [[models]]."
            raise UsageError(f"two models have the same name, {twice}", hint=hint)

    @property
    def public(self) -> bool:
        """Whether other machines may be able to reach the endpoint."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    @property
    def warning(self) -> str | None:
        """A warning for the operator of an endpoint that anybody can use; None if there is nothing to warn of."""
        if not self.public or self.keys is not None:
            return None
        return f"anybody who reaches {self.host} can use the swarm through this endpoint: give --keys FILE"


def check_between(option: str, value: int | None, low: int, high: int) -> None:
    """Raise UsageError unless `low` <= `value` <= `high`, or `value` is None."""
    if value is not None and not low <= value <= high:
        raise UsageError(f"{option} must be between {low} and {high}, not {value}")


def usual_name(model: str) -> str:
    """Return the default name of a model: a hub's id as it is, or a folder's own name without its path."""
    path = Path(model)
    return (path.resolve().name or model) if path.is_dir() else model
