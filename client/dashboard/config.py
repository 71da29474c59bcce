"""The configuration of a dashboard: which swarms it watches, and where it is served."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...proto.errors import UsageError
from ...proto.network.address import PeerAddress
from ..program.options import SwarmOptions
from .probe.messages import ProbeSetup
from .timing import DashboardTiming

MOST_MODELS = 16
PROBE_TOKENS = 8
HISTORY_FILE = "dashboard.sqlite"


@dataclass(frozen=True)
class DashboardConfig:
    """One dashboard."""

    swarm: SwarmOptions
    models: tuple[str, ...] = ()
    """Local folders, or hub ids "owner/name"; none: the models that the initial peers say they serve."""
    swarm_key_file: Path | None = None
    """The file that `swarm.swarm_key` was read from; the probe program reads it again."""
    data: Path | None = None
    """The folder of the history; None: no history is kept."""
    join_addresses: tuple[str, ...] = ()
    """Addresses of peers that the page shows to people who want to join."""
    host: str = "127.0.0.1"
    port: int = 8080
    """0: any free port."""
    timing: DashboardTiming = field(default_factory=DashboardTiming)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port must be between 0 and 65535, not {self.port}")
        for address in self.join_addresses:
            PeerAddress.parse(address)
        if len(self.models) > MOST_MODELS:
            raise UsageError(f"a dashboard shows at most {MOST_MODELS} models, not {len(self.models)}")
        if self.swarm.swarm_key is not None and not self.models:
            raise UsageError(
                "the peers of a private swarm do not say which model they serve",
                hint="Name the model with --model FOLDER_OR_ID.",
            )

    @property
    def join_options(self) -> tuple[str, ...]:
        """The options that a peer needs, too, to be of the same swarms; the place of the key is not told."""
        key = ("--swarm-key", "KEY_FILE") if self.swarm.swarm_key is not None else ()
        revision = ("--revision", self.swarm.revision) if self.swarm.revision is not None else ()
        return key + revision

    def probe_of(self, model: str) -> ProbeSetup:
        """Return the setup of the program that probes a model."""
        swarm = self.swarm
        return ProbeSetup(
            model=model,
            revision=swarm.revision,
            initial_peers=tuple(map(str, swarm.initial_peers)),
            swarm_key=str(self.swarm_key_file) if self.swarm_key_file is not None else None,
            identity=str(swarm.identity) if swarm.identity is not None else None,
            lan=swarm.lan,
            tokens=PROBE_TOKENS,
            patience_seconds=swarm.patience_seconds,
        )
