"""Everything about a peer that is settled before it serves, for the parts of the program that run later."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from ..proto.directory.records import PeerRecord, open_peer_record
from ..proto.directory.swarm_key import SwarmKey
from ..proto.errors import SwarmError
from ..proto.identity import Identity
from ..proto.model.checkpoint import Checkpoint
from ..proto.network.transport import Dialer
from ..routing.swarm import BlockRange, PeerSpec
from .config import PeerConfig
from .hosting import BlockSource, Hosted
from .offer.announce import Announcer
from .offer.capacity import MemoryOffer, free_memory_bytes
from .offer.cost_store import Measured
from .offer.lookups import RecentLookups
from .offer.record import HostingFacts, IdentityFacts, device_class_of
from .placement.agent import Host, PlacementAgent
from .placement.group import GroupLook
from .placement.watch import SwarmWatch
from .reach.verdict import UNCHECKED, ReachVerdict

if TYPE_CHECKING:
    from ..proto.directory.hivemind.node import HivemindDirectory
    from .engine.load import Examined

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PeerSetup:
    """Everything about a peer that is settled before it serves."""

    config: PeerConfig
    identity: Identity
    swarm_key: SwarmKey | None
    checkpoint: Checkpoint
    model_digest: str
    dialer: Dialer
    directory: HivemindDirectory
    lookups: RecentLookups
    examined: Examined
    offer: MemoryOffer
    source: BlockSource
    announcer: Announcer
    watch: SwarmWatch
    maddrs: tuple[str, ...]
    """Addresses of this peer's DHT node."""
    incarnation: int
    clock: Callable[[], float] = time.time
    free_bytes: Callable[[], int] = free_memory_bytes
    """Reads the free memory, in bytes, of the device with the blocks."""
    first_verdict: ReachVerdict = UNCHECKED
    """Whether this peer was reached when it joined."""
    dht_port: int = 0
    """The port of its DHT node; 0: not known."""
    group: GroupLook | None = None
    """Looks at the peers that it plans with; in a large swarm, only some of all peers."""

    async def others(self) -> list[PeerRecord]:
        """Return the records of the other peers, from a recent look. Raises SwarmError."""
        found = []
        for record in await self.lookups.records():
            if record.peer_id != self.identity.peer_id:
                try:
                    found.append(open_peer_record(record, self.swarm_key))
                except SwarmError as error:
                    logger.debug("a record is ignored: %s", error)
        return found

    @property
    def identity_facts(self) -> IdentityFacts:
        config, examined = self.config, self.examined
        name, memory_bytes = examined.gpu or (None, None)
        device_class = device_class_of(name, memory_bytes, examined.threads) if config.tell_device else ""
        return IdentityFacts(self.identity.peer_id, self.model_digest, self.incarnation, config.name, device_class)

    def hosting_facts(
        self, blocks: BlockRange | None, block_hashes: tuple[bytes, ...], load_seconds: float = 0.0, rests: bool = False
    ) -> HostingFacts:
        """`rests`: the peer keeps its blocks for a while, though the operator chose none."""
        offer, asked = self.offer, self.config.blocks
        return HostingFacts(
            blocks=blocks,
            block_hashes=block_hashes,
            numeric_format=self.examined.numeric_format,
            stream_format=self.examined.dtype,
            memory_bytes=offer.total_bytes,
            block_bytes=offer.block_bytes,
            kv_bytes_per_token=offer.kv_bytes_per_token,
            max_blocks=asked.count,
            blocks_fixed=asked.blocks is not None or rests,
            size_fixed=asked.count is not None,
            load_seconds=load_seconds,
        )

    def described(self, blocks: BlockRange) -> Mapping[str, str]:
        """Labels that describe this peer to an operator of many."""
        return {
            "version": version("blockswarm"),
            "peer_id": self.identity.peer_id,
            "model": self.config.model_name,
            "model_digest": self.model_digest,
            "blocks": str(blocks),
            "numeric_format": self.examined.numeric_format,
            "device": self.examined.device_description,
        }

    @property
    def measured(self) -> Measured:
        """The conditions under which costs are measured."""
        examined = self.examined
        form = f"{examined.dtype} {examined.forms.name}"
        return Measured(self.model_digest, form, examined.device_description, examined.threads)

    def agent_for(self, host: Host[Hosted], own: Callable[[], PeerSpec]) -> PlacementAgent[Hosted]:
        """Return the placement agent that moves the blocks of `host`; `own` returns this peer's current spec."""
        return PlacementAgent(
            self.identity.peer_id, host, lambda: self.watch.snapshot(own), self.announcer.renew, self.config.timing,
            self.clock, random.Random(self.incarnation),
        )  # fmt: skip
