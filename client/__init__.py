"""The client: text in, tokens out, with the model's blocks at the peers of a swarm."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..proto.errors import GiveUp, PeerBusy, RetryElsewhere, SwarmError, UsageError
    from .model.load import AutoSwarmModelForCausalLM

__all__ = ["AutoSwarmModelForCausalLM", "GiveUp", "PeerBusy", "RetryElsewhere", "SwarmError", "UsageError"]


def __getattr__(name: str) -> Any:
    """Import torch and transformers on first use, so that the command line's --help does not pay for them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = ".model.load" if name == "AutoSwarmModelForCausalLM" else "..proto.errors"
    return getattr(import_module(home, __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
