"""Finds the models that a dashboard shows: those whose files it is given, or those that the initial peers serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from ....proto.directory.directory import LookupDirectory
from ....proto.directory.records import PeerRecord, open_peer_record
from ....proto.directory.swarm_key import swarm_key_name
from ....proto.errors import PeerUnavailable, SwarmError
from ....proto.network.address import PeerAddress
from ....proto.network.transport import ping
from ....proto.wire.messages.calls import PingReply
from ...peer_errors import blamed_on
from ...survey.survey import Caller, ModelName, model_name
from ...swarm.absence import printable
from ...swarm.lookups import LookupAsker
from ...timing import ClientTiming
from ..config import MOST_MODELS
from .sighting import ModelFacts

MOST_ANNOUNCED_BLOCKS = 1024
"""The most blocks that are believed of a model whose number of blocks only peers announce."""
DIGEST_CHARS = 64


def facts_of(name: str, model: ModelName) -> ModelFacts:
    return ModelFacts(name, model.digest, model.num_blocks, counted=True)


def open_model(model: str, revision: str | None) -> ModelName:
    """Read digest and number of blocks from the model's own files; slow, and imports torch. Raises SwarmError."""
    return model_name(model, revision, lambda done, total: None)


def announced_blocks(records: Iterable[PeerRecord]) -> int:
    """Return the least number of blocks that a model must have, by what peers announce; at least 1."""
    stops = (record.spec.blocks.stop for record in records if record.spec.blocks is not None)
    return min(max(stops, default=1), MOST_ANNOUNCED_BLOCKS)


async def discover(caller: Caller, timing: ClientTiming) -> tuple[ModelFacts, ...]:
    """Return the models that the initial peers serve. Raises PeerUnavailable if none answers, or names a model."""
    addresses = caller.options.initial_peers
    answers = await asyncio.gather(*(_status(caller, address, timing) for address in addresses))
    names = {
        answer.model_digest: printable(answer.model_name)
        for answer in answers
        if answer is not None and _is_digest(answer.model_digest)
    }
    if not names:
        heard = any(answer is not None for answer in answers)
        raise PeerUnavailable(
            "the initial peers do not say which model they serve" if heard else "no initial peer answers",
            hint="Name the model with --model FOLDER_OR_ID." if heard else None,
        )
    digests = sorted(names)[:MOST_MODELS]
    counts = await asyncio.gather(*(_count_blocks(caller, digest, timing) for digest in digests))
    return tuple(
        ModelFacts(names[digest] or digest[:12], digest, count, counted=False)
        for digest, count in zip(digests, counts, strict=True)
    )


def as_model(facts: ModelFacts, proven: Mapping[int, bytes]) -> ModelName:
    return ModelName(facts.digest, facts.num_blocks, proven)


def _is_digest(text: str) -> bool:
    return len(text) == DIGEST_CHARS and set(text) <= set("0123456789abcdef")


async def _status(caller: Caller, address: PeerAddress, timing: ClientTiming) -> PingReply | None:
    """Return the status of a peer; None if it does not answer."""
    try:
        with blamed_on(address):
            reply, _, _ = await ping(caller.dialer.stub(address), address, timing.ping_seconds)
    except SwarmError:
        return None
    return reply


async def _count_blocks(caller: Caller, digest: str, timing: ClientTiming) -> int:
    """Return the number of blocks that peers announce. Raises PeerUnavailable if no initial peer answers."""
    asker = LookupAsker(caller.identity, caller.dialer, None, time.time, timing.lookup_seconds)
    calls = {str(address): asker.call(address) for address in caller.options.initial_peers}
    records = await LookupDirectory(calls, time.time, timing.lookup_seconds).lookup(swarm_key_name(digest, None))
    opened = []
    for record in records:
        try:
            opened.append(open_peer_record(record, None))
        except SwarmError:
            continue  # not a valid peer record
    return announced_blocks(opened)
