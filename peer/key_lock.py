"""One process per identity: two peers with the same key would overwrite each other's records."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..proto.errors import UsageError


@contextmanager
def exclusive_key(key_file: Path) -> Iterator[None]:
    """Lock the key file for this process; the system releases the lock when the process ends, however it ends.

    Raises UsageError if another peer on this machine holds it.
    """
    try:
        file = key_file.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {key_file}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another peer on this machine is running with the key {key_file}",
                hint="Give this one a folder of its own with --data, or a key of its own with --identity.",
            ) from None
        except OSError as error:
            raise UsageError(
                f"cannot lock {key_file}: {error.strerror}",
                hint="Put the key file on a local disk and name it with --identity.",
            ) from error
        yield
