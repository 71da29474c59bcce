"""Contains errors in what a peer sends: a peer may send anything, and a fault in it is that peer's alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..proto.errors import DeadlineExceeded, PeerUnavailable, RemoteProtocolError, SessionLost, SwarmError

logger = logging.getLogger(__name__)


@contextmanager
def blamed_on(peer: object) -> Iterator[None]:
    """Log an unexpected error in reading what `peer` sent, and raise it as RemoteProtocolError.

    The codecs refuse what they recognise as wrong; this catches the rest. `peer` is named by its `str`.
    """
    try:
        yield
    except SwarmError:
        raise
    except Exception as error:
        logger.warning("%s: its answer cannot be used", peer, exc_info=True)
        raise RemoteProtocolError(f"{peer}: its answer cannot be used ({error!r})") from error


def is_silence(error: SwarmError) -> bool:
    """Return whether a dead connection, or a failure of this machine's own network, would explain the error as well."""
    return type(error) in (PeerUnavailable, DeadlineExceeded, SessionLost)
