"""Faults as they happen to a running chain: to its processes, its lines, its DHT and its peers' clocks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil

from .links import Rule
from .play import CaseFailed, Moment, until
from .sight import seen_by
from .world import Node, World

Act = Callable[[Moment], None]

SEEN_SECONDS = 120.0
FAR_SECONDS = 0.3
"""Delay of a peer that is not to be chosen."""


def used(moment: Moment) -> Node:
    return moment.chain[-1]


# --- processes ---


def kill(moment: Moment) -> None:
    used(moment).signal(signal.SIGKILL)


def freeze(moment: Moment) -> None:
    used(moment).signal(signal.SIGSTOP)


def freeze_for(seconds: float) -> Act:
    def act(moment: Moment) -> None:
        freeze(moment)
        moment.world.later(seconds, lambda: used(moment).signal(signal.SIGCONT))

    return act


def freeze_both(moment: Moment) -> None:
    for node in moment.chain[:2]:
        node.signal(signal.SIGSTOP)


def tenth_of_the_time(moment: Moment) -> None:
    """The used peer runs for 10 ms of every 100 ms."""
    node = used(moment)

    def turn() -> None:
        node.signal(signal.SIGCONT)
        time.sleep(0.01)
        node.signal(signal.SIGSTOP)

    moment.world.repeat(turn, 0.09)


def kill_daemon(moment: Moment) -> None:
    used(moment).daemon().kill()


def freeze_daemon(moment: Moment) -> None:
    used(moment).daemon().suspend()


def kill_first(moment: Moment) -> None:
    first(moment.world).signal(signal.SIGKILL)


def kill_relay(moment: Moment) -> None:
    """The relay through which the client reaches the last peer."""
    relay = moment.relays[-1]
    if relay is None:
        raise CaseFailed("the last peer is not reached through a relay")
    moment.world.nodes[relay].signal(signal.SIGKILL)


def three_at_once(moment: Moment) -> None:
    """A used peer is killed, the other one stands still, and all connections of the client are reset."""
    kill(moment)
    moment.chain[0].signal(signal.SIGSTOP)
    reset_all(moment)


def begin_oddity(moment: Moment) -> None:
    """A peer that was made for it begins to lie, or its clock is set; its twin is as near as it is again."""
    odd = [node for node in moment.chain if "benchlib.breaking.odd_peer" in node.spec.program]
    if not odd:
        raise CaseFailed("the odd peer is not in the chain")
    os.kill(odd[0].pid, signal.SIGUSR1)
    moment.world.links.apply()


# --- lines ---


def half_open(moment: Moment) -> None:
    """The client's connection to a peer stands, and nothing comes through."""
    moment.world.links.apply(Rule(dialler=moment.client, peer=moment.chain[0].line))


def unplug(moment: Moment) -> None:
    """A peer's network is away for good: nothing to it, nothing from it."""
    moment.world.links.apply(Rule(peer=used(moment).line), Rule(dialler=used(moment).pid))


def partition(moment: Moment) -> None:
    """Two neighbours do not reach each other; the client reaches both."""
    first, second = moment.chain[:2]
    moment.world.links.apply(Rule(first.pid, second.line), Rule(second.pid, first.line))


def reset_all(moment: Moment) -> None:
    """Every connection of the client breaks; new ones are possible."""
    moment.world.links.cut(Rule(dialler=moment.client))


def answers(delay_seconds: float = 0.0, bytes_per_second: float = 0.0, flip: bool = False) -> Act:
    """The used peer's answers come late, in drops, or changed."""

    def act(moment: Moment) -> None:
        rule = Rule(
            peer=used(moment).line,
            held=False,
            delay_seconds=delay_seconds,
            bytes_per_second=bytes_per_second,
            flip=flip,
        )
        moment.world.links.apply(rule)

    return act


def client_away(seconds: float) -> Act:
    def act(moment: Moment) -> None:
        moment.world.links.apply(Rule(dialler=moment.client))
        moment.world.later(seconds, moment.world.links.apply)

    return act


def peer_away(seconds: float) -> Act:
    def act(moment: Moment) -> None:
        unplug(moment)
        moment.world.later(seconds, moment.world.links.apply)

    return act


def last_connection(moment: Moment) -> None:
    """The client's open connection to a peer is dead, nobody else has its blocks, and the peer itself is well."""
    near = moment.chain[0]
    for node in moment.world.running():
        if node.blocks == near.blocks and node is not near:
            node.signal(signal.SIGSTOP)
    moment.world.links.apply(Rule(moment.client, near.line, opened_before=time.monotonic()))


# --- before a text ---


def first(world: World) -> Node:
    """The peer that began the swarm."""
    return next(node for node in world.nodes.values() if "--new-swarm" in node.arguments)


def remembered(world: World) -> None:
    """A swarm with the peer that began it, which has written down whom it met."""
    if not any("--new-swarm" in node.arguments for node in world.running()):
        specs = [node.spec for node in world.nodes.values()]
        world.arrange(())
        world.arrange(specs)
    folder = first(world).folder
    others = [node.peer_id for node in world.running() if node is not first(world)]
    until(
        lambda: any(other in path.read_text() for path in folder.glob("peers-*.json") for other in others),
        "the first peer remembers others",
    )


def odd_is_near(world: World) -> None:
    """The twins of the odd peer are far away, so that it is chosen."""
    (odd,) = [node for node in world.running() if "benchlib.breaking.odd_peer" in node.spec.program]
    far = [node for node in world.running() if node.blocks == odd.blocks and node is not odd]
    world.links.apply(*(Rule(peer=node.line, held=False, delay_seconds=FAR_SECONDS) for node in far))


def two_relays(world: World) -> None:
    (hidden,) = [node for node in world.running() if node.spec.hidden]
    until(lambda: hidden.log_text().count("this peer is reached through relay") >= 2, "the peer has two relays")


# --- after a text ---


def is_back(moment: Moment, node: Node) -> str:
    """The peer is seen by the others and sees them, and the next text has to use it."""
    others = [other for other in moment.world.running() if other is not node]
    everybody = {other.peer_id for other in moment.world.running()}
    seconds = until(
        lambda: seen_by(node) >= everybody and all(node.peer_id in seen_by(other) for other in others),
        "the peer is seen again",
        SEEN_SECONDS,
    )
    for other in others:
        if other.blocks == node.blocks:
            other.signal(signal.SIGSTOP)
    return f"seen again by all {seconds:.0f} s after that, and used"


def back_when_over(moment: Moment) -> str:
    """The fault ends by itself; then the peer is back."""
    for timer in moment.world.timers:
        timer.join()
    moment.world.heal()
    return is_back(moment, used(moment))


def stays_seen(seconds: float) -> Callable[[Moment], str]:
    """The peer is seen all the time, for longer than records live, and the next text has to use it."""

    def after(moment: Moment) -> str:
        other = moment.twins[0]
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            if used(moment).peer_id not in seen_by(other):
                raise CaseFailed("the peer is not seen any more")
            time.sleep(2.0)
        is_back(moment, used(moment))
        return f"seen by others for all of {seconds:.0f} s, and used"

    return after


def daemon_is_new(moment: Moment) -> str:
    """Another daemon runs in the place of the one that was killed or stands still."""

    def answers() -> bool:
        children = [child for child in psutil.Process(used(moment).pid).children() if "p2pd" in child.name()]
        return any(child.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED) for child in children)

    seconds = until(answers, "another daemon")
    return f"another daemon after {seconds:.0f} s; {is_back(moment, used(moment))}"


def first_is_started_again(moment: Moment) -> str:
    node = first(moment.world)
    node.process.end()
    began = time.monotonic()
    moment.world.restart(node)
    return f"served {time.monotonic() - began:.0f} s after its start; {is_back(moment, node)}"
