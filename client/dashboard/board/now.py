"""One sentence per model: what looks and probes show about it, and nothing beyond."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from ....proto.errors import describe_blocks
from ..watch.sighting import LastProbe, ModelFacts, ModelState
from ..written.words import count_words, failure_words, percent_words, span_words
from .coverage import CoverageMap
from .peers import SILENT, PeerRow


class Standing(enum.Enum):
    """The state of a model."""

    WORKS = "works"
    """The last probe worked."""
    FAILS = "fails"
    """The last probe failed."""
    UNPROVEN = "unproven"
    """Every block has a server, but there is no recent probe."""
    INCOMPLETE = "incomplete"
    """Some block has no server."""
    UNSEEN = "unseen"
    """The last look failed, or is too old, or there was none."""


@dataclass(frozen=True, slots=True)
class ProbeCard:
    """The last probe of a model at a glance."""

    at: float
    """Unix time at which it ended."""
    age_seconds: float
    code: str
    """"" if it worked, else the stable name of the error."""
    tokens_per_second: float | None
    first_token_seconds: float | None
    seconds: float
    good_in_last_day: int | None
    """How many of `probes_in_last_day` worked; None if the history cannot be read."""
    probes_in_last_day: int | None


@dataclass(frozen=True, slots=True)
class PeerTally:
    """The numbers of peers."""

    serving: int
    others: int
    """Peers that answer but cannot be used by chains now: they are joining, leaving, or doubted."""
    silent: int

    @classmethod
    def of(cls, peers: Sequence[PeerRow]) -> PeerTally:
        serving = sum(peer.serves for peer in peers)
        silent = sum(peer.state == SILENT for peer in peers)
        return cls(serving, len(peers) - serving - silent, silent)


@dataclass(frozen=True, slots=True)
class StaleAfter:
    """The ages in seconds after which looks and probes say nothing about the present."""

    look: float
    probe: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model at a glance."""

    id: str
    name: str
    digest: str
    num_blocks: int
    blocks_counted: bool
    """Whether the number of blocks is from the model's own files; else it is the largest that a peer announces."""
    standing: Standing
    sentence: str
    current: bool
    """Whether the last look has succeeded and is recent. If not, the fields about peers and blocks below are null."""
    peers_serving: int | None
    peers_other: int | None
    """Peers that answer but cannot be used by chains now: they are joining, leaving, or doubted."""
    peers_silent: int | None
    missing_blocks: tuple[int, ...] | None
    weakest_block: int | None
    weakest_servers: int | None
    free_sessions: int | None
    seen_at: float | None
    """Unix time of the last look that succeeded."""
    age_seconds: float | None
    """The age of that look when this was made."""
    failure: str | None
    """The error code of the last look, if it failed."""
    probe: ProbeCard | None
    """None if there was no probe."""


def model_card(
    state: ModelState, tally: PeerTally, coverage: CoverageMap | None, now: float, stale: StaleAfter
) -> ModelCard:
    """Return the card as of `now` (Unix seconds); `tally` and `coverage` are those of the state's sighting."""
    facts, sighting, failure = state.facts, state.sighting, state.failure
    age = max(0.0, now - sighting.at_seconds) if sighting is not None else None
    current = tells_of_now(state, now, stale)
    counts, blocks = (tally, coverage) if current else (None, None)
    probe = _probe_card(state.probe, now) if state.probe is not None else None
    standing, sentence = _judged(state, blocks, age, probe, stale)
    return ModelCard(
        id=facts.id,
        name=facts.name,
        digest=facts.digest,
        num_blocks=facts.num_blocks,
        blocks_counted=facts.counted,
        standing=standing,
        sentence=sentence,
        current=current,
        peers_serving=counts.serving if counts is not None else None,
        peers_other=counts.others if counts is not None else None,
        peers_silent=counts.silent if counts is not None else None,
        missing_blocks=blocks.missing if blocks is not None else None,
        weakest_block=blocks.weakest.block if blocks is not None else None,
        weakest_servers=blocks.weakest.servers if blocks is not None else None,
        free_sessions=blocks.free_sessions if blocks is not None else None,
        seen_at=sighting.at_seconds if sighting is not None else None,
        age_seconds=age,
        failure=failure.code if failure is not None else None,
        probe=probe,
    )


def tells_of_now(state: ModelState, now: float, stale: StaleAfter) -> bool:
    """Return whether the last sighting is recent and no look has failed since, so that it describes the present."""
    return state.sighting is not None and state.failure is None and now - state.sighting.at_seconds <= stale.look


def why_unseen(state: ModelState) -> str:
    """Return why the present of a swarm is unknown, in words."""
    if state.failure is not None:
        return failure_words(state.failure.code)
    return "no look has ended since" if state.sighting is not None else "the first look is under way"


def _probe_card(probe: LastProbe, now: float) -> ProbeCard:
    outcome, availability = probe.outcome, probe.availability
    return ProbeCard(
        at=probe.at_seconds,
        age_seconds=max(0.0, now - probe.at_seconds),
        code=outcome.code,
        tokens_per_second=outcome.tokens_per_second,
        first_token_seconds=outcome.first_token_seconds,
        seconds=outcome.seconds,
        good_in_last_day=availability.good if availability is not None else None,
        probes_in_last_day=availability.probes if availability is not None else None,
    )


def _judged(
    state: ModelState, coverage: CoverageMap | None, age: float | None, probe: ProbeCard | None, stale: StaleAfter
) -> tuple[Standing, str]:
    """Judge a model. A recent probe decides, unless a later look found blocks missing; `coverage` is None if stale."""
    if probe is not None and probe.age_seconds <= stale.probe:
        missed_since = state.sighting is not None and state.sighting.at_seconds > probe.at
        if not (missed_since and coverage is not None and coverage.missing):
            return _measured(probe)
    standing, sentence = _looked(state, coverage, age)
    if probe is not None and probe.age_seconds > stale.probe:
        sentence += f"; the last probe ended {span_words(probe.age_seconds)} ago"
    return standing, sentence


def _measured(probe: ProbeCard) -> tuple[Standing, str]:
    ago = f"{span_words(probe.age_seconds)} ago"
    if probe.code:
        standing, sentence = Standing.FAILS, f"does not work: {failure_words(probe.code)}, tried {ago}"
    else:
        standing, sentence = Standing.WORKS, f"works: {probe.tokens_per_second or 0:.1f} tokens/s, measured {ago}"
    if probe.probes_in_last_day and probe.good_in_last_day is not None:
        share = percent_words(probe.good_in_last_day, probe.probes_in_last_day)
        sentence += f"; {share} of {count_words(probe.probes_in_last_day, 'probe')} in the last 24 h worked"
    return standing, sentence


def _looked(state: ModelState, coverage: CoverageMap | None, age: float | None) -> tuple[Standing, str]:
    if coverage is None:
        never = "not seen yet" if state.failure is None else "not seen"
        when = never if age is None else f"last seen {span_words(age)} ago"
        return Standing.UNSEEN, f"{when}: {why_unseen(state)}"
    if coverage.missing:
        return Standing.INCOMPLETE, f"does not work: no peer serves {_of_model(coverage.missing, state.facts)}"
    if not state.facts.counted:
        return Standing.UNPROVEN, (
            "every block that peers announce has a server; whether the model has more, and whether a request works,"
            " is not known here"
        )
    return Standing.UNPROVEN, "every block has a server; whether a request works was not measured"


def _of_model(blocks: tuple[int, ...], facts: ModelFacts) -> str:
    every = len(blocks) == facts.num_blocks
    return "any block" if every else f"{describe_blocks(blocks)} of {facts.num_blocks}"
