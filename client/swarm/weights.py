"""Decides which peers' weights a client believes: `routing/trust.py`, with the networks where it reached the peers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...proto.network.address import network_of
from ...routing.swarm import PeerId
from ...routing.trust import Trust, weigh

if TYPE_CHECKING:
    from .known import KnownPeer

logger = logging.getLogger(__name__)


class WeightTrust:
    """Compares the announced block hashes, once per look at the swarm."""

    def __init__(self, proven: Mapping[int, bytes]) -> None:
        """`proven`: block -> hash, as far as this machine's own files prove them."""
        self._proven = proven
        self._peers: Mapping[PeerId, KnownPeer] = {}
        self._trust = weigh((), {}, proven)

    def among(self, peers: Mapping[PeerId, KnownPeer]) -> Trust:
        """Return the trust in these peers; computed once per mapping object."""
        if peers is not self._peers:
            networks = {peer: network_of(known.address.target) for peer, known in peers.items()}
            trust = weigh([known.record.spec for known in peers.values()], networks, self._proven)
            for peer in trust.doubted.keys() - self._trust.doubted.keys():
                logger.warning("%s announces other weights than the peers that are believed, and is not used", peer)
            self._peers, self._trust = peers, trust
        return self._trust
