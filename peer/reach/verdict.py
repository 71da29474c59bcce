"""Is this peer reached from outside, and at which addresses? Decided from the answers of others; no I/O.

Each answer is from another peer that was asked to dial back: the address that it saw, and whether the dial succeeded.
An answer from inside the same network says nothing about the world outside, so if any answer saw a public address, only
such answers count.  Half of them have to say yes, because a peer may lie or be cut off itself.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...proto.network.address import HostPort
from ...proto.wire.messages.relay import ReachReply

CHECKERS = 3
"""Peers that are asked at a time."""
ENOUGH_CHECKERS = 2
"""With fewer answers a peer counts as unchecked; an address that others saw counts if this many reached it."""


class ReachStatus(enum.Enum):
    """How a peer is reached, as far as it knows."""

    UNCHECKED = "unchecked"
    """Announced without a check: fewer than two peers have made one (`ReachVerdict.answers`), or none was wanted."""
    YES = "reached"
    NO = "not reached"


@dataclass(frozen=True, slots=True)
class ReachVerdict:
    """The result of one round of checks."""

    reached: ReachStatus
    hosts: tuple[str, ...] = ()
    """Addresses of this peer that at least two others saw and reached, most often named first."""
    answers: int = 0
    """The peers that the verdict rests on; 1 and unchecked: one has reached this peer, which is not enough."""

    def addresses(self, own: Sequence[str], port: int) -> tuple[str, ...]:
        """host:port to announce: first the addresses where others saw this peer, then its own (`own`)."""
        if self.reached is ReachStatus.NO:
            return ()
        seen = [str(HostPort(host, port)) for host in self.hosts]
        return tuple(dict.fromkeys((*seen, *own)))


UNCHECKED = ReachVerdict(ReachStatus.UNCHECKED)


def judge(answers: Sequence[ReachReply]) -> ReachVerdict:
    """Judge by the answers."""
    public = [answer for answer in answers if _is_public(answer.host)]
    counted = public or list(answers)
    if not counted:
        return UNCHECKED
    reached = [answer.host for answer in counted if answer.reached]
    if 2 * len(reached) < len(counted) or not reached:
        return ReachVerdict(ReachStatus.NO, answers=len(counted))
    seen = Counter(reached)
    hosts = tuple(host for host, count in seen.most_common() if count >= ENOUGH_CHECKERS and _is_ip(host))
    status = ReachStatus.YES if len(counted) >= ENOUGH_CHECKERS else ReachStatus.UNCHECKED
    return ReachVerdict(status, hosts, len(counted))


def _is_public(host: str) -> bool:
    return _is_ip(host) and ipaddress.ip_address(host).is_global


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host
