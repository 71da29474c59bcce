"""The command line of the client as typed values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...proto.errors import UsageError
from ...proto.wire.precision import at_least
from ..config import HeadForm, checked_patience
from ..model.guess.policy import AUTO, OFF, checked_setting
from ..timing import PATIENCE_SECONDS

if TYPE_CHECKING:
    from ...proto.directory.swarm_key import SwarmKey
    from ...proto.network.address import PeerAddress
    from ...routing.swarm import PeerId


LEAST_TEMPERATURE = 1e-5
"""Logits divided by less could become infinite; far above it the likeliest token is certain already."""


@dataclass(frozen=True)
class SwarmOptions:
    """Which swarm, and how to reach it."""

    initial_peers: tuple[PeerAddress, ...]
    swarm_key: SwarmKey | None = None
    identity: Path | None = None
    lan: bool = False
    """Dial private addresses, too: the swarm is on this machine's own network."""
    push: bool = True
    prefix_cache: bool = True
    """Whether peers keep the attention caches of ended sessions for later ones of the same identity."""
    wire_format: str = "auto"
    """The format of activations on the wire; "auto": each peer sends the dtype of its stream."""
    min_precision: str | None = None
    """The least precise numeric format that a peer may compute in."""
    allow_peers: frozenset[PeerId] | None = None
    """The only peers that may be used; None: all."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long a session waits for room, and for blocks that no peer serves any more."""
    revision: str | None = None
    head: HeadForm = HeadForm.AUTO
    guess: str | int = AUTO
    """How many tokens to guess ahead: "auto", "off", or the most."""
    draft: str | None = None
    """The folder or hub name of a small model that guesses, too."""

    def __post_init__(self) -> None:
        checked_patience(self.patience_seconds)
        if self.min_precision is not None:
            at_least("float32", self.min_precision)  # raises UsageError for an unknown format
        if checked_setting(self.guess) == OFF and self.draft is not None:
            raise UsageError("a draft model guesses nothing with --guess off", hint="Leave out --draft or --guess.")


@dataclass(frozen=True)
class GenerateOptions:
    """How to continue a text. None leaves a value to the model's own generation settings."""

    max_new_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    num_beams: int = 1
    prompt_lookup: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("--max-new-tokens", self.max_new_tokens, 1, 1 << 20),
            ("--temperature", self.temperature or LEAST_TEMPERATURE, LEAST_TEMPERATURE, 100),
            ("--top-p", self.top_p, 0, 1),
            ("--top-k", self.top_k, 1, 1 << 20),
            ("--min-p", self.min_p, 0, 1),
            ("--repetition-penalty", self.repetition_penalty, 0.01, 100),
            ("--seed", self.seed, 0, (1 << 32) - 1),
            ("--num-beams", self.num_beams, 1, 256),
            ("--prompt-lookup", self.prompt_lookup, 1, 256),
        ):
            if value is not None and not low <= value <= high:
                or_zero = "0 or " if low == LEAST_TEMPERATURE else ""
                raise UsageError(f"{name} must be {or_zero}between {low} and {high}, not {value}")
        if "" in self.stop:
            raise UsageError(
                "--stop has no text", hint="Every text has an empty one: say at which to stop, or leave it out."
            )
        if self.prompt_lookup is not None and self.num_beams > 1:
            raise UsageError("--prompt-lookup and --num-beams cannot be combined", hint="Leave one of them out.")

    @property
    def samples(self) -> bool:
        """Whether to sample: if any option is given that only sampling uses, unless the temperature is 0."""
        if self.temperature == 0:
            return False
        return any(value is not None for value in (self.temperature, self.top_p, self.top_k, self.min_p))

    def for_generate(self) -> dict[str, Any]:
        """Return the arguments for transformers' `generate`."""
        from ..model.generation import ONE_PLAIN_TEXT

        chosen: dict[str, Any] = {
            **ONE_PLAIN_TEXT,
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.samples,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            "prompt_lookup_num_tokens": self.prompt_lookup,
            "stop_strings": list(self.stop) or None,
        }
        if self.samples:
            chosen |= {
                "temperature": self.temperature,
                "top_p": self.top_p,
                "top_k": self.top_k,
                "min_p": self.min_p,
            }
        return {name: value for name, value in chosen.items() if value is not None}
