"""A peer may say anything: an error in reading it concerns that peer, and nobody else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..proto.errors import DeadlineExceeded, PeerUnavailable, RemoteProtocolError, SessionLost, SwarmError

logger = logging.getLogger(__name__)


@contextmanager
def blamed_on(peer: object) -> Iterator[None]:
    """Make RemoteProtocolError, with a line in the log, of an error that is not expected in reading what `peer` said.

    The codecs refuse what they can tell is wrong; this is for the rest. `peer` is named by its `str`.
    """
    try:
        yield
    except SwarmError:
        raise
    except Exception as error:
        logger.warning("%s: its answer cannot be used", peer, exc_info=True)
        raise RemoteProtocolError(f"{peer}: its answer cannot be used ({error!r})") from error


def is_silence(error: SwarmError) -> bool:
    """Whether a peer was lost in a way that a dead connection, or this machine's own network, explains as well."""
    return type(error) in (PeerUnavailable, DeadlineExceeded, SessionLost)
