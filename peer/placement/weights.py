"""Warns the operator of peers that announce other hashes of weights for blocks that this one hosts.

It never stops this peer: a stranger's record costs nothing, and twenty of them could keep every honest peer from
serving.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ...proto.errors import describe_blocks
from ...routing.swarm import PeerId, PeerSpec
from ...routing.trust import contradicted

logger = logging.getLogger(__name__)


MAX_NAMED = 3
"""Peers that one line names; identities cost nothing, and a crowd of them must not fill the log."""


class WeightsCheck:
    """Compares this peer with the others of each look, and logs new contradictions in one line."""

    def __init__(self, proven: Mapping[int, bytes]) -> None:
        """`proven`: the hashes of blocks that this machine's own files prove."""
        self._proven = proven
        self._told: set[PeerId] = set()

    def note(self, own: PeerSpec, peers: Sequence[PeerSpec]) -> None:
        """Take in a look at the swarm; `peers` may include this one."""
        others = {peer.id: blocks for peer in peers if (blocks := contradicted(own, peer))}
        new = [peer for peer in others if peer not in self._told]
        self._told = set(others)
        if not new:
            return
        disputed = sorted({block for peer in new for block in others[peer]})
        if all(block in self._proven for block in disputed):
            reason = "whose files prove them"
        else:
            reason = "which fetched them in parts and cannot prove them: clients believe the side with more networks"
        more = f" and {len(new) - MAX_NAMED} more" if len(new) > MAX_NAMED else ""
        logger.warning(
            "peer %s%s announces other weights for %s than this one, %s",
            ", peer ".join(new[:MAX_NAMED]), more, describe_blocks(disputed), reason,
        )  # fmt: skip
