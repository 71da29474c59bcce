"""Lines of JSON between the dashboard and the probe program: one for each question and each answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....proto.errors import SwarmError, from_wire, to_wire
from ....routing.swarm import PeerId
from ...survey.survey import ModelName

MAX_LINE_BYTES = 1 << 20
"""The hashes of all blocks of a model fit into it."""


@dataclass(frozen=True, slots=True)
class ProbeSetup:
    """The model and its swarm, for the probe program."""

    model: str
    revision: str | None
    initial_peers: tuple[str, ...]
    swarm_key: str | None
    """The path of the key file, like `identity`."""
    identity: str | None
    lan: bool
    tokens: int
    """The number of tokens that a probe generates."""
    patience_seconds: float


@dataclass(frozen=True, slots=True)
class ProbedHop:
    """One peer of a probe's chain, with mean times per step."""

    peer: PeerId
    start: int
    stop: int
    network_seconds: float
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """The outcome of one real request through the swarm."""

    code: str
    """"" if all tokens came; else the stable name of the error."""
    seconds: float
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    """Speed after the first token."""
    hops: tuple[ProbedHop, ...] = ()
    repairs: int = 0
    """How many peers of the chain were lost during the request."""

    @property
    def works(self) -> bool:
        return not self.code


def line_of(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def setup_line(setup: ProbeSetup) -> bytes:
    return line_of(dataclasses.asdict(setup))


def read_setup(line: bytes) -> ProbeSetup:
    fields = json.loads(line)
    return ProbeSetup(**{**fields, "initial_peers": tuple(fields["initial_peers"])})


def opened_line(model: ModelName) -> bytes:
    proven = {str(block): found.hex() for block, found in model.proven.items()}
    return line_of({"digest": model.digest, "num_blocks": model.num_blocks, "proven": proven})


def refused_line(error: SwarmError) -> bytes:
    number, text = to_wire(error)
    return line_of({"error": number, "text": text, "hint": error.hint})


def read_opened(line: bytes) -> ModelName:
    """Read the answer to the setup. Raises the SwarmError that the program reports."""
    fields = json.loads(line)
    if "error" in fields:
        error = from_wire(fields["error"], fields["text"])
        error.hint = fields["hint"]
        raise error
    proven = {int(block): bytes.fromhex(found) for block, found in fields["proven"].items()}
    return ModelName(fields["digest"], fields["num_blocks"], proven)


def outcome_line(outcome: ProbeOutcome) -> bytes:
    return line_of(dataclasses.asdict(outcome))


def read_outcome(line: bytes) -> ProbeOutcome:
    fields = json.loads(line)
    hops = tuple(ProbedHop(**hop) for hop in fields["hops"])
    return ProbeOutcome(**{**fields, "hops": hops})
