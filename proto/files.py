"""Files that appear whole or not at all, whatever stops the program or fills the disk.

The new content is written to a scratch file in the same folder, which then takes the file's place in one step.  A
write that fails deletes its scratch file.  That of a process that was killed stays until the same file is written
again: a writer locks its own (`flock`, where there is such a thing), so a scratch file without a lock is nobody's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: files that are open cannot be deleted there
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".part"


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file, or make it, with what `write` writes. Raises OSError, and what `write` raises."""
    _delete_abandoned(path)
    scratch, target = _locked_scratch(path)
    try:
        with target:
            write(target)
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink()
        raise


def keep_bytes(path: Path, content: bytes) -> None:
    """As `write_whole`, in a folder that is made if need be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda target: target.write(content))


def keep_text(path: Path, text: str) -> None:
    """As `keep_bytes`, in UTF-8. Raises OSError."""
    keep_bytes(path, text.encode())


def _locked_scratch(path: Path) -> tuple[Path, IO[bytes]]:
    """A new scratch file for `path`, open and locked. Raises OSError."""
    while True:
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
        target = scratch.open("xb")
        if fcntl is not None:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(target, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, target
        target.close()  # another writer came between the two steps, and took it for abandoned


def _delete_abandoned(path: Path) -> None:
    """Delete the scratch files that killed processes left of this file."""
    if fcntl is None:
        return
    for scratch in path.parent.glob(f".{escape(path.name)}.*{_SUFFIX}"):
        with suppress(OSError), scratch.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its writer lives, or without locks
            scratch.unlink()
