"""A file that is replaced is the old one or the new one, on a full disk and after a kill, and no scrap stays."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from blockswarm.peer.join import RememberedPeers
from blockswarm.peer.reach.ports import Ports, RememberedPorts
from blockswarm.proto.errors import UsageError
from blockswarm.proto.files import keep_text, write_whole
from blockswarm.proto.model.fetched import Listing, RemoteFile, remember
from blockswarm.proto.model.hashes import HashMemory
from blockswarm.proto.weights.kept import KeptMeasurements
from blockswarm.routing.swarm import PeerId
from support.full_disk import full_disk
from support.sources import package_files, relative_path

REPLACES_FILES = re.compile(
    r"\bos\.(replace|rename)\b|NamedTemporaryFile|mkstemp|\.write_(text|bytes)\(|\b(scratch|path)\.replace\("
)
KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from blockswarm.proto.files import write_whole

def write(target):
    target.write(b"half of it")
    target.flush()
    {stop}

write_whole(Path(sys.argv[1]), write)
"""


def peers_met(folder: Path, number: int) -> None:
    RememberedPeers(folder, "digest", None).save([f"/ip4/192.0.2.{number}/tcp/1"])


def ports_used(folder: Path, number: int) -> None:
    RememberedPorts(folder, PeerId("alice-" + "a" * 20)).save(Ports(number, number))


def measurements(folder: Path, number: int) -> None:
    KeptMeasurements(folder / "kept.json").save("now", number)


def hashes(folder: Path, number: int) -> None:
    weights = folder.parent / "weights"
    weights.touch()
    os.utime(weights, (number, number))
    HashMemory(folder, min_bytes=0).hashes(weights, [])


def listing(folder: Path, number: int) -> None:
    folder.mkdir(exist_ok=True)
    remember(folder, "main", Listing("a" * 40, {"config.json": RemoteFile(number, None)}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("free_bytes", [0, 10])
@pytest.mark.parametrize("save", [peers_met, ports_used, measurements, hashes, listing])
def test_what_was_kept_stays_on_a_full_disk(save: Callable[[Path, int], None], free_bytes: int, tmp_path: Path) -> None:
    """None of these stops its program but the listing, without which a download makes no sense."""
    folder = tmp_path / "kept"
    save(folder, 1)
    before = contents(folder)
    refused = pytest.raises(UsageError, match="File too large") if save is listing else nullcontext()
    with full_disk(free_bytes), refused:
        save(folder, 2)
    assert contents(folder) == before
    save(folder, 3)
    assert contents(folder).keys() == before.keys()
    assert contents(folder) != before


def test_what_the_writer_raises_comes_through_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(target: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, write)
    assert contents(tmp_path) == {"file": b"old"}


def test_a_file_has_the_rights_that_the_user_gives_to_new_files(tmp_path: Path) -> None:
    """A web server of another user reads what is exported, and the cache of fetched blocks may be shared."""
    (tmp_path / "ordinary").touch()
    keep_text(tmp_path / "ours", "text")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def scratch_of(path: Path, stop: str) -> subprocess.Popen[bytes]:
    """A process in the middle of writing the file; `stop` is what it does there."""
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER.format(stop=stop), path], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert writer.stdout is not None
    writer.stdout.read(1)  # a byte, or the end of the process
    return writer


@pytest.mark.skipif(sys.platform != "linux", reason="needs flock")
def test_the_scratch_file_of_a_killed_process_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "block-[0].safetensors"
    with scratch_of(path, "os.kill(os.getpid(), signal.SIGKILL)"):
        pass
    assert len(contents(tmp_path)) == 1
    keep_text(path, "whole")
    assert contents(tmp_path) == {path.name: b"whole"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs flock")
def test_the_scratch_file_of_a_process_that_still_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with scratch_of(path, "os.write(1, b'.'); sys.stdin.read()") as writer:
        keep_text(path, "first")
        assert len(contents(tmp_path)) == 2
    assert writer.returncode == 0
    assert contents(tmp_path) == {"file": b"half of it"}


def test_no_other_module_replaces_files() -> None:
    """Each would have to clean up after itself, and some did not; tables of the simulator go where the user says."""
    found = {relative_path(path) for path in package_files() if REPLACES_FILES.search(path.read_text(encoding="utf-8"))}
    assert found == {"proto/files.py", "routing/sim/cli.py"}
