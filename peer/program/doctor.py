"""The examination behind `swarm-peer doctor`: what would keep this machine from serving, and what to do about it.

Each subject is examined by a shell function and judged by a pure one.  The findings are safe to paste in public: they
contain no key, id, address, port, host or path, and therefore of an error only its stable code, not its text.  The one
exception is the advice for a GPU that is missing: the hints of `find_device`, which say no more of this machine than
how many GPUs it has.
"""

from __future__ import annotations

import asyncio
import enum
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...proto.directory.swarm_key import SwarmKey
from ...proto.errors import SwarmError, UsageError
from ...proto.identity import Identity
from ...proto.network.address import PeerAddress
from ...proto.network.dialling import rule_for
from ...proto.network.transport import Dialer, introduction, ping
from ...proto.wire.timing import JOIN_CLOCK_SKEW_SECONDS
from ..offer.capacity import free_memory_bytes
from ..reach.ask import ReachAsker
from ..reach.first import first_verdict
from ..reach.verdict import ReachStatus, ReachVerdict
from ..timing import PeerTiming

LITTLE_DISK_BYTES = 5 << 30
LITTLE_MEMORY_BYTES = 2 << 30


class Health(enum.StrEnum):
    GOOD = "ok"
    UNKNOWN = "unknown"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one subject."""

    subject: str
    health: Health
    text: str
    advice: str = ""


# --- judgements ------------------------------------------------------------------------------------------------------


def judge_peers(asked: int, codes: Sequence[str]) -> Finding:
    """`asked` peers were pinged; `codes` are the error codes of those that did not answer."""
    answered = asked - len(codes)
    text = f"{answered} of {asked} initial peers answer"
    if codes:
        text += f" ({', '.join(sorted(set(codes)))})"
    if not asked:
        return Finding("peers", Health.UNKNOWN, "no initial peers were named", "Name some with --initial-peers.")
    if not answered:
        return Finding("peers", Health.BAD, text, "Check their addresses, and that outgoing connections are allowed.")
    return Finding("peers", Health.GOOD, text)


def judge_clock(offsets_seconds: Sequence[float]) -> Finding:
    """`offsets_seconds`: the clocks of other peers minus this machine's."""
    if not offsets_seconds:
        return Finding("clock", Health.UNKNOWN, "no other clock was seen")
    offset = statistics.median(offsets_seconds)
    if abs(offset) > JOIN_CLOCK_SKEW_SECONDS:
        return Finding(
            "clock", Health.BAD, f"other clocks are {offset:+.1f} s from this one",
            "Synchronise this machine's clock: timedatectl set-ntp true.",
        )  # fmt: skip
    return Finding("clock", Health.GOOD, f"within {abs(offset):.1f} s of others")


def judge_reach(verdict: ReachVerdict) -> Finding:
    match verdict.reached:
        case ReachStatus.YES:
            return Finding("reachability", Health.GOOD, "other peers reach this machine: it needs no relay")
        case ReachStatus.NO:
            return Finding(
                "reachability", Health.BAD, "other peers do not reach this machine: it would serve through a relay",
                "Forward the port and name it with --announce, or leave it to peers that offer --relay.",
            )  # fmt: skip
    reached_by_one = "one other peer reaches this machine: a second one has to check it"
    return Finding(
        "reachability", Health.UNKNOWN, reached_by_one if verdict.answers else "no other peer could check it",
        "Name more initial peers, or try again in a few seconds.",
    )  # fmt: skip


def judge_disk(free_bytes: int | None, writable: bool) -> Finding:
    """Judge the disk of the data folder; `free_bytes` is None if it is not known."""
    if not writable:
        return Finding("disk", Health.BAD, "the data folder cannot be written", "Choose another one with --data.")
    if free_bytes is None:
        return Finding("disk", Health.UNKNOWN, "the free space is not known")
    text = f"{free_bytes / 2**30:.1f} GiB are free"
    if free_bytes < LITTLE_DISK_BYTES:
        return Finding("disk", Health.BAD, text, "Free some space: fetched blocks are kept on the disk.")
    return Finding("disk", Health.GOOD, text)


def judge_memory(free_bytes: int) -> Finding:
    text = f"{free_bytes / 2**30:.1f} GiB are free"
    if free_bytes < LITTLE_MEMORY_BYTES:
        return Finding("memory", Health.BAD, text, "Close other programs, or host fewer blocks (--blocks 1).")
    return Finding("memory", Health.GOOD, text)


# --- examination -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patient:
    """The machine to examine, with the options that a peer on it would get."""

    initial_peers: Sequence[PeerAddress]
    host: str
    port: int
    announced_port: int | None
    """The port that others dial, where it is forwarded."""
    data_folder: Path
    device: str
    swarm_key: SwarmKey | None = None
    lan: bool = False


async def examine(patient: Patient, timing: PeerTiming, find_device: Callable[[str], Finding]) -> list[Finding]:
    """Return all findings; a bad one raises nothing. `find_device` runs in a thread and may take seconds."""
    identity = Identity.generate()  # the peer's own may be in use
    rule = rule_for(private=patient.swarm_key is not None, lan=patient.lan)
    introduce = introduction(identity, patient.swarm_key)
    dialer = Dialer(rule=rule, named=patient.initial_peers, introduce=introduce)
    try:
        answers = await asyncio.gather(*(_meet(dialer, address, timing) for address in patient.initial_peers))
        offsets = [answer for answer in answers if isinstance(answer, float)]
        codes = [answer for answer in answers if isinstance(answer, str)]

        async def known() -> Sequence[PeerAddress]:
            met = zip(patient.initial_peers, answers, strict=True)
            return [address for address, answer in met if isinstance(answer, float)]

        asker = ReachAsker(known, dialer, introduce, random.Random(), timing)
        port, reach = await _listen(patient, identity, asker)
    finally:
        await dialer.close()
    device = await asyncio.to_thread(find_device, patient.device)
    return [
        port, judge_peers(len(answers), codes), judge_clock(offsets), reach, _disk(patient.data_folder),
        judge_memory(free_memory_bytes()), device,
    ]  # fmt: skip


async def _meet(dialer: Dialer, address: PeerAddress, timing: PeerTiming) -> float | str:
    """Ping a peer; return its clock minus ours in seconds, or the error's code."""
    try:
        return (await ping(dialer.stub(address), address, timing.join_ping_seconds))[2]
    except SwarmError as error:
        return error.code


async def _listen(patient: Patient, identity: Identity, asker: ReachAsker) -> tuple[Finding, Finding]:
    try:
        verdict, _ = await first_verdict(identity, patient.host, patient.port, asker, time.time, patient.announced_port)
    except UsageError:
        taken = Finding(
            "port",
            Health.BAD,
            "this machine cannot listen on it",
            "Stop the program that has it, or choose another --port.",
        )
        return taken, Finding("reachability", Health.UNKNOWN, "not checked: the port cannot be used")
    return Finding("port", Health.GOOD, "this machine can listen on it"), judge_reach(verdict)


def _disk(folder: Path) -> Finding:
    """Judge the nearest existing parent: the folder itself is made by the first peer."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = None
    return judge_disk(free, there.is_dir() and os.access(there, os.W_OK))


def device_finding(asked: str) -> Finding:
    """Judge the device that torch would compute on."""
    from ..engine.device import describe_device, find_device  # brings torch

    try:
        return Finding("device", Health.GOOD, describe_device(find_device(asked)))
    except UsageError as error:
        return Finding("device", Health.BAD, "torch does not see the device that was asked for", error.hint)


# --- for people ------------------------------------------------------------------------------------------------------


def describe(findings: Sequence[Finding]) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{finding.subject:12}  {finding.health.value:7}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':23}{finding.advice}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [
        {"subject": found.subject, "health": found.health.value, "text": found.text, "advice": found.advice}
        for found in findings
    ]
