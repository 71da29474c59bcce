"""Peers that join in the middle of a text with something wrong in them, and a peer that is killed while it moves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ..processes import SCRIPTS
from .links import Rule
from .play import CaseFailed, Moment, until
from .sight import blocks_seen_by, seen_by
from .world import MODEL, PLAIN, Node, Spec, World, exit_of

ODD = ("-m", "benchlib.breaking.odd_peer")
SMALL_DISK_BYTES = 8 << 20
MOVE_SECONDS = 100.0


def odd(kind: str, blocks: str, *options: str) -> Spec:
    """A peer that is made by odd_peer.py."""
    return Spec(blocks, options, program=(*ODD, *kind.split(), "--"), forked="clock" not in kind)


# --- a disk that gets full ---


def small_disk(world: World) -> Path:
    """A file system of its own with little room. Raises CaseFailed where none can be mounted."""
    folder = world.folder / "small-disk"
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise CaseFailed(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    world.cleanups.append(lambda: subprocess.run(["umount", "-l", str(folder)], check=False))
    return folder


def join_with_a_full_disk(moment: Moment) -> None:
    """The disk has room when the peer begins, and none any more when it fetches its blocks."""
    world = moment.world
    disk = small_disk(world)
    node = world.join(
        Spec("4:8", model=hub_model(world, MODEL), environment=hub_environment(world, disk), forked=False)
    )
    until(lambda: "importing torch" in node.log_text(), "the peer has looked at its disk")
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(1 << 16))


def hub_model(world: World, folder: Path, pretends: Path | None = None) -> str:
    """Serve a folder as a hub until the fault is over; the name of the model there.

    The hub of the tests, which may say that the files are those of another folder.
    """
    if str(SCRIPTS.parent / "tests") not in sys.path:
        sys.path.append(str(SCRIPTS.parent / "tests"))
    from support.fake_hub import MODEL_ID, listing_of, serve_hub

    serving = contextlib.ExitStack()
    hub = serving.enter_context(serve_hub(folder))
    if pretends is not None:
        hub.listing = json.dumps(listing_of(pretends)).encode()
    world.cleanups.append(serving.close)
    _endpoints[world.folder] = hub.endpoint
    return str(MODEL_ID)


_endpoints: dict[Path, str] = {}
"""The hub that is served now, by folder of the world."""


def hub_environment(world: World, cache: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": _endpoints[world.folder], "HF_HUB_OFFLINE": "0", "XDG_CACHE_HOME": str(cache)}


# --- damaged weights ---


def damaged_copy(world: World) -> Path:
    """The demo model with one bit changed in each matrix of its last blocks."""
    from blockswarm.proto.model.checkpoint import open_checkpoint

    folder = world.folder / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(MODEL, folder)
    checkpoint = open_checkpoint(str(MODEL))
    for block in range(4, 8):
        tensor = next(t for t in checkpoint.block_tensors(block) if t.name.endswith("mlp.down_proj.weight"))
        content = bytearray((folder / tensor.file).read_bytes())
        content[tensor.start + 5003] ^= 0x40  # the highest bit of an exponent: everybody would see it in the text
        (folder / tensor.file).write_bytes(content)
    return folder


def damaged_peer(world: World) -> None:
    """A peer to which a hub has sent other weights than it says serves them in the swarm."""
    model = hub_model(world, damaged_copy(world), pretends=MODEL)
    cache = world.folder / "hub-cache"
    shutil.rmtree(cache, ignore_errors=True)
    world.wait_for(world.join(Spec("4:8", model=model, environment=hub_environment(world, cache), forked=False)))


def kill_all_but_the_damaged(moment: Moment) -> None:
    for node in moment.world.running():
        if node.blocks == "4:8" and node not in moment.world.joiners:
            node.signal(signal.SIGKILL)


def join_with_a_damaged_folder(moment: Moment) -> None:
    moment.world.join(Spec("4:8", model=str(damaged_copy(moment.world))))


def join_with_a_wrong_clock(moment: Moment) -> None:
    moment.world.join(odd("clock 60", "4:8"))


def is_refused(moment: Moment) -> str:
    """The peer that wanted to join ends, with its reason."""
    said = exit_of(moment.world.joiners[0])
    moment.world.heal()
    if not said:
        raise CaseFailed("the peer has ended without an error in words")
    return f"the peer ends: {said}"


def as_before(moment: Moment) -> str:
    """The usual peers are there again, and seen by each other, before the next text: that begins without waiting."""
    moment.world.heal()
    moment.world.arrange(PLAIN)
    nodes = moment.world.running()
    peers = {node.peer_id for node in nodes}
    seconds = until(lambda: all(seen_by(node) >= peers for node in nodes), "all peers are seen by all")
    return f"the peers that were started again were seen by all {seconds:.0f} s after they served"


# --- a peer that moves ---


def movers(load_seconds: float) -> tuple[Spec, ...]:
    """Two peers whose operators chose the halves, and one that is placed, and loads slowly."""
    return Spec("0:4"), Spec("4:8"), odd(f"slow-load {load_seconds}", "4")


def mover_of(world: World) -> Node:
    (mover,) = [node for node in world.running() if node.spec.blocks == "4"]
    return mover


def mover_is_near(world: World) -> None:
    """The text uses the peer that is going to move, and the peer whose place it will take."""
    mover = mover_of(world)
    far = [node for node in world.running() if node.blocks == mover.blocks and node is not mover]
    if mover.blocks not in ("0:4", "4:8"):
        raise CaseFailed(f"the placed peer has taken blocks {mover.blocks}")
    world.links.apply(*(Rule(peer=node.line, held=False, delay_seconds=0.1) for node in far))


def have_it_move(world: World) -> None:
    """The only other peer of the other half is asked to stop, and stays until that half is taken over."""
    mover = mover_of(world)
    (leaver,) = [node for node in world.running() if node.blocks != mover.blocks]
    leaver.leaves = True
    os.kill(leaver.pid, signal.SIGTERM)
    claimed = re.compile(r"claim blocks \S+ in place of \d")
    until(lambda: claimed.search(mover.log_text()), "the placed peer claims the blocks", MOVE_SECONDS)


def kill_mover(moment: Moment) -> None:
    moment.world.links.apply()
    mover = mover_of(moment.world)
    if re.search(r"serve blocks \S+ in place of \d", mover.log_text()):
        raise CaseFailed("the peer has moved already")
    mover.signal(signal.SIGKILL)


def kill_mover_when_it_has_moved(moment: Moment) -> None:
    """Its record says so; sessions are still on the blocks that it had."""
    moment.world.links.apply()
    mover = mover_of(moment.world)
    until(lambda: re.search(r"serve blocks \S+ in place of \d", mover.log_text()), "the peer has moved", MOVE_SECONDS)
    until(lambda: _says_so(moment.world, mover), "the record says so", 20.0)
    mover.signal(signal.SIGKILL)


def _says_so(world: World, mover: Node) -> bool:
    other = next(node for node in world.running() if node is not mover)
    return blocks_seen_by(other).get(mover.peer_id, mover.blocks) != mover.blocks
