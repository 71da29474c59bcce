"""From a checkpoint to a model with the swarm in the place of its blocks, connected to that swarm.

Only the tensors outside the blocks are read, and from a hub only those are fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ...proto.model.checkpoint import Checkpoint, open_checkpoint
from ...proto.model.family import load_model
from .model import SwarmModel, swarm_class
from .remote import SessionFactory

if TYPE_CHECKING:
    from ...proto.directory.swarm_key import SwarmKey


class AutoSwarmModelForCausalLM:
    """Makes models whose blocks are in a swarm; like transformers' Auto classes it has no instances."""

    @staticmethod
    def from_pretrained(
        model_name_or_path: str | Path,
        *,
        initial_peers: Sequence[str],
        swarm_key: str | Path | SwarmKey | None = None,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        **connect_options: Any,
    ) -> Any:
        """The model of a local folder or a hub's "owner/name", computed by the swarm that `initial_peers` belong to.

        Reads, and from a hub fetches, only the tensors outside the blocks. `dtype` is that of this machine's part.
        The other options are those of `blockswarm.client.connect.connect`. Raises SwarmError.
        """
        from ..connect import connect  # brings grpc and the directory

        checkpoint = open_checkpoint(model_name_or_path, revision=revision)
        model = load_ends(checkpoint, dtype)
        factory = connect(
            checkpoint=checkpoint,
            initial_peers=initial_peers,
            swarm_key=swarm_key,
            **connect_options,
        )
        return attach(model, factory)


def load_ends(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model without its blocks, not connected to a swarm yet: see `attach`.

    Raises UnsupportedModel, ModelMismatch, and what reading the checkpoint raises.
    """
    model = load_model(swarm_class(checkpoint.config), checkpoint.config, checkpoint.ends_state(), dtype)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    return prepare(model)


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Make an instance of `swarm_class` that has its weights ready for use."""
    model.requires_grad_(False)
    # MPT's configurations say False; without a cache every token would send the whole text again.
    model.config.use_cache = True
    model.generation_config.use_cache = True
    return model.eval()


def attach(model: PreTrainedModel, factory: SessionFactory) -> Any:
    """Connect a model made by `load_ends` to a swarm; returns the model."""
    assert isinstance(model, SwarmModel)
    model.session_factory = factory
    return model
