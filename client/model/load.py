"""Loads a checkpoint as a model with the swarm in place of its blocks, and connects it to that swarm.

Only the tensors outside the blocks are read, or fetched from a hub.
"""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ...proto.errors import UsageError
from ...proto.model.checkpoint import Checkpoint, open_checkpoint
from ...proto.model.family import load_model
from ...proto.model.folder import cache_root
from ...proto.weights.kept import FORMS_FILE_NAME, KeptMeasurements
from ...proto.weights.trials import tried
from ..background import background_loop
from ..config import HeadForm
from .guess.draft_model import DraftModel
from .guess.open_draft import open_draft
from .guess.policy import AUTO, checked_setting
from .guess.suffix import SuffixDrafter
from .head import pack_head, round_head
from .model import SwarmModel, swarm_class
from .remote import SessionFactory

if TYPE_CHECKING:
    from ...proto.directory.swarm_key import SwarmKey

logger = logging.getLogger(__name__)


class AutoSwarmModelForCausalLM:
    """Loads models whose blocks are in a swarm; like transformers' Auto classes it is not instantiated."""

    @staticmethod
    def from_pretrained(
        model_name_or_path: str | Path,
        *,
        initial_peers: str | Sequence[str],
        swarm_key: str | Path | SwarmKey | None = None,
        dtype: torch.dtype | str = torch.float32,
        revision: str | None = None,
        guess: str | int = AUTO,
        draft: str | Path | PreTrainedModel | None = None,
        head: str = HeadForm.AUTO,
        **connect_options: Any,
    ) -> SwarmModel:
        """Load a model from a local folder or a hub's "owner/name", and connect it to the swarm of `initial_peers`.

        Reads (or fetches from a hub) only the tensors outside the blocks. `dtype` is that of this machine's part.
        `guess`: how many tokens to guess ahead, "auto", "off" or a number (see `SwarmModel.guess`). `draft`: a small
        model with the same tokenizer that guesses on this machine: a folder, a hub's name, or a loaded model. `head`:
        "auto" (the fastest exact form on this machine), "plain" (torch's own linear) or "int8" (rounded: it reads a
        quarter of the bytes per token, and changes the likeliest token about once in several hundred).
        The other options are those of `blockswarm.client.connect.connect`. Raises SwarmError.
        """
        from ..connect import connect, parsed_peers  # brings grpc and the directory

        # Check all that can be checked, including for a forked child, before anything is read.
        background_loop()
        guess, head_form = checked_setting(guess), HeadForm.parse(head)
        parsed_peers(initial_peers)
        dtype = _dtype(connect_options.pop("torch_dtype", dtype))
        _refuse_foreign(connect_options, inspect.signature(connect).parameters)
        checkpoint = open_checkpoint(model_name_or_path, revision=revision)
        drafting = open_draft(draft, model_name_or_path, revision) if draft is not None else None
        model = load_ends(checkpoint, dtype, head_form)
        factory = connect(
            checkpoint=checkpoint,
            initial_peers=initial_peers,
            swarm_key=swarm_key,
            **connect_options,
        )
        connected: SwarmModel = attach(model, factory, guess, drafting)
        return connected


_IGNORED = {"device_map", "low_cpu_mem_usage", "attn_implementation", "use_safetensors", "use_cache"}
_FORMATS = "The operators of the peers choose the format of the weights; min_precision sets a limit."
_HINTS = {
    "trust_remote_code": "Code of a model is never run; its family has to be one of transformers.",
    "token": "Set HF_TOKEN, or log in with `hf auth login`.",
    "cache_dir": "Set XDG_CACHE_HOME.",
    "quantization_config": _FORMATS,
    "load_in_8bit": _FORMATS,
    "load_in_4bit": _FORMATS,
}
"""Hints for arguments of transformers' from_pretrained that do not exist here."""


def _refuse_foreign(options: dict[str, Any], known: Container[str]) -> None:
    """Drop arguments that have no meaning here, with a warning. Raises UsageError for other unknown ones."""
    for name in [name for name in options if name not in known]:
        value = options.pop(name)
        if name in _IGNORED:
            logger.warning("from_pretrained(%s=...) is ignored: the blocks are at the peers", name)
        elif value is not None and value is not False:
            hint = _HINTS.get(name, "See docs/python.md for the arguments that there are.")
            raise UsageError(f"from_pretrained takes no {name!r} here", hint=hint)


def _dtype(given: torch.dtype | str) -> torch.dtype:
    """Parse a dtype or its name ("bfloat16"; "auto" is float32). Raises UsageError."""
    found = torch.float32 if given == "auto" else getattr(torch, given, None) if isinstance(given, str) else given
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise UsageError(f"{given!r} is no dtype for the embedding and the head", hint="Use torch.float32.")
    return found


def load_ends(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, head: HeadForm = HeadForm.AUTO
) -> PreTrainedModel:
    """Load the model without its blocks, not yet connected (see `attach`); for `head` see `from_pretrained`.

    Raises UnsupportedModel, ModelMismatch, UsageError if the head cannot have that form, and what reading the
    checkpoint raises.
    """
    model = load_model(
        swarm_class(checkpoint.config), checkpoint.config, checkpoint.ends_state(), dtype, check_size=True
    )
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = _generation_config(checkpoint)
    prepare(model)
    if head is not HeadForm.PLAIN:
        stored = {tensor.dtype for tensor in checkpoint.ends_tensors() if len(tensor.shape) > 1}
        try_forms = functools.partial(tried, kept=KeptMeasurements(cache_root(None) / FORMS_FILE_NAME))
        (round_head if head is HeadForm.INT8 else pack_head)(model, stored, try_forms)
    return model


def _generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    """Read generation_config.json. Raises UsageError if it cannot be used."""
    try:
        return GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    except Exception as error:  # the file is untrusted, and transformers raises whatever it runs into
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"generation_config.json cannot be used: {reason}", hint="Mend it, or remove it: it holds only defaults."
        ) from None


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Make an instance of `swarm_class` with loaded weights ready for inference; returns it."""
    model.requires_grad_(False)
    # MPT's configurations disable the cache, and every token would then send the whole text again.
    model.config.use_cache = True
    model.generation_config.use_cache = True
    return model.eval()


def attach(
    model: PreTrainedModel, factory: SessionFactory, guess: str | int = AUTO, drafting: DraftModel | None = None
) -> Any:
    """Connect a model made by `load_ends` to a swarm, with `drafting` as a further drafter; returns the model.

    A model that is garbage-collected closes its connection.
    """
    assert isinstance(model, SwarmModel)
    model.session_factory = factory
    weakref.finalize(model, factory.forget).atexit = False
    model.guess = guess
    if drafting is not None:
        model.make_drafters = lambda: [SuffixDrafter(), drafting.drafter()]
    return model
