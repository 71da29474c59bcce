"""The peers that a placement agent plans with: all of them or, in a swarm of thousands, those of its own group.

A plan over thousands of peers would need all their records at every peer.  So a large swarm is placed in groups of
some hundreds, by the shards of their records (`proto/directory/shards.py`): the members of a group all read the same
records, make the same plan, and let the group serve every block.  Clients route over all groups.  This is enough for
safety: a peer drops a block only if a witness, another server of it, is among the peers that it has read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from ...proto.directory.shards import Shards
from ...proto.directory.signed import SignedRecord

logger = logging.getLogger(__name__)


class GroupLook:
    """Reads the records of the peers to plan with, and logs when these are not all."""

    def __init__(
        self,
        lookup: Callable[[], Awaitable[Sequence[SignedRecord]]],
        shards: Callable[[], Shards],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lookup` raises SwarmError; `shards` returns the shards of the same name."""
        self._lookup = lookup
        self._shards = shards
        self._monotonic = monotonic
        self.peers = 0
        """The approximate number of peers at the last look."""
        self.planned_with = 0
        """The number of peers to plan with."""

    @property
    def is_part(self) -> bool:
        """Whether there are more peers than those to plan with."""
        return self.planned_with < self.peers

    @property
    def age_seconds(self) -> float:
        """Time since records were last read from the directory."""
        return max(self._monotonic() - self._shards().read_at, 0.0)

    async def records(self) -> Sequence[SignedRecord]:
        """Return the records of the peers to plan with. Raises SwarmError."""
        found, was_part = await self._lookup(), self.is_part
        shards = self._shards()
        group = [record for record in found if shards.in_group(record.peer_id)]
        self.planned_with = len(group)
        self.peers = max(shards.peers, len(found)) if shards.has_groups else len(found)
        if self.is_part and not was_part:
            logger.info(
                "there are about %d peers: this one plans with the %d of its group", self.peers, self.planned_with
            )
        elif was_part and not self.is_part:
            logger.info("there are %d peers: this one plans with all of them", self.peers)
        return group
