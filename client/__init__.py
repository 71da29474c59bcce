"""The client: text in, tokens out, with the model's blocks at the peers of a swarm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model.load import AutoSwarmModelForCausalLM

__all__ = ["AutoSwarmModelForCausalLM"]


def __getattr__(name: str) -> Any:
    """torch and transformers are imported on first use: the command line's --help must not pay for them."""
    if name == "AutoSwarmModelForCausalLM":
        from .model.load import AutoSwarmModelForCausalLM

        return AutoSwarmModelForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
